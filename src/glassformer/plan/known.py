"""What the rates miss on the rows that ship: jobs of the same kind are forecast as those rows came out.

A Gaussian process (Rasmussen and Williams 2006, chapter 2) over log (measured / forecast), by what a job is, whatever
its layout (`own.kind`). At distance r (`own`'s, with as much for another accelerator) the misses of two rows vary
together by

    LIKENESS^2 exp(-r / REACH) + GROUP^2 in one group + NOISE^2 of one row

and only the first term carries over to a job. What ships is that matrix's inverse times the misses, so a forecast is
one sum. The four numbers served best with each group of rows left out, among those that do no harm with each source
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.layout import Job, Number
from glassformer.plan.own import OTHER_ACCELERATOR, kind

LIKENESS, REACH, GROUP, NOISE = 0.1, 0.5, 0.06, 0.08


@dataclass(frozen=True, slots=True)
class Known:
    """The kinds of jobs that were measured, and how much each counts."""

    kinds: Sequence[Sequence[float]] = ()
    accelerators: Sequence[str] = ()
    weights: Sequence[float] = ()

    def miss(self, job: Job) -> Number:
        """log (measured / forecast) to expect of a job; of each layout where they are many."""
        if not self.weights:
            return 0.0
        counts, which = np.unique(job.layout.accelerators, return_inverse=True)
        here = np.array([kind(job, count) for count in counts], float)
        alike = _alike(here, [job.accelerator.name] * len(here), np.array(self.kinds), self.accelerators)
        found: NDArray[np.float64] = (alike @ self.weights)[which]
        return found.reshape(np.shape(job.layout.accelerators))


NOTHING = Known()
"""No row was measured."""


def learn(jobs: Sequence[Job], groups: Sequence[str], missed: Sequence[float]) -> Known:
    """From log (measured / forecast) of the jobs of these groups."""
    kinds = np.array([kind(job, job.layout.accelerators) for job in jobs], float).round(2)
    names = [job.accelerator.name for job in jobs]
    alike = _alike(kinds, names, kinds, names)
    together = GROUP**2 * (np.array(groups)[:, None] == np.array(groups))
    each = np.linalg.solve(alike + together + NOISE**2 * np.eye(len(jobs)), np.array(missed, float))
    weights: dict[tuple[tuple[float, ...], str], float] = {}
    for numbers, name, weight in zip(kinds.tolist(), names, each, strict=True):
        place = (tuple(numbers), name)
        weights[place] = weights.get(place, 0.0) + float(weight)
    kept = sorted(weights)
    return Known(
        tuple(numbers for numbers, _ in kept), tuple(name for _, name in kept),
        tuple(round(weights[place], 4) for place in kept),
    )  # fmt: skip


def _alike(
    kinds: NDArray[Any], names: Sequence[str], others: NDArray[Any], other_names: Sequence[str]
) -> NDArray[np.float64]:
    """(kind, other): how misses vary together."""
    distance = np.sqrt(((kinds[:, None] - others) ** 2).sum(-1))
    distance += OTHER_ACCELERATOR * (np.array(names)[:, None] != np.array(other_names))
    alike: NDArray[np.float64] = LIKENESS**2 * np.exp(-distance / REACH)
    return alike
