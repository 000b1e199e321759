"""Six claims about what training costs, each computed anew from the rows that ship, with a verdict.

    C1  earlier generations: $10-50M, about 1e24 FLOPs, thousands of accelerators for weeks
    C2  current frontier: $100-300M, about 1e25, 10 thousand and more accelerators for months
    C3  next: $500M-1B and more, about 1e26, the power of a small town
    C4  ten times bigger costs 20 to 40 times more
    C5  double model and data, and compute roughly quadruples
    C6  training is bound by infrastructure: moving data hurts as much as the mathematics

A claim is a set of readings (`Reading`): a case, what is computed for it, and the range that the claim names. It is
supported where all readings lie in their ranges, refuted where none does, and otherwise depends on the case; readings
about money count for the verdict, and those about scale only say whether the runs were so large.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np

from glassformer.plan.architecture import Architecture
from glassformer.plan.campaigns import Campaign, campaigns, typical_utilisation
from glassformer.plan.energy import PUE, power
from glassformer.plan.flops import training
from glassformer.plan.growth import multipliers, size_pairs
from glassformer.plan.hardware import accelerator, data_rows
from glassformer.plan.money import costs
from glassformer.plan.precision import PRECISIONS
from glassformer.plan.rows import Row, measured_rows
from glassformer.plan.steptime import step_time

Verdict = Literal["supported", "refuted", "depends"]

TOLERANCE = 1.1
"""`Roughly` in C5 and `as much` in C6: within a tenth."""
SMALL_TOWN_MW = 20.0
"""17 thousand homes of 1.2 kW, the mean of the USA."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One case of a claim."""

    case: str
    low: float
    high: float
    """What is computed, from its least to its most."""
    least: float
    most: float
    """What the claim names."""
    unit: str
    counts: bool = True
    """For the verdict."""

    @property
    def holds(self) -> bool:
        """Whether the two ranges meet."""
        return self.low <= self.most and self.high >= self.least

    def row(self) -> dict[str, Any]:
        return {
            "case": self.case, "low": self.low, "high": self.high, "claimed_least": self.least,
            "claimed_most": self.most, "unit": self.unit, "holds": self.holds,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim, what the rows say of it, and which rows."""

    name: str
    text: str
    verdict: Verdict
    on: str
    """What it depends on: the cases in which it holds."""
    readings: tuple[Reading, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    used: tuple[str, ...] = ()
    """Ids of the rows."""

    def rows(self) -> list[dict[str, Any]]:
        """The readings, as a table."""
        return [{"claim": self.name, **one.row()} for one in self.readings]


def claims() -> list[Claim]:
    """All six."""
    return [earlier(), frontier(), following(), ten_times(), doubling(), infrastructure()]


def earlier() -> Claim:
    """C1: what 1e24 FLOPs cost on three generations, beside what such runs cost and how large they were."""
    runs = _runs(5e23, 5e24)
    hardware = (
        ("V100-SXM2-16GB", "fp16", 2020),
        ("A100-SXM-80GB", "bf16", 2022),
        ("H100-SXM-80GB", "bf16", 2025),
    )
    readings = (
        *_money(1e24, 10e6, 50e6, hardware),
        *_published(runs, 10e6, 50e6), *_scale(runs, 1000, 10_000, 14, 120),
    )  # fmt: skip
    return _claim(
        "C1", "Earlier generations: $10-50M, about 1e24 FLOPs, thousands of accelerators for weeks.",
        readings, {}, [one.id for one in runs],
    )  # fmt: skip


def frontier() -> Claim:
    """C2: what 1e25, and the 3.8e25 of Llama 3.1 405B, cost."""
    runs = _runs(1e25, 1e26)
    readings = (
        *_money(1e25, 100e6, 300e6, (("A100-SXM-80GB", "bf16", 2023), ("H100-SXM-80GB", "bf16", 2025))),
        *_money(3.8e25, 100e6, 300e6, (("H100-SXM-80GB", "bf16", 2025),)),
        *_published(runs, 100e6, 300e6),
        *_scale(runs, 10_000, 100_000, 60, 180),
    )
    return _claim(
        "C2", "Current frontier: $100-300M, about 1e25, 10 thousand and more accelerators for months.",
        readings, {}, [one.id for one in runs],
    )  # fmt: skip


def following() -> Claim:
    """C3: what 1e26 cost and how much power they take in 100 days, on two generations."""
    runs = _runs(1e26, 1e27)
    hardware = (("H100-SXM-80GB", "bf16", 2025), ("GB200", "fp8", 2025))
    readings = (
        *_money(1e26, 500e6, 1.5e9, hardware),
        *_published(runs, 500e6, 1.5e9),
        *(_megawatts(1e26, 100, name, precision) for name, precision, _ in hardware),
    )
    return _claim(
        "C3", "Next: $500M-1B and more, about 1e26, the power of a small town.",
        readings, {}, [one.id for one in runs],
    )  # fmt: skip


def ten_times() -> Claim:
    """C4: at the same number of tokens, from pairs of measured steps (`growth`), and of whole runs; then what makes it
    twenty and more."""
    pairs = size_pairs()
    ratios = np.array([ratio for ratio, _, _ in pairs])
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    readings = [Reading("the same tokens, measured", float(low), float(high), 20, 40, "times")]
    runs = (("llama2-7b", "llama2-70b"), ("llama1-7b", "llama1-65b"), ("pythia-1.4b", "pythia-12b"))
    for small, large in runs:
        ratio = _by_id(large).hours / _by_id(small).hours
        readings.append(Reading(f"hours, {small} to {large}", ratio, ratio, 20, 40, "times"))
    numbers = {
        "pairs": float(len(pairs)), "median": float(middle), "p5": float(low), "p95": float(high),
        "most": float(ratios.max()),
    }  # fmt: skip
    layouts = (
        ("bad layout, 530B on 2240 GPUs", "narayanan-t2-ptd-530B-2240", "narayanan-t2-zero3-530B-2240"),
        ("bad layout, 175B on 768 GPUs", "narayanan-t2-ptd-175B-768", "narayanan-t2-zero3-175B-768"),
    )
    for name, good, bad in layouts:
        numbers[name] = _field(good, "tflops_per_accel_reported") / _field(bad, "tflops_per_accel_reported")
    worse = numbers["bad layout, 530B on 2240 GPUs"]
    for case, tokens, efficiency in (
        ("and 3 times the tokens", 3.0, 1.0),
        ("in a layout as bad as ZeRO-3 on 2240 GPUs", 1.0, 1 / worse),
        ("and tokens in proportion, as is optimal", 10.0, 1.0),
    ):
        product = multipliers(float(middle), tokens, efficiency)["product"]
        readings.append(
            Reading(f"scenario: ten times the parameters {case}", product, product, 20, 40, "times", False)
        )
    used = [one for group in (pairs, layouts) for _, *both in group for one in both]
    used = sorted({*used, *itertools.chain(*runs)})
    return _claim("C4", "Ten times bigger costs 20 to 40 times more.", tuple(readings), numbers, used)


def doubling() -> Claim:
    """C5: FLOPs a token between neighbouring sizes of GPT-3 (2005.14165; the 13B with a width of 5120), counted exactly
    with the full pattern, and brought to a doubling of the parameters: 2 x 2^(power of N)."""
    sizes = (
        (12, 768, 12), (24, 1024, 16), (24, 1536, 16), (24, 2048, 16), (32, 2560, 32), (32, 4096, 32), (40, 5120, 40),
        (96, 12288, 96),
    )  # fmt: skip
    models = [
        Architecture(
            name=f"GPT-3 of {layers} layers, width {width}", layers=layers, width=width, heads=heads, kv_heads=heads,
            head_width=width // heads, ff_width=4 * width, vocab=50257, learned_positions=2048, norm="layernorm",
            bias=True,
        )
        for layers, width, heads in sizes
    ]  # fmt: skip
    readings, powers = [], []
    for small, large in itertools.pairwise(models):
        more = math.log(large.parameters.total / small.parameters.total)
        power_of_n = math.log(training(large, 2048) / training(small, 2048)) / more
        powers.append(power_of_n)
        total = 2 * 2**power_of_n
        readings.append(
            Reading(f"{small.name} to {large.width}", total, total, 4 / TOLERANCE, 4 * TOLERANCE, "times")
        )
    numbers = {"power of N, least": min(powers), "power of N, most": max(powers)}
    return _claim(
        "C5", "Double model and data, and compute roughly quadruples.", tuple(readings), numbers,
        [one.name for one in models],
    )  # fmt: skip


def infrastructure() -> Claim:
    """C6: of a step, the time that its matrix products would take at the best that products reach on that hardware is
    mathematics; all else (slower products, bandwidth, waiting for others, bubbles) is infrastructure. Beside it what
    the planner's own split spends outside of products, in which slow products count as mathematics."""
    cases = (
        ("Llama 3 405B, 16,384 H100, bf16", "llama3-405b-16384-cp1"),
        ("GPT-3 175B, 512 H100, fp8", "mlperf-v3.1-gpt3-NVIDIA-H100-SXM-80GB-512"),
        ("GPT-3 175B, 10,752 H100, fp8", "mlperf-v3.1-gpt3-Azure_NVIDIA-H100-SXM-80GB-10752"),
        ("MPT 3B, 8 A100, bf16", "mpt-3b-a100_80gb-8g-s2048-mb10-gb160-amp_bf16"),
    )
    readings = []
    for case, name in cases:
        row, unit = _row(name), "share of a step, not mathematics"
        other, least = 1 - mathematics_share(row), 1 / (1 + TOLERANCE)
        readings.append(Reading(case, other, other, least, 1.0, unit))
        split = _outside_products(row)
        readings.append(
            Reading(f"{case}, outside products by the planner's split", split, split, least, 1.0, unit)
        )
    older, newer = accelerator("H200-SXM-141GB"), accelerator("B200")
    upgrade = ("mleng-llama3.1-8b-H200-s65536", "mleng-llama3.1-8b-B200-s65536")
    speeds = [_field(name, "tflops_per_accel_reported") for name in upgrade]
    numbers = {
        "H200 to B200, Llama 3.1 8B": speeds[1] / speeds[0],
        "H200 to B200, peak": newer.peak("bf16") / older.peak("bf16"),
        "H200 to B200, bandwidth": newer.bandwidth / older.bandwidth,
    }
    numbers["GPT-3 fp8: half is not mathematics from accelerators"] = _half_passed(
        "mlperf-v3.1-gpt3", lambda row: row.fields["accelerator"] == "H100-SXM-80GB"
    )
    return _claim(
        "C6", "Training is bound by infrastructure: moving data hurts as much as the mathematics.",
        tuple(readings), numbers, [*(name for _, name in cases), *upgrade],
    )  # fmt: skip


def mathematics_share(row: Row) -> float:
    """Matrix products at the best speed measured for them, as a share of the step."""
    job = row.job
    assert job is not None
    kind, peak = job.accelerator, job.precision.peak
    if row.fields["mfu_pct_reported"]:
        used = float(row.fields["mfu_pct_reported"]) / 100
    else:
        assert row.seconds is not None
        done = training(job.architecture, job.length) * job.tokens
        used = done / (row.seconds * float(row.fields["n_accel"]) * kind.peak(peak))
    return used / kind.achievable[peak]


def _outside_products(row: Row) -> float:
    """Share of the step that the planner spends on anything but kernels of matrix products, fast or slow."""
    assert row.job is not None
    parts = {one["part"]: one["share"] for one in step_time(row.job).split()}
    return 1 - sum(float(parts[name]) for name in ("matmul", "pattern", "head", "recompute"))


def _half_passed(source: str, chosen: Callable[[Row], bool]) -> float:
    """The number of accelerators from which more than half of a step is not mathematics: between two measured ones, on
    a line in the logarithm."""
    rows = [row for row in _steps() if row.id.startswith(source) and row.job and chosen(row)]
    points = sorted((float(row.fields["n_accel"]), mathematics_share(row)) for row in rows)
    for (fewer, above), (more, below) in itertools.pairwise(points):
        if above >= 0.5 > below:
            way = (above - 0.5) / (above - below)
            return float(math.exp(math.log(fewer) + way * math.log(more / fewer)))
    return math.nan


def _claim(
    name: str, text: str, readings: Sequence[Reading], numbers: dict[str, float], used: Sequence[str]
) -> Claim:
    counted = [one for one in readings if one.counts]
    held = [one.case for one in counted if one.holds]
    verdict: Verdict = "depends"
    if len(held) == len(counted):
        verdict = "supported"
    elif not held:
        verdict = "refuted"
    on = "" if verdict != "depends" else f"holds for {'; '.join(held)}"
    return Claim(name, text, verdict, on, tuple(readings), numbers, tuple(used))


def _money(
    flops: float, least: float, most: float, hardware: Sequence[tuple[str, str, int]]
) -> list[Reading]:
    """The last run and the whole project, at the utilisation that large models were measured to reach."""
    found = []
    for name, precision, year in hardware:
        kind = accelerator(name)
        share = typical_utilisation(kind, PRECISIONS[precision], 175e9, 2048)
        hours = flops / (3600 * kind.peak(PRECISIONS[precision].peak) * share)
        paid = costs(kind, hours, year=year)
        run = f"{flops:.2g} FLOPs on {name}, {precision}, {year}"
        rented, project = (paid.cloud[2].usd.value, paid.cloud[0].usd.value), paid.project.usd
        found.append(Reading(f"{run}: cloud, 3 years to on demand", *rented, least, most, "$"))
        found.append(Reading(f"{run}: whole project", project.low, project.high, least, most, "$"))
    return found


def _megawatts(flops: float, days: float, name: str, precision: str) -> Reading:
    kind = accelerator(name)
    share = typical_utilisation(kind, PRECISIONS[precision], 175e9, 2048)
    count = flops / (kind.peak(PRECISIONS[precision].peak) * share * days * 86_400)
    watts = power(kind).watts
    low, high = watts.low * PUE.low * count / 1e6, watts.high * PUE.high * count / 1e6
    case = f"{flops:.2g} FLOPs on {name}, {precision}, in {days:g} days: {count:,.0f} accelerators"
    return Reading(case, low, high, SMALL_TOWN_MW, math.inf, "MW", counts=False)


def _scale(
    runs: Sequence[Campaign], fewest: float, most: float, days: float, most_days: float
) -> list[Reading]:
    counts = [one.accelerators for one in runs if one.accelerators]
    lasted = [one.hours / one.accelerators / 24 for one in runs if one.accelerators]
    return [
        Reading("accelerators of such runs", min(counts), max(counts), fewest, most, "accelerators", counts=False),
        Reading("days of such runs", min(lasted), max(lasted), days, most_days, "days", counts=False),
    ]  # fmt: skip


def _runs(least: float, most: float) -> list[Campaign]:
    return [one for one in campaigns() if least <= one.flops <= most]


def _published(runs: Sequence[Campaign], least: float, most: float) -> list[Reading]:
    """Dollars that others computed for these runs, cheapest to dearest: owned (2405.21015 and its update), at cloud
    prices (AI Index)."""
    wanted = {one.id: one.model for one in runs}
    rows = [row for row in data_rows("training_runs") if row["id"] in wanted]
    found = []
    for basis, columns in (
        ("owned, by Epoch", ("epoch_cost_2023usd_paper", "epoch_cost_usd_updated")),
        ("at cloud prices, by others", ("cost_usd_published",)),
    ):
        paid = [(float(row[column]), row["model"]) for row in rows for column in columns if row[column]]
        if paid:
            (low, cheapest), (high, dearest) = min(paid), max(paid)
            names = cheapest if cheapest == dearest else f"{cheapest} to {dearest}"
            found.append(Reading(f"published, {basis}: {names}", low, high, least, most, "$"))
    return found


@cache
def _steps() -> tuple[Row, ...]:
    return tuple(measured_rows())


def _by_id(name: str) -> Campaign:
    return next(one for one in campaigns() if one.id == name)


def _row(name: str) -> Row:
    return next(row for row in _steps() if row.id == name)


def _field(name: str, column: str) -> float:
    return float(_row(name).fields[column])
