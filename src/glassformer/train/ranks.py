"""What a session asks of the ranks, and the answers of one that is alone. `train/parallel/` has those of many.

Every method that takes part in an exchange is called by all ranks, in the same order. So whatever decides which one
comes next (a fault, a signal, the end) is itself agreed on: `agree`, `anywhere`, `decide`, `step_taken`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glassformer.model.count import Precision
from glassformer.train.task import Batch
from glassformer.train.weights import Weights

T = TypeVar("T")
Named = Mapping[str, Tensor]


class Ranks:
    """One rank, alone: nothing is divided, and every number stays what it is."""

    rank, count, sharded = 0, 1, False

    @property
    def is_first(self) -> bool:
        """Rank 0 alone writes, shows and reports."""
        return self.rank == 0

    def decide(self, make: Callable[[], T]) -> T:
        """What rank 0 makes of it, on all ranks."""
        return make()

    def in_turn(self, make: Callable[[], T]) -> T:
        """Rank 0's first, so that the others find in the cache what it wrote there."""
        return make()

    def rows(self, batch: Batch) -> Batch:
        """This rank's part of a batch."""
        return batch

    def deal(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
        """Whole batches in turn, with 0 for one that does not count: all ranks take as many."""
        return ((batch, 1) for batch in batches)

    def prepare(self, model: nn.Module, precision: Precision) -> Weights:
        """The model's weights as this rank holds them."""
        return Weights(model, precision)

    def sum_gradients(self, weights: Weights) -> None:
        """The gradient of the batch from that of each rank's rows."""

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The length of the whole gradient."""
        length: Tensor = self.norms(gradients).norm()
        return length

    def norms(self, gradients: list[Tensor]) -> Tensor:
        """The length of each tensor's gradient: (gradient,)."""
        return torch.stack(torch._foreach_norm(gradients))

    def sum(self, value: Tensor) -> Tensor:
        return value

    def total(self, *numbers: float) -> Sequence[float]:
        """Each number summed over the ranks."""
        return numbers

    def agree(self, *numbers: float) -> Sequence[float]:
        """Rank 0's numbers: what is decided by them is decided alike, whatever another machine rounds to."""
        return numbers

    def hear(self, word: T) -> list[T]:
        """What each rank says, by rank."""
        return [word]

    def anywhere(self, here: bool) -> bool:
        """Whether something is so on any rank."""
        return any(self.hear(here))

    def mine(self, tensors: Named) -> Named:
        """This rank's part of each tensor, in the tensor's own memory."""
        return tensors

    def step_taken(self, sample_ids: NDArray[Any], reason: str | None) -> tuple[NDArray[Any], str | None]:
        """(the samples that all ranks learned from, in order; why to stop, if any rank has been asked to)."""
        return sample_ids, reason

    def gather(self, tensors: Named) -> dict[str, Tensor]:
        """The whole tensors on rank 0, on the CPU; nothing on the others."""
        return {name: value.detach().cpu() for name, value in tensors.items()}

    def spread(self, tensors: Named, like: Named) -> Named:
        """Rank 0's tensors to all, each divided as its weight in `like` is."""
        return tensors

    def rest(self) -> None:
        """After a pass that no backward pass follows: what was gathered for it is let go of."""

    def whole(self, model: nn.Module, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        """The model with all its weights, for rank 0 to look at."""
        return model

    def wait(self) -> None:
        """Until all are here."""


ALONE = Ranks()
