"""The best layout: every way to divide a step over N accelerators, with its time and memory, all at once.

    data x tensor x pipeline x context = N      tensor divides heads; pipeline <= layers; context, twice, the row, of
                                                which each rank has 256 tokens or more
    expert                                      divides the experts, and lies across data x context
    interleave x pipeline                       at most the layers
    micro-batch                                 divides a replica's rows
    sharding                                    stage 2 or 3 of ZeRO; 0 and 1 hold more and are never quicker
    recomputation                               none, the pattern, all

Those that cannot be, or do not fit, are counted by their first reason. The rest are ordered by seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError
from glassformer.plan.layout import CHOICES, Job, Layout, Number, Recompute
from glassformer.plan.memory import total_bytes
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.steptime import StepTime, step_time

Ints = NDArray[np.int64]

ROOM = 0.95
"""Share of an accelerator's memory that a layout may take."""
SHARDING, ALONE = np.array([2, 3]), np.array([0])
"""Stages of ZeRO, and where there is nothing to shard among."""
FEWEST_TOKENS, USUAL_TOKENS = 256, 4096
"""On a context rank: two chunks of a row, each a tile of an attention kernel (128); and in the usual layouts."""
GRAIN = 8192
"""Divisions that are computed at once, each with all ways to shard and recompute: arrays stay in the cache."""
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


@dataclass(frozen=True, slots=True)
class Search:
    """All layouts that fit, the fastest first."""

    job: Job
    rates: Rates
    found: Layout
    """Those that fit, in no order."""
    order: Ints
    """Their places, the fastest first."""
    seconds: NDArray[np.float64]
    """In that order, as what follows."""
    bytes: NDArray[np.float64]
    tried: int
    impossible: dict[str, int]
    """How many cannot be, by their first reason."""

    def layouts(self, begin: int = 0, end: int | None = None) -> Layout:
        """These of all, the fastest first."""
        places = self.order[begin:end]
        return replace(self.found, **{name: getattr(self.found, name)[places] for name in CHOICES})

    def at(self, place: int) -> Layout:
        """One of them."""
        return self.found.at(int(self.order[place]))

    @property
    def best(self) -> Layout:
        """The fastest that fits; UsageError where none does."""
        if not len(self.seconds):
            why = ", ".join(f"{n:,} {reason}" for reason, n in self.impossible.items())
            raise UsageError(
                f"No layout of {self.job.architecture.name} fits: {why}.",
                expected="More accelerators, more memory in each, a batch with more divisors, or smaller rows.",
            )
        return self.at(0)

    def rows(self, many: int = 10) -> list[dict[str, Any]]:
        """The first ones: each number of the layout, seconds, bytes, and how much slower than the best."""
        return [
            {
                **asdict(self.at(place)),
                "seconds": float(self.seconds[place]), "bytes": float(self.bytes[place]),
                "slower": float(self.seconds[place] / self.seconds[0] - 1),
            }
            for place in range(min(many, len(self.seconds)))
        ]  # fmt: skip

    def runners_up(self, many: int = 5) -> list[dict[str, Any]]:
        """The best of other divisions (`APART`), and where each loses its time."""
        winner, first = self._time(self.best), dict[tuple[int, ...], int]()
        for begin in range(0, len(self.seconds), GRAIN):
            some = self.layouts(begin, begin + GRAIN)
            columns = [getattr(some, name).tolist() for name in APART]
            for place, division in enumerate(zip(*columns, strict=True), begin):
                first.setdefault(division, place)
            if len(first) > many:
                break
        others = [(self.at(place), float(self.seconds[place])) for place in [*first.values()][1 : many + 1]]
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
    size: Callable[[Job], Number] = total_bytes,
    room: float = ROOM,
    usual: bool = False,
) -> Search:
    """Every layout of the job over so many accelerators; `job.layout` says only whether it is sequence-parallel.

    `usual`: tensor ranks within a domain, `USUAL_TOKENS` or more on a context rank, and of all but the pipeline's
    numbers only powers of two.
    """
    if accelerators < 1:
        raise UsageError(f"{accelerators} accelerators cannot train.", expected="At least 1.")
    every, impossible = divisions(job, accelerators, usual=usual)
    limit, shared = room * job.accelerator.memory, _shared(every)
    kept = [
        _fitting(job, {name: values[places] for name, values in every.items()}, stages, rates, size, limit)
        for stages, of in ((SHARDING, np.flatnonzero(shared)), (ALONE, np.flatnonzero(~shared)))
        for places in np.split(of, range(GRAIN, of.size, GRAIN))
        if places.size
    ]
    names = (*every, "sharding", "recompute", "seconds", "bytes")
    found = {name: np.concatenate([np.zeros(0, int), *(one[name] for one in kept)]) for name in names}
    seconds, held = found.pop("seconds"), found.pop("bytes")
    can_be = int(_ways(job, every).sum())
    if can_be > seconds.size:
        impossible["do not fit the memory"] = can_be - seconds.size
    heavier = 1e-13 * held / held.max(initial=1)  # of two that are as fast, the smaller comes first
    order = np.argsort(seconds * (1 + heavier))
    tried = seconds.size + sum(impossible.values())
    fit = replace(job.layout, **found)
    return Search(job, rates, fit, order, seconds[order], held[order], tried, impossible)


def _fitting(
    job: Job,
    divided: Mapping[str, Ints],
    stages: Ints,
    rates: Rates,
    size: Callable[[Job], Number],
    limit: float,
) -> dict[str, NDArray[Any]]:
    """Of these divisions, with each sharding and recomputation, those that fit: their numbers, seconds and bytes."""
    modes = _modes(job)
    # numpy is twice as quick where the longest axis is the last
    axes = {name: values[None, None] for name, values in divided.items()}
    axes |= {"sharding": stages[:, None, None], "recompute": modes[:, None]}
    jobs = replace(job, layout=replace(job.layout, **axes))
    shape = (stages.size, modes.size, divided["data"].size)
    seconds, held = (np.broadcast_to(one, shape) for one in (step_time(jobs, rates).total, size(jobs)))
    fits = held <= limit
    stage, mode, place = np.nonzero(fits)
    found = {name: values[place] for name, values in divided.items()}
    found |= {"sharding": stages[stage], "recompute": modes[mode]}
    return {**found, "seconds": seconds[fits], "bytes": held[fits]}


def divisions(job: Job, accelerators: int, *, usual: bool = False) -> tuple[dict[str, Ints], dict[str, int]]:
    """All that can be, each in all its `_ways` to shard and compute again; and how many layouts cannot, by reason."""
    a = job.architecture
    parts, only = _divisors(accelerators), _powers if usual else _up_to
    tensors = only(parts, min(a.heads, job.accelerator.domain) if usual else a.heads)
    contexts = only(parts, job.length // (USUAL_TOKENS if usual else FEWEST_TOKENS))
    three = np.stack([one.ravel() for one in np.meshgrid(tensors, _up_to(parts, a.all_layers), contexts)])
    tensor, pipeline, context = three[:, accelerators % three.prod(0) == 0]
    ranks = {"data": accelerators // (tensor * pipeline * context), "tensor": tensor, "pipeline": pipeline,
             "context": context}  # fmt: skip
    others = {"interleave": np.array([1, 2, 3, 4, 6, 8, 12]), "expert": only(_divisors(max(1, a.experts)), a.experts),
              "micro_batch": only(_divisors(job.batch), 64)}  # fmt: skip
    one = {name: values[:, None, None, None] for name, values in ranks.items()}
    one |= dict(zip(others, np.ix_(*others.values()), strict=True))
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
    real = (one["pipeline"] > 1) | (one["interleave"] == 1)  # the others are the same as one of these
    left = np.broadcast_to(real, np.broadcast_shapes(*(values.shape for values in one.values()))).copy()
    counted = {}
    for reason, hit in reasons.items():
        n = int(((left & hit).sum((1, 2, 3)) * _ways(job, ranks)).sum())
        left &= ~hit
        if n:
            counted[reason] = n
    return {name: np.broadcast_to(values, left.shape)[left] for name, values in one.items()}, counted


def _modes(job: Job) -> Ints:
    """Recomputation: where no pattern is kept, it is not computed again alone."""
    return np.array([Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL][:: 2 if job.fused_attention else 1])


def _ways(job: Job, divided: Mapping[str, Ints]) -> Ints:
    """How many layouts each division has: ways to shard times ways to compute again."""
    return np.where(_shared(divided), SHARDING.size, ALONE.size) * _modes(job).size


def _shared(divided: Mapping[str, Ints]) -> NDArray[np.bool_]:
    """Whether there are ranks to shard among."""
    shared: NDArray[np.bool_] = divided["data"] * divided["context"] > 1
    return shared


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


def _up_to(numbers: Ints, most: int) -> Ints:
    return numbers[numbers <= max(1, most)]


def _powers(numbers: Ints, most: int) -> Ints:
    """Those of two."""
    powers: Ints = numbers[numbers & (numbers - 1) == 0]
    return _up_to(powers, most)


def _divisors(number: int) -> Ints:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return np.array(sorted({*small, *(number // n for n in small)}))
