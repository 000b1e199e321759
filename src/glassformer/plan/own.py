"""One's own measured rows: what the model missed on them carries over to a job, the more the more alike they are.

A Gaussian process over log (measured / forecast): of two jobs at distance r, misses vary together by

    PACE^2 + LIKENESS^2 exp(-r / REACH)        and each row alone by NOISE^2

so a few rows move every forecast of their cluster a little (its pace) and those of similar jobs nearly all the way.
The four numbers are those that served best on the measured rows, each group left out in turn.

The distance is Euclidean in these features: a factor of ten in active parameters or in the tokens of a row is 1, in
accelerators 0.5; experts 1.5, each step of precision 1, an encoder-decoder 1; a doubling of the micro-batch, the tensor
or the pipeline ranks 0.3; recomputation and ZeRO-3 0.5; and 0.7 beside, on another accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.layout import Job, Number, Recompute

PACE, LIKENESS, REACH, NOISE = 0.08, 0.3, 1.2, 0.04
OTHER_ACCELERATOR = 0.7


@dataclass(frozen=True, slots=True)
class Own:
    """One measured row of one's own."""

    place: tuple[float, ...]
    accelerator: str
    miss: float
    """log (measured / forecast)."""


def kind(job: Job, accelerators: Number) -> tuple[Number, ...]:
    """Where a job on so many accelerators lies among others, whatever its layout."""
    a = job.architecture
    low = {"fp8": 1.0, "fp4": 2.0}.get(job.precision.peak, 0.0)
    return (
        float(np.log10(max(1, a.active_parameters))), 0.5 * np.log10(np.maximum(1, accelerators)),
        float(np.log10(max(1, job.length))), 1.5 * (a.experts > 0), low, 1.0 * (a.encoder_layers > 0),
    )  # fmt: skip


def features(job: Job) -> tuple[Number, ...]:
    """The same with its layout; arrays where the layout's numbers are."""
    lay = job.layout
    full = np.asarray(lay.recompute) == Recompute.FULL
    return (
        *kind(job, lay.accelerators),
        0.3 * np.log2(np.maximum(1, lay.micro_batch)), 0.3 * np.log2(np.maximum(1, lay.tensor)),
        0.3 * np.log2(np.maximum(1, lay.pipeline)), 0.5 * full, 0.5 * (np.asarray(lay.sharding) >= 3),
    )  # fmt: skip


def apart(job: Job, place: Sequence[Number], accelerator: str) -> Number:
    """Distance of a job to such a place."""
    square = sum((np.asarray(one) - other) ** 2 for one, other in zip(features(job), place, strict=True))
    return np.sqrt(square) + OTHER_ACCELERATOR * (job.accelerator.name != accelerator)


def carried(job: Job, rows: Sequence[Own]) -> tuple[Number, Number]:
    """The miss to expect for a job, of log time, and the share of the uncertainty that is left."""
    if not rows:
        return 0.0, 1.0
    between = np.array([[_together(_gap(one, other)) for other in rows] for one in rows])
    inverse = np.linalg.inv(between + NOISE**2 * np.eye(len(rows)))
    to_job = [_together(apart(job, row.place, row.accelerator)) for row in rows]
    weights = [sum(inverse[i, k] * to_job[k] for k in range(len(rows))) for i in range(len(rows))]
    expected = sum(weight * row.miss for weight, row in zip(weights, rows, strict=True))
    known = sum(weight * near for weight, near in zip(weights, to_job, strict=True))
    whole = PACE**2 + LIKENESS**2 + NOISE**2
    return expected, np.sqrt(np.maximum(whole - known, NOISE**2) / whole)


def _together(distance: Number) -> NDArray[np.float64]:
    return np.asarray(PACE**2 + LIKENESS**2 * np.exp(-np.asarray(distance) / REACH))


def _gap(one: Own, other: Own) -> float:
    apart = float(np.linalg.norm(np.array(one.place) - np.array(other.place)))
    return apart + OTHER_ACCELERATOR * (one.accelerator != other.accelerator)
