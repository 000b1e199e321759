"""What makes the numbers of a plan less than sure, and the published runs that are like it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from glassformer.plan import given
from glassformer.plan.allocate import LARGEST_RUN
from glassformer.plan.campaigns import campaigns, runs_like
from glassformer.plan.hardware import Accelerator
from glassformer.plan.layout import Job
from glassformer.plan.memory import INTERVAL
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import one_value
from glassformer.units import show_bytes

NOTES = (
    "Intervals hold the middle 80 %. Each quantity is taken for log-normal: of a product the variances of the "
    "logarithms "
    "add, each times its power squared, and those below and above apart.",
    "A step's interval is the error on measured rows that the rates were not fitted to; memory's likewise. Failures, "
    "saves and restarts are drawn 400 times, the failure rate among what published systems show. Prices span their "
    "quotes.",
    "Not in it: what data cost, runs that are thrown away (but in the whole project's money), and waiting for "
    "machines.",
)
"""How intervals are made, and what is left out."""
MOST_MEASURED = 100_000
"""Accelerators of the largest published run."""


def over(spend: given.Budget, quantities: Mapping[str, Quantity]) -> Iterator[str]:
    """Whether a budget is enough."""
    name, unit = ("dollars", "$") if spend.kind == "dollars" else ("flops", "FLOP")
    took, has = quantities[name], one_value(spend.value, unit)
    if took.value > 1.05 * spend.value:
        share = spend.value / took.value
        yield f"The budget of {has} covers {share:.0%} of it: {one_value(took.value, unit)} are needed."
    elif took.high > spend.value:
        yield f"The budget of {has} is within the interval, whose upper end is {one_value(took.high, unit)}."


def doubts(
    job: Job, quantities: Mapping[str, Quantity], *, own_machine: bool, unfit: str = ""
) -> Iterator[str]:
    """A sentence for each doubt, the gravest first."""
    yield from _beyond_evidence(quantities["flops"].value)
    yield from _memory(job, quantities["bytes_per_accelerator"].value, unfit)
    good, days, count = quantities["goodput"], quantities["days"].value, int(job.layout.accelerators)
    if good.value < 0.5:
        apart = one_value(quantities["mtbf_hours"].value / 24, "days")
        yield (
            f"Failures take {1 - good.value:.0%} of the time: at the rates of today's systems one comes every {apart}. "
            "Fewer accelerators, or quicker restarts."
        )
    if count > MOST_MEASURED:
        yield f"No run on more than {MOST_MEASURED:,} accelerators is published, and this is of {count:,}."
    if not own_machine:
        yield from _hardware(job, count)
    if days > 365:
        yield f"{one_value(days, 'days')}: longer than a generation of hardware lasts, and than any published run."


def nearest(flops: float, machine: Accelerator, count: int) -> list[dict[str, Any]]:
    """The published runs nearest to it, where any is within a factor of a hundred."""
    return [
        {
            "run": row["run"], "date": row["date"], "compute": one_value(row["flops"], "FLOP"),
            "on": f"{int(row['accelerators']):,} x {row['accelerator']}" if row["accelerators"] else row["accelerator"],
            "hours": one_value(row["accelerator_hours"], "h"), "of peak, billed": f"{row['utilisation_billed']:.1%}",
            "source": row["source"].split(";")[0],
        }
        for row in runs_like(flops, machine, count)
        if abs(math.log10(row["flops"] / flops)) < 2
    ]  # fmt: skip


def _beyond_evidence(flops: float) -> Iterator[str]:
    if flops <= LARGEST_RUN:
        return
    largest = max(campaigns(), key=lambda one: one.flops)
    yield (
        f"{flops:.2g} FLOPs are {flops / largest.flops:,.0f} times the largest run that is known ({largest.model}, "
        f"{largest.flops:.3g}, an estimate): far beyond evidence, so intervals are too narrow."
    )


def _memory(job: Job, used: float, unfit: str) -> Iterator[str]:
    has = job.accelerator.memory
    if used > has:
        yield unfit
    elif used * INTERVAL[1] > has:
        most = show_bytes(used * INTERVAL[1])
        yield f"It may not fit: {show_bytes(used)} of {show_bytes(has)}, and one run in ten needs more than {most}."


def _hardware(job: Job, count: int) -> Iterator[str]:
    x = job.accelerator
    if not x.achievable:
        yield f"Nobody has published what products reach on {x.name}: 80 % of its datasheet is taken."
    links = {"scale_up", "scale_out"} if count > 1 else set()
    unread = sorted(({job.precision.peak, "memory", "bandwidth", "power"} | links) & x.unverified)
    if unread:
        yield f"No source was read for the {' and '.join(one.replace('_', '-') for one in unread)} of {x.name}."
