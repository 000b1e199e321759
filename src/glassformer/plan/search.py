"""The best layout: every way to divide a step over N accelerators, with its time and memory, all at once.

    data x tensor x pipeline x context = N      tensor divides heads; context, twice, the row; pipeline <= layers
    expert                                      divides the experts, and lies across data x context
    interleave x pipeline                       at most the layers
    micro-batch                                 divides a replica's rows
    sharding 0..3, recomputation none, the pattern, all

Those that cannot be, or do not fit, are counted by their first reason. The rest are ordered by seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError
from glassformer.plan.layout import Job, Layout, Number, Recompute
from glassformer.plan.memory import memory
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.steptime import StepTime, step_time

Ints = NDArray[np.int64]

ROOM = 0.95
"""Share of an accelerator's memory that a layout may take."""
GRAIN = 65536
"""Layouts that are computed at once: their arrays stay in the processor's cache."""
APART = ("tensor", "pipeline", "context", "expert")
"""What tells one division from another for a reader: not its ZeRO stage or micro-batch."""
WHERE = {
    "matmul": "matrix products", "pattern": "attention", "bandwidth": "norms, activations and launches",
    "recompute": "computing again", "head": "the head", "tensor": "tensor-parallel messages",
    "data": "exchanging gradients and weights", "pipeline": "sends between stages",
    "context": "messages of context ranks",
    "expert": "tokens' way to experts", "bubble": "waiting in the pipeline", "optimizer": "the update",
    "stalls": "stragglers and stalls",
}  # fmt: skip
"""The parts of a step in words."""


class Sized(Protocol):
    """What tells the memory of a layout."""

    @property
    def total(self) -> Number: ...


@dataclass(frozen=True, slots=True)
class Search:
    """All layouts that fit, the fastest first."""

    job: Job
    rates: Rates
    layouts: Layout
    seconds: NDArray[np.float64]
    bytes: NDArray[np.float64]
    tried: int
    impossible: dict[str, int]
    """How many cannot be, by their first reason."""

    @property
    def best(self) -> Layout:
        """The fastest that fits; UsageError where none does."""
        if not len(self.seconds):
            why = ", ".join(f"{n:,} {reason}" for reason, n in self.impossible.items())
            raise UsageError(
                f"No layout of {self.job.architecture.name} fits: {why}.",
                expected="More accelerators, more memory in each, a batch with more divisors, or smaller rows.",
            )
        return self.layouts.at(0)

    def rows(self, many: int = 10) -> list[dict[str, Any]]:
        """The first ones: each number of the layout, seconds, bytes, and how much slower than the best."""
        return [
            {
                **{field.name: getattr(self.layouts.at(place), field.name) for field in fields(Layout)},
                "seconds": float(self.seconds[place]), "bytes": float(self.bytes[place]),
                "slower": float(self.seconds[place] / self.seconds[0] - 1),
            }
            for place in range(min(many, len(self.seconds)))
        ]  # fmt: skip

    def runners_up(self, many: int = 5) -> list[dict[str, Any]]:
        """The best of other divisions (`APART`), and where each loses its time."""
        winner = self._time(self.best)
        columns = [
            np.broadcast_to(getattr(self.layouts, name), self.seconds.shape).tolist() for name in APART
        ]
        first = dict[tuple[int, ...], int]()
        for place, division in enumerate(zip(*columns, strict=True)):
            first.setdefault(division, place)
            if len(first) > many:
                break
        others = [(self.layouts.at(place), float(self.seconds[place])) for place in list(first.values())[1:]]
        return [{"layout": one, "seconds": took, **self._loss(one, winner)} for one, took in others]

    def explain(self, many: int = 3) -> list[str]:
        """The winner, and what the runners-up lose where, a sentence each."""
        first = f"{in_words(self.best)}: {self.seconds[0]:.4g} s a step."
        return [
            first,
            *(
                f"{in_words(one['layout'])}: {one['seconds'] / self.seconds[0] - 1:+.1%}, most of it on {one['where']}."
                for one in self.runners_up(many)
            ),
        ]

    def _time(self, layout: Layout) -> StepTime:
        return step_time(replace(self.job, layout=layout), self.rates)

    def _loss(self, layout: Layout, winner: StepTime) -> dict[str, Any]:
        other = self._time(layout)
        lost = {name: float(getattr(other, name)) - float(getattr(winner, name)) for name in WHERE}
        part = max(lost, key=lambda name: lost[name])
        return {"where": WHERE[part], "lost": lost}


def search(
    job: Job,
    accelerators: int,
    *,
    rates: Rates = RATES,
    size: Callable[[Job], Sized] = memory,
    room: float = ROOM,
) -> Search:
    """Every layout of the job over so many accelerators; `job.layout` says only whether it is sequence-parallel."""
    if accelerators < 1:
        raise UsageError(f"{accelerators} accelerators cannot train.", expected="At least 1.")
    every, impossible = candidates(job, accelerators)
    tried = every["data"].size + sum(impossible.values())
    limit = room * job.accelerator.memory
    kept: list[tuple[dict[str, Ints], NDArray[Any], NDArray[Any]]] = []
    too_big = 0
    for begin in range(0, every["data"].size, GRAIN):
        some = {name: values[begin : begin + GRAIN] for name, values in every.items()}
        held = np.broadcast_to(size(_with(job, some)).total, some["data"].shape)
        fits = held <= limit
        too_big += int(np.sum(~fits))
        some = {name: values[fits] for name, values in some.items()}
        if some["data"].size:
            spent = np.broadcast_to(step_time(_with(job, some), rates).total, some["data"].shape)
            kept.append((some, spent, held[fits]))
    if too_big:
        impossible["do not fit the memory"] = too_big
    names = list(every)
    chosen = {name: np.concatenate([np.zeros(0, int), *(one[0][name] for one in kept)]) for name in names}
    seconds = np.concatenate([np.zeros(0), *(one[1] for one in kept)])
    held = np.concatenate([np.zeros(0), *(one[2] for one in kept)])
    order = np.lexsort((held, seconds))  # of two that are as fast, the smaller
    found = _with(job, {name: values[order] for name, values in chosen.items()}).layout
    return Search(job, rates, found, seconds[order], held[order], tried, impossible)


def candidates(job: Job, accelerators: int) -> tuple[dict[str, Ints], dict[str, int]]:
    """All numbers of all layouts that can be, and how many others cannot, by reason."""
    a = job.architecture
    parts = _divisors(accelerators)
    stages = np.array([n for n in parts if n <= max(1, a.all_layers)])
    divisions = np.stack([one.ravel() for one in np.meshgrid(parts[parts <= max(1, a.heads)], stages, parts)])
    tensor, pipeline, context = divisions[:, accelerators % divisions.prod(0) == 0]
    micro = _divisors(job.batch)
    modes = [Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL][:: 2 if job.fused_attention else 1]
    grid = np.meshgrid(
        np.arange(tensor.size), np.array([1, 2, 3, 4, 6, 8, 12]), _divisors(a.experts) if a.experts else np.array([1]),
        micro[micro <= 64], np.arange(4), np.array(modes), indexing="ij",
    )  # fmt: skip
    place, *others = (one.ravel() for one in grid)
    names = ("interleave", "expert", "micro_batch", "sharding", "recompute")
    one = {"tensor": tensor[place], "pipeline": pipeline[place], "context": context[place]}
    one |= dict(zip(names, others, strict=True))
    one["data"] = accelerators // (one["tensor"] * one["pipeline"] * one["context"])
    # the others are the same as one of these
    real = (one["pipeline"] > 1) | (one["interleave"] == 1)
    real &= (one["sharding"] == 0) | (one["data"] * one["context"] > 1)
    one = {name: values[real] for name, values in one.items()}
    reasons = {
        "have more replicas than rows": one["data"] > job.batch,
        "do not divide the batch": job.batch % (one["data"] * one["micro_batch"]) != 0,
        "do not divide the heads": a.heads % one["tensor"] != 0,
        "do not divide the row": job.length % np.where(one["context"] > 1, 2 * one["context"], 1) != 0,
        "have more parts than layers": one["pipeline"] * one["interleave"] > max(1, a.all_layers),
        "have fewer micro-batches than stages": (one["interleave"] > 1)
        & (job.batch < one["data"] * one["micro_batch"] * one["pipeline"]),
        "do not divide the ranks among experts": (one["data"] * one["context"] * one["tensor"])
        % one["expert"]
        != 0,
    }
    left = np.ones(one["data"].size, bool)
    counted = {}
    for reason, hit in reasons.items():
        n = int(np.sum(left & hit))
        left &= ~hit
        if n:
            counted[reason] = n
    return {name: values[left] for name, values in one.items()}, counted


def in_words(layout: Layout) -> str:
    """A layout in a line."""
    named = {
        "data": "data", "tensor": "tensor", "pipeline": "pipeline", "interleave": "parts a stage", "context": "context",
        "expert": "expert",
    }  # fmt: skip
    said = [f"{getattr(layout, key)} {name}" for key, name in named.items() if getattr(layout, key) > 1]
    mode = Recompute(int(layout.recompute)).name.lower()
    said += [f"ZeRO-{layout.sharding}"] if layout.sharding else []
    return ", ".join([*said, f"micro-batch {layout.micro_batch}", f"recompute {mode}"])


def _with(job: Job, numbers: dict[str, Ints]) -> Job:
    return replace(job, layout=Layout(**numbers, sequence_parallel=job.layout.sequence_parallel))


def _divisors(number: int) -> Ints:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return np.array(sorted({*small, *(number // n for n in small)}))
