"""One rank of a rehearsal: model, weights and optimiser as a session sets them up, and one step of them.

A step with A micro-batches is taken with two, since the third is as the second: what the second sends counts A - 1
times, and the worst moment is already among these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glassformer.train.engine import Choice
from glassformer.train.optimizers import build_optimizers, state_tensors
from glassformer.train.parallel.exchanges import totals
from glassformer.train.parallel.ledger import Ledger
from glassformer.train.ranks import Named, Ranks
from glassformer.train.recipe import AnyRecipe
from glassformer.train.start import loss_of
from glassformer.train.step import update
from glassformer.train.task import Batch, Task

_MICRO_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """What is rehearsed, without its data."""

    config: Any
    """The model's."""
    build: Callable[[str | torch.device], nn.Module]
    arrays: Mapping[str, NDArray[Any] | None]
    """What the loss takes; of these only what a row looks like matters."""


class Stage:
    """Set up under `pretended`, as a session is on a real rank."""

    def __init__(
        self, recipe: AnyRecipe, subject: Subject, choice: Choice, ranks: Ranks, ledger: Ledger
    ) -> None:
        self.recipe, self.subject, self.choice, self.ranks, self.ledger = (
            recipe,
            subject,
            choice,
            ranks,
            ledger,
        )
        self.model = ranks.build(cast(Task, subject), torch.device("cpu"))
        self.weights = ranks.prepare(self.model, choice.precision)
        self.optimizers = build_optimizers(recipe.optimizer, self.weights.masters, ranks.orthogonal)
        self.rows, self.kept_bytes = 0, 0
        ledger.at("beginning")
        self.beginning_bytes = sum(ledger.at_peak.values())
        self._remember()
        self._sort()

    def step(self) -> list[dict[str, Any]]:
        """Take one step; what it sends, by kind and group."""
        train, ledger, starts = self.recipe.train, self.ledger, list[int]()
        compute, parts = loss_of(self.model, self.choice, self.recipe), min(train.accumulate, _MICRO_BATCHES)

        def watched(**given: Tensor | None) -> Tensor:
            arrays = {
                name: None if t is None else torch.zeros(t.shape, dtype=t.dtype) for name, t in given.items()
            }
            ledger.tag(arrays.values(), "batch")
            ledger.tag(self.weights.gradients, "gradients")
            ledger.at("forward")
            starts.append(len(ledger.exchanges))
            loss = compute(**arrays)
            self.kept_bytes, self.rows = (
                ledger.now["activations"],
                len(cast(Tensor, next(iter(arrays.values())))),
            )
            ledger.at("backward")
            return loss

        def summing() -> None:
            starts.append(len(ledger.exchanges))
            ledger.at("exchange")

        ledger.watch(self.model)
        ledger.begin()
        batch = _Blank.of(self.subject.arrays, train.batch // train.accumulate * parts)
        watching = _Watching(self.ranks, summing)
        update(
            watched, self.weights, self.optimizers, batch, rate=1.0, clip=train.clip, accumulate=parts,
            device=torch.device("cpu"), check=lambda found: ledger.at("update"), ranks=cast(Ranks, watching),
        )  # fmt: skip
        ledger.at("end")
        again = range(starts[-2], starts[-1]) if parts > 1 else range(0)
        times = train.accumulate - 1
        return totals((one, times if place in again else 1) for place, one in enumerate(ledger.exchanges))

    def held(self) -> dict[str, Named]:
        """What stays from step to step, by class and name; gradients as well, where they do."""
        masters = self.weights.masters
        gradients = {name: master.grad for name, master in masters.items() if master.grad is not None}
        return {
            "weights": masters,
            "gradients": gradients,
            "optimizer": state_tensors(self.optimizers, masters),
        }

    def _remember(self) -> None:
        """What an optimiser makes in its first step is there in all others."""
        lazy = [optimizer for optimizer in self.optimizers if not optimizer.state]
        without = [master for master in self.weights.masters.values() if master.grad is None]
        if lazy:
            for master in without:
                master.grad = torch.zeros_like(master)
            for optimizer in lazy:
                optimizer.step()
            for master in without:
                master.grad = None

    def _sort(self) -> None:
        """Say to the ledger what is what."""
        ledger, held = self.ledger, self.held()
        for kind in ("optimizer", "gradients", "weights"):
            ledger.tag(held[kind].values(), kind)
        ledger.tag([*self.model.parameters(), *self.model.buffers()], "weights")
        for weight in self.weights.working.values():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call] # torch leaves it untyped
                    lambda weight: ledger.tag([weight.grad], "gradients")
                )


class _Watching:
    """The ranks, and when they begin to sum gradients."""

    def __init__(self, ranks: Ranks, summing: Callable[[], None]) -> None:
        self._ranks, self._summing = ranks, summing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranks, name)

    def rows(self, batch: Batch) -> Batch:
        mine = self._ranks.rows(batch).arrays()
        return _Blank({name: None if a is None else np.zeros(a.shape, a.dtype) for name, a in mine.items()})

    def sum_gradients(self, weights: Any) -> None:
        self._summing()
        self._ranks.sum_gradients(weights)


class _Blank:
    """So many rows of zeros."""

    def __init__(self, arrays: Mapping[str, NDArray[Any] | None]) -> None:
        self._arrays = arrays
        rows = len(next(array for array in arrays.values() if array is not None))
        self.sample_ids, self.num_targets = np.broadcast_to(np.zeros(1, np.int64), rows), rows

    def arrays(self) -> Mapping[str, NDArray[Any] | None]:
        return self._arrays

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any] | None], rows: int) -> _Blank:
        """All ranks' rows, which take no memory: each is the first again."""
        whole = {
            name: None if array is None else np.broadcast_to(array[:1], (rows, *array.shape[1:]))
            for name, array in arrays.items()
        }
        return cls(whole)
