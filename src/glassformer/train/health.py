"""Warnings by name before anything has gone wrong: dead tensors, underflow, exploding logits. Each is given once.

    dead        every gradient of a tensor is exactly 0, at two looks in a row
    underflow   the root mean square of a tensor's gradient is above 0 and below what the optimiser can use, at two
                looks in a row: with Adam below `epsilon`, which then decides the step instead of the gradient; with the
                others below 1e-19, whose square is 0 in float32
    logits      a score that a softmax is taken of, of tokens or of attention, is above 256 from 0: neighbouring
                bfloat16 numbers of that size differ by 2, so that such a softmax is noise (in float32 it is one-hot)

A look comes every `faults.look_every` steps: the norms of all gradients, and one pass of the batch's first row on the
explicit path, without gradients and without dropout. Both only read. Two looks, because a network may start with
zeros where a gradient comes through only after its first updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glassformer.look.step_batch import Lessons
from glassformer.train.config import OptimizerConfig
from glassformer.train.culprit import aside
from glassformer.train.engine import Choice
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.step import micro_batches
from glassformer.train.task import Batch
from glassformer.train.weights import Weights

MOST_LOGIT = 256.0
_SQUARE_IS_ZERO = 1e-19
_ADAM = ("adam", "adamw", "muon")


class Health:
    """What has been seen so far, so that nothing is said twice."""

    def __init__(self, optimizer: OptimizerConfig) -> None:
        self.least = optimizer.epsilon if optimizer.kind in _ADAM else _SQUARE_IS_ZERO
        self._suspects: set[tuple[str, str]] = set()
        self._told: set[tuple[str, str]] = set()

    def gradients(self, weights: Weights, ranks: Ranks = ALONE) -> Iterator[str]:
        """Of the gradient that is there, before the update."""
        learned = {
            name: w.grad for name, w in weights.masters.items() if w.requires_grad and w.grad is not None
        }
        if not learned:
            return
        norms = ranks.norms(list(learned.values())).tolist()
        suspects: dict[tuple[str, str], str] = {}
        for (name, grad), norm in zip(learned.items(), norms, strict=True):
            mean_square = norm / grad.numel() ** 0.5
            if norm == 0:
                suspects["dead", name] = f"{name} does not learn: its whole gradient is 0"
            elif mean_square < self.least:
                suspects["underflow", name] = (
                    f"{name} hardly learns: the root mean square of its gradient is {mean_square:.1e}, below "
                    f"{self.least:.0e}, what the optimiser can use"
                )
        yield from self._new({key: text for key, text in suspects.items() if key in self._suspects})
        self._suspects = set(suspects)

    def logits(self, model: nn.Module, batch: Batch, choice: Choice, ranks: Ranks = ALONE) -> Iterator[str]:
        """Of one pass of the batch's first row."""
        largest = _Largest()
        arrays = next(micro_batches(batch, len(batch.sample_ids), torch.device(choice.device)))
        with aside(model, choice), torch.no_grad():
            given = {name: value for name, value in arrays.items() if value is not None}
            Lessons(given).each_loss(model, largest)  # type: ignore[arg-type] # every model that learns is one of these
        ranks.rest()
        if not largest.seen:
            return
        values = torch.stack(list(largest.seen.values())).tolist()
        yield from self._new(
            {
                (
                    "logits",
                    name,
                ): f"{name} has a number of {value:.0f}; beyond {MOST_LOGIT:.0f} a softmax is noise in "
                "bfloat16 (a lower rate, model.qk_norm or train.z_loss keep them small)"
                for name, value in zip(largest.seen, values, strict=True)
                if value > MOST_LOGIT
            }
        )

    def _new(self, found: Mapping[tuple[str, str], str]) -> Iterator[str]:
        for key, text in found.items():
            if key not in self._told:
                self._told.add(key)
                yield text


class _Largest:
    """A `see` that keeps the largest number of everything that a softmax is taken of."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name.endswith((".scaled", "logits"))

    def __call__(self, name: str, y: Any, /) -> Any:
        if self.wants(name):
            self.seen[name] = y.detach().abs().max().float()
        return y
