"""After a run: what was planned beside what it took, and a table of all such checks on one's own machines.

    check_plan("runs/demo-1")         compares, and keeps it: plan-check.json in the run, a line in checks.jsonl of
                                      $GLASSFORMER_HOME/data/plan (or the user's data folder)

Compared are the time of a step (the median of those that the run logged), the training time, the peak of memory, FLOPs
in the convention of the run (full attention), parameters, and the loss where it was planned. A number holds where the
measured one lies in the planned interval; one that is exact holds within a thousandth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glassformer.errors import RunError
from glassformer.files import data_folder, write_json, write_text
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import bare, one_value, shown_interval, title
from glassformer.run.folder import Run
from glassformer.stats import median
from glassformer.train.drift import PLAN, read_plan

CHECK = "plan-check.json"
_EXACT = 1e-3


@dataclass(frozen=True)
class Checked:
    """A run beside its plan."""

    run: str
    planned_before: bool
    """Whether the plan was there before the run; a plan made afterwards knows no more, but is no forecast."""
    numbers: list[dict[str, Any]]
    """name, unit, planned, low, high, measured, error (measured / planned - 1), inside."""
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return all(one["inside"] for one in self.numbers)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For people."""
        return [_told(one) for one in self.numbers]

    def sentence(self) -> str:
        """How it went, in words."""
        inside = sum(one["inside"] for one in self.numbers)
        whose = "the plan made before it" if self.planned_before else "a plan made afterwards"
        return f"{inside} of {len(self.numbers)} numbers of {self.run} lie in the intervals of {whose}."

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file."""
        return {
            "run": self.run, "planned_before": self.planned_before, "holds": self.holds, "numbers": self.numbers,
            "warnings": list(self.warnings), "sentence": self.sentence(),
        }  # fmt: skip


def check_plan(run: str | Path, plan: str | Path | None = None) -> Checked:
    """Compare a finished run with its plan: `plan`, or the run's own plan.json, or one made now of its recipe."""
    folder = Run.open(Path(run))
    facts = _facts(folder)
    own = folder.path / PLAN
    before = plan is not None or own.exists()
    planned = read_plan(Path(plan) if plan is not None else own) if before else _plan_of(folder, facts)
    found = Checked(folder.name, before, list(_compared(planned, facts)), tuple(facts["warnings"]))
    write_json(folder.path / CHECK, found.to_dict())
    _remember(folder, planned, found, facts)
    return found


def told_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `calibration_rows` for people."""
    return [{name: row[name] for name in ("when", "run", "machine")} | _told(row) for row in rows]


def calibration_rows() -> list[dict[str, Any]]:
    """Every check that was made here: one number of one run a row, newest last."""
    return [
        {
            "when": one["when"][:10],
            "run": one["run"],
            "machine": one["machine"],
            "model": one["model"],
            **number,
        }
        for one in _checks()
        for number in one["numbers"]
    ]


def calibration_sentence(rows: list[dict[str, Any]] | None = None) -> str:
    """How good plans have been on this machine, in words."""
    rows = calibration_rows() if rows is None else rows
    if not rows:
        return "No run was checked yet: glassformer plan check runs/NAME"
    steps = [abs(row["error"]) for row in rows if row["name"] == "step_seconds"]
    memory = [abs(row["error"]) for row in rows if row["name"] == "bytes_per_accelerator"]
    unsure = [row for row in rows if row["low"] < row["high"]]
    held = sum(row["inside"] for row in unsure)
    said = f"{held} of {len(unsure)} intervals of 80 % held; a step's time was off by {median(steps):.1%}"
    said += f" (median of {len(steps)})"
    return f"{said}, memory by {median(memory):.1%}." if memory else f"{said}."


def _told(one: Mapping[str, Any]) -> dict[str, Any]:
    unit = one["unit"]
    return {
        "number": title(one["name"]), "planned": bare(one_value(one["planned"], unit)),
        "80 % between": bare(shown_interval(Quantity("", one["planned"], one["low"], one["high"], unit))),
        "measured": bare(one_value(one["measured"], unit)), "off by": f"{one['error']:+.1%}",
        "inside": "yes" if one["inside"] else "NO",
    }  # fmt: skip


def _facts(run: Run) -> dict[str, Any]:
    """What the run took."""
    start, cost, done = (run.events.last(name) for name in ("start", "cost", "done"))
    if start is None or done is None:
        raise RunError(f"{run.path} is not finished.", do="Check it when it is done.")
    seconds = [
        start["tokens_per_step"] / row["tokens_per_second"]
        for row in run.rows()
        if row.get("tokens_per_second")
    ]
    if not seconds:
        raise RunError(f"{run.path} says nothing of its speed.", expected="Rows of steps in events.jsonl.")
    resumed = run.events.last("resumed") is not None
    last = run.events.last("validation") or {}
    cost = cost or {}
    return {
        "step_seconds": median(seconds[1:] or seconds), "seconds": cost.get("seconds", done.get("seconds")),
        "bytes_per_accelerator": cost.get("peak_bytes"), "flops_full": cost.get("flops", done.get("flops")),
        "parameters": start["parameters"], "loss": last.get("loss"), "tokens_per_step": start["tokens_per_step"],
        "steps": start["steps"], "machine": _machine(run),
        "warnings": ["it was resumed: its memory is that of the last process"] if resumed else [],
    }  # fmt: skip


def _compared(planned: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number that both know."""
    step, share = planned["step_seconds"], facts["tokens_per_step"] / planned["tokens_per_step"]
    took = facts["steps"] * share
    pairs = {
        "step_seconds": (_scaled(step, share), "s"), "training_time": (_scaled(step, took), "s"),
        "bytes_per_accelerator": (planned["bytes_per_accelerator"], "bytes"), "flops_full": (planned["flops_full"],
        "FLOP"),
        "parameters": (planned["parameters"], "parameters"), "loss": (planned.get("loss"), ""),
    }  # fmt: skip
    found = []
    for name, (one, unit) in pairs.items():
        measured = facts["seconds" if name == "training_time" else name]
        if one is None or measured is None:
            continue
        value = one["value"]
        if name == "flops_full":  # of as many steps as the run made
            value *= facts["steps"] * facts["tokens_per_step"] / planned["tokens"]["value"]
        low, high = (one["low"], one["high"]) if one["low"] < one["high"] else (value, value)
        inside = low * (1 - _EXACT * (low == high)) <= measured <= high * (1 + _EXACT * (low == high))
        found.append({"name": name, "unit": unit, "planned": value, "low": low, "high": high, "measured": measured,
                      "error": measured / value - 1, "inside": inside})  # fmt: skip
    return found


def _scaled(one: Mapping[str, Any], by: float) -> dict[str, float]:
    return {name: one[name] * by for name in ("value", "low", "high")}


def _plan_of(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A plan of the run's own recipe, on the machine that this is."""
    from glassformer.plan.make import plan

    recipe = dict(run.recipe)
    values = {**recipe, "train": {**recipe["train"]}}
    for name in ("minutes", "epochs", "tokens"):
        values["train"].pop(name, None)
    values["train"]["steps"] = facts["steps"]
    changes = {}
    vocab = _vocab(run)
    if vocab is not None and not recipe["model"].get("vocab"):
        changes["model.vocab"] = vocab
    return plan(values, changes).to_dict()


def _vocab(run: Run) -> int | None:
    """Of the trained model, where it has one."""
    config = run.model / "config.json"
    if not config.exists():
        return None
    found = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
    return int(found) if found else None


def _machine(run: Run) -> str:
    machine = run.manifest.get("machine", {})
    return (
        ", ".join(machine.get("accelerators") or [])
        or f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores"
    )


def _remember(run: Run, planned: Mapping[str, Any], found: Checked, facts: Mapping[str, Any]) -> None:
    """One line for each run; a run that is checked again replaces its own."""
    begun = (run.events.last("start") or {}).get("time", "")
    line = {
        "id": f"{run.name} {begun}", "when": datetime.now(UTC).isoformat(timespec="seconds"), "run": run.name,
        "machine": facts["machine"], "model": planned["title"], "planned_before": found.planned_before,
        "numbers": found.numbers,
    }  # fmt: skip
    kept = [one for one in _checks() if one["id"] != line["id"]]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in [*kept, line])
    _table().parent.mkdir(parents=True, exist_ok=True)
    write_text(_table(), text)


def _checks() -> list[dict[str, Any]]:
    """Whole lines of the table; a torn one is skipped."""
    if not _table().exists():
        return []
    found = []
    for text in _table().read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(text)
        except ValueError:
            continue
        if isinstance(one, dict) and "numbers" in one:
            found.append(one)
    return found


def _table() -> Path:
    return data_folder() / "plan" / "checks.jsonl"
