"""Who was wrong, from what every rank answered. No arithmetic of the model's, no exchange, no torch.

An answer is a loss and a gradient, as digests (train/digests.py), which are compared to the bit, and as lengths, which
are compared within a share `near` of the whole gradient's where bits cannot be the same. A rank reports up to three of
one micro-batch: the step's own, the replay, and one more after these or the ranks' differed.

    all third answers are the same   whoever answered otherwise before erred once
    they are not                     someone errs always; the fewer do, if there are fewer
    no side has more                 each answer's distance from the one in float64 decides (train/known.py): an
                                     honest rank's is rounding, and of one size on all; 4 times as much is an error
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TIMES = 4.0
"""Two kinds of machine round a little differently, by factors below 2; an error is not of rounding's size."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Loss and gradient of one micro-batch, in a few numbers."""

    loss: float
    digests: Mapping[str, int]
    """Of the loss, named `loss`, and of each weight's gradient."""
    lengths: Mapping[str, float]
    """Of each weight's gradient."""
    word: int
    """The digest of all."""

    def same(self, other: Answer, near: float | None) -> bool:
        """To the bit; with `near`, within that share of the loss and of the whole gradient."""
        if near is None or self.word == other.word:
            return self.word == other.word
        whole = math.hypot(*other.lengths.values())
        pairs = [(self.lengths[name], length, whole) for name, length in other.lengths.items()]
        return all(
            abs(a - b) <= near * abs(scale) or not (math.isfinite(a) or math.isfinite(b))
            for a, b, scale in [*pairs, (self.loss, other.loss, other.loss)]
        )

    def differing(self, other: Answer) -> list[str]:
        """What is not the same to the bit, in the order of the weights."""
        return [name for name, digest in self.digests.items() if digest != other.digests.get(name)]


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank computed."""

    host: str
    first: Answer | None
    """The step's own; None where another rank's rows were replayed."""
    second: Answer
    """The replay."""
    third: Answer
    """After something had differed."""
    failed: Sequence[str] = ()
    """The known answers that were wrong (train/known.py), ..."""
    failed_again: Sequence[str] = ()
    """... and are so once more."""
    apart: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Weight -> how the first answer's gradient differs from the third's: count, of, largest, first."""

    def rows(self, rank: int, truth: Answer) -> Iterator[dict[str, Any]]:
        """The tensors this rank was wrong about, and by how much."""
        wrong = next((a for a in (self.first, self.second, self.third) if a and a.word != truth.word), None)
        for name in [] if wrong is None else wrong.differing(truth):
            if name == "loss":
                yield {"tensor": "loss", "rank": rank, "lengths": [wrong.loss, truth.loss]}  # type: ignore[union-attr] # there are names
                continue
            lengths = [wrong.lengths[name], truth.lengths[name]]  # type: ignore[union-attr] # as above
            exact = self.apart.get(name, {}) if wrong is self.first else {}
            yield {"tensor": f"gradient of {name}", "rank": rank, "lengths": lengths, **exact}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which ranks erred; none where that cannot be told."""

    erring: Sequence[int]
    persistent: bool


def judge(
    heard: Sequence[Report], *, near_own: float | None, near_others: float | None, sharded: bool
) -> Verdict:
    """Of the reports of all ranks. `sharded`: each answered for rows of its own."""
    always = [rank for rank, report in enumerate(heard) if report.failed and report.failed_again]
    if always:
        return Verdict(always, persistent=True)
    once = {rank for rank, report in enumerate(heard) if report.failed}
    if sharded or len(heard) == 1:
        return _each_alone(heard, once, near_own)
    sides = _sides([report.third for report in heard], near_others)
    if len(sides) > 1:
        most = max(sides, key=len)
        fewer = [rank for rank in range(len(heard)) if rank not in most]
        return Verdict(fewer if 2 * len(most) > len(heard) else [], persistent=True)
    truth = heard[0].third
    for rank, report in enumerate(heard):
        own_differs = report.first is not None and not report.first.same(report.third, near_own)
        if own_differs or not report.second.same(truth, near_others):
            once.add(rank)
    return Verdict(sorted(once), persistent=False)


def suspects(distances: Sequence[float]) -> list[int]:
    """The ranks whose answer is much farther from the one in float64 than is usual among them."""
    usual = sorted(distances)[(len(distances) - 1) // 2]
    return [rank for rank, distance in enumerate(distances) if distance > _TIMES * usual]


def _each_alone(heard: Sequence[Report], once: set[int], near: float | None) -> Verdict:
    """Every rank against itself. Where rows are each rank's own, a wrong loss is its own as well."""
    never_twice = []
    for rank, report in enumerate(heard):
        first, second, third = report.first, report.second, report.third
        if first is None or (first.same(second, near) and second.same(third, near)):
            continue
        if not (third.same(first, near) or third.same(second, near)):
            never_twice.append(rank)
        if len(heard) == 1 or len({answer.digests["loss"] for answer in (first, second, third)}) > 1:
            once.add(rank)
    return Verdict(sorted(once), persistent=bool(never_twice))


def _sides(answers: Sequence[Answer], near: float | None) -> list[list[int]]:
    """The ranks, those with the same answer together."""
    sides: list[list[int]] = []
    for rank, answer in enumerate(answers):
        side = next((side for side in sides if answer.same(answers[side[0]], near)), None)
        if side is None:
            sides.append([rank])
        else:
            side.append(rank)
    return sides
