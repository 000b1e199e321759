"""How far the planner is from what was measured, group by group, with simple rules beside it.

    python benchmarks/plan_accuracy.py [DATA] [--calculon CHECKOUT] [--out docs/plan-accuracy.md] [--json]

DATA is a folder with tables like the shipped ones (measured_steps.csv); without it, the shipped rows. A shipped group
is forecast with rates fitted to all other groups, and to all other sources; rows that are not shipped with the shipped
rates. "3 rows" is the forecast of the other rows of a group after calibrating with three of its own, over five draws.

Competitors, which see the same rows as the planner:

    40 %      40 % of the datasheet's peak at the row's precision
    3 rows like it   the median utilisation of the three nearest rows of other groups
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import section  # beside this file
from numpy.typing import NDArray

from glassformer.plan.calibration import calibrate, calibrated_misses, left_out, misses, timed
from glassformer.plan.flops import training
from glassformer.plan.layout import Job
from glassformer.plan.own import apart, features
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.rows import Row, measured_rows
from glassformer.plan.spread import half_width

Floats = NDArray[np.float64]
WORDS = {
    "misses": "planner",
    "elsewhere": "planner, source left out",
    "calibrated": "planner, 3 rows",
    "neighbours": "3 rows like it",
    "rule": "40 % of peak",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calculon", type=Path, help="a checkout of calculon-ai/calculon, to stand beside")
    asked = parser.parse_args()
    found = {"step_time": step_time_table(asked.data)}
    sections = {"Step time": step_time_lines(found["step_time"])}
    if asked.calculon:
        sections["Beside Calculon"] = calculon_lines(asked.calculon)
    if asked.out:
        for heading, lines in sections.items():
            section.write(asked.out, heading, lines)
    print(
        json.dumps(found) if asked.json else "\n".join(line for lines in sections.values() for line in lines)
    )


def step_time_table(data: Path | None) -> list[dict[str, Any]]:
    """A row a group: misses (log forecast / measured) of planner and competitors, and what its interval holds."""
    shipped = timed(measured_rows())
    known = {row.id for row in shipped}
    rows = timed(measured_rows(data / "measured_steps.csv")) if data else shipped
    apart_from = all(row.id not in known for row in rows)
    without = {} if apart_from else left_out(shipped)
    elsewhere = left_out(shipped, by="source")
    found = []
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        rates = without.get(group, RATES)
        others = shipped if apart_from else [row for row in shipped if row.group != group]
        missed = misses(own, rates)
        farther = misses(own, elsewhere.get(own[0].source, RATES))
        widths = np.array([half_width(row.job, RATES) for row in own if row.job])
        near = calibrated(own, shipped if apart_from else own, rates)
        found.append({
            "group": group, "rows": len(own), "misses": missed.tolist(), "calibrated": near.tolist(),
            "elsewhere": farther.tolist(), "neighbours": neighbours(own, others).tolist(), "rule": rule(own).tolist(),
            "held": float(np.mean(abs(missed) <= widths)), "held_elsewhere": float(np.mean(abs(farther) <= widths)),
        })  # fmt: skip
    return found


def calibrated(rows: Sequence[Row], known: Sequence[Row], rates: Rates, draws: int = 5) -> Floats:
    """Misses after calibrating with three known rows of the group, over several draws; of rows that were not drawn."""
    pool = [row for row in known if row.group == rows[0].group]
    if (pool and pool[0].id in {row.id for row in rows}) or len(pool) < 3:
        return calibrated_misses(rows, rates, draws)
    found = []
    for seed in range(draws):
        drawn = np.random.default_rng(seed).permutation(len(pool))[:3]
        found.append(misses(rows, calibrate([pool[i] for i in drawn], rates)))
    return np.concatenate(found)


def neighbours(rows: Sequence[Row], others: Sequence[Row], many: int = 3) -> Floats:
    """Of the lookup: the median utilisation of the nearest rows."""
    places = [(tuple(features(row.job)), row.job.accelerator.name) for row in others if row.job]
    used = np.array([utilisation(row) for row in others])
    found = []
    for row in rows:
        assert row.job is not None
        gaps = np.array([float(apart(row.job, place, name)) for place, name in places])
        guess = float(np.median(used[np.argsort(gaps, kind="stable")[:many]]))
        found.append(np.log(utilisation(row) / guess))  # forecast / measured seconds
    return np.array(found)


def rule(rows: Sequence[Row], share: float = 0.4) -> Floats:
    """Of 40 % of the peak."""
    return np.array([np.log(utilisation(row) / share) for row in rows])


def utilisation(row: Row) -> float:
    """Model FLOP/s (full attention) over the peak at the row's precision."""
    job = row.job
    assert job is not None and row.seconds
    return model_flops(job) / (
        row.seconds * float(row.fields["n_accel"]) * job.accelerator.peak(job.precision.peak)
    )


def model_flops(job: Job) -> float:
    """Of a step."""
    one = training(job.architecture, job.length, read_length=job.read_length, trained=job.trained)
    return one * job.tokens


def step_time_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """The table in Markdown, and what it comes to."""
    lines = [
        EACH, "",
        "| group | rows | " + " | ".join(WORDS.values()) + " | in the interval |",
        "|---" * (len(WORDS) + 3) + "|",
    ]  # fmt: skip
    for one in found:
        medians = [_percent(_median(one[name])) for name in WORDS]
        lines.append(f"| {one['group']} | {one['rows']} | {' | '.join(medians)} | {one['held']:.0%} |")
    lines += ["", "| over all | " + " | ".join(WORDS.values()) + " |", "|---" * (len(WORDS) + 1) + "|"]
    for name, number in summary(found).items():
        lines.append(f"| {name} | " + " | ".join(_percent(number[key]) for key in WORDS) + " |")
    every = sum(one["rows"] for one in found)
    held, farther = (
        sum(one[key] * one["rows"] for one in found) / every for key in ("held", "held_elsewhere")
    )
    said = f"The intervals of 80 % hold {held:.0%} of {every} rows, and {farther:.0%} where the source is left out."
    return [*lines, "", said]


def calculon_lines(checkout: Path) -> list[str]:
    """The groups that Calculon can say something about."""
    import plan_calculon  # beside this file

    said = (
        "[Calculon](https://github.com/calculon-ai/calculon) (caa4b11) with its own A100 and H100 systems and the "
        "rows' links, on the rows that its inputs can say (`benchmarks/plan_calculon.py`). Korthikanti's rows are "
        "those that it was tuned to."
    )
    return [said, "", *plan_calculon.table(checkout)]


def summary(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median of the groups' medians, and of all rows the median and what 90 % are within."""
    whole = {key: np.concatenate([_errors(one[key]) for one in found]) for key in WORDS}
    medians = {key: [_median(one[key]) for one in found if one[key]] for key in WORDS}
    return {
        "median of the groups' medians": {key: float(np.median(medians[key])) for key in WORDS},
        "median of all rows": {key: float(np.median(whole[key])) for key in WORDS},
        "90 % of all rows are within": {key: float(np.quantile(whole[key], 0.9)) for key in WORDS},
    }


def _errors(missed: Sequence[float]) -> Floats:
    return np.abs(np.exp(np.array(missed, float)) - 1)


def _median(missed: Sequence[float]) -> float:
    return float(np.median(_errors(missed))) if len(missed) else float("nan")


def _percent(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.1%}"


EACH = (
    "Each number is the median of |forecast / measured - 1| over a group's rows. A group (one source, machine and "
    "date) is forecast by the planner with rates fitted to all other groups, or all other sources, and by the lookup "
    'from rows of other groups; "planner, 3 rows" has seen three rows of the group and forecasts its others.'
)

if __name__ == "__main__":
    main()
