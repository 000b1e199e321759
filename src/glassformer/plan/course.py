"""The course of a planned run: how often it saves, what interrupts it, and when it ends.

Puts together what `failures`, `goodput` and `simulate` know, with what was published where the plan says nothing:
a checkpoint's size by the model, its write by the storage that others had, a restart by its parts, evaluation as of
BLOOM (0.7 % of the time), stops that were planned as of Llama 3 (47 to 419 that were not), and for models of 100
billion parameters and more rewinds after spikes of the loss (PaLM: about 20 in 64 days; DeepSeek-V3: none in 54). Slow
accelerators are in the time of a step already.
"""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.plan.failures import Rate, Recovery, planned_share, rate_of_next, recovery
from glassformer.plan.goodput import (
    FIRST_ORDER_HOLDS,
    Saving,
    best_interval,
    checkpoint_bytes,
    lost_share,
    saving_asynchronous,
    saving_synchronous,
    write_seconds,
)
from glassformer.plan.precision import Precision
from glassformer.plan.simulate import Course, Ends, draw

EVALUATION = 0.007
REWINDS_PER_DAY = (20 + 0) / (64 + 54)
"""PaLM and DeepSeek-V3 together."""
REWIND_STEPS = 100
"""PaLM's."""
RESTART_SPREAD = 0.35
"""A restart is known to a factor of 1.6 (80 %): finding a failure alone takes 30 s to 10 min."""
REWINDS_FROM = 1e11
"""Parameters: of smaller models nobody reports them as a cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """A run with its failures."""

    course: Course
    rate: Rate
    recovery: Recovery
    nodes: int
    checkpoint_bytes: float
    ends: Ends
    """Of some hundred runs like it."""

    @property
    def mtbf_hours(self) -> float:
        """Between interruptions, at the median rate."""
        return self.course.mtbf / 3600

    @property
    def lost(self) -> float:
        """Share of the time, to first order, by failures and saves."""
        course = self.course
        return float(lost_share(course.interval, course.saving, course.mtbf, course.restart))

    @property
    def first_order_holds(self) -> bool:
        """Whether so little is lost that the closed form may be quoted; beyond, only the drawn runs are."""
        return self.lost <= FIRST_ORDER_HOLDS


def outlook(
    work: float,
    *,
    parameters: float,
    accelerators: int,
    per_node: int,
    precision: Precision,
    step_seconds: float = 0.0,
    asynchronous: bool = True,
    saving: Saving | None = None,
    interval: float | None = None,
    storage: float | None = None,
    rate: Rate | None = None,
    evaluation: float = EVALUATION,
    runs: int = 400,
    seed: int = 0,
) -> Outlook:
    """A run of `work` seconds of steps. `saving`, `interval` (seconds) and `storage` (bytes a second), where known."""
    nodes = -(-accelerators // per_node)
    size = checkpoint_bytes(parameters, precision)
    if saving is None and asynchronous:
        saving = saving_asynchronous(size, nodes, accelerators, storage=storage)
    elif saving is None:
        saving = saving_synchronous(size, nodes, storage=storage)
    back = recovery(accelerators, restore=write_seconds(size, nodes, storage=storage).value)
    known = rate or rate_of_next()
    between = 3600 * known.mtbf(nodes)
    chosen = interval or min(best_interval(saving, between, back.seconds), work)
    large = parameters >= REWINDS_FROM
    course = Course(
        work, chosen, saving, back.seconds, RESTART_SPREAD, mtbf=between, evaluation=evaluation,
        rewinds_per_day=REWINDS_PER_DAY if large else 0.0, rewind=REWIND_STEPS * step_seconds,
        planned_per_day=planned_share() * 86_400 / between, planned_stop=back.seconds,
    )  # fmt: skip
    ends = draw(course, rate=known, nodes=nodes, runs=runs, seed=seed)
    return Outlook(course, known, back, nodes, size, ends)
