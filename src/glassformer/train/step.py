"""One training step: predict, compare, blame, adjust."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.errors import GlassformerError
from glassformer.train.optimizers import set_rates
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.task import Batch
from glassformer.train.weights import Weights

Loss = Callable[..., Tensor]
"""`loss(**arrays, num_targets=...)`: summed over targets, divided by `num_targets`."""


class Diverged(GlassformerError):
    """The loss or the gradient is not a finite number; no weight was changed."""


Fit = Callable[[Callable[[int], Tensor]], Tensor]
"""`fit(compute)`: what `compute` makes of the batch in so many micro-batches as fit into memory."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one step was."""

    loss: float
    """Mean nats per target, before the update."""
    grad_norm: float
    """Euclidean length of the whole gradient, before clipping."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def refuse_not_finite(found: Update) -> None:
    if not found.finite:
        raise Diverged(
            f"The loss is {found.loss} and the length of the gradient {found.grad_norm}; no weight was changed.",
            do="Lower optimizer.learning_rate, lengthen schedule.warmup, or look at the samples of this batch.",
        )


def update(
    loss_of: Loss,
    weights: Weights,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    *,
    rate: float,
    clip: float | None,
    accumulate: int = 1,
    device: torch.device,
    check: Callable[[Update], None] = refuse_not_finite,
    first: Callable[[Tensor], None] = lambda loss: None,
    ranks: Ranks = ALONE,
    fit: Fit | None = None,
) -> Update:
    """Change the weights once, to predict `batch` better. `rate` is the schedule's factor.

    Each of `ranks` takes its rows; the sums over them are those of one rank that takes all. `fit` may choose another
    number of micro-batches than `accumulate`.

    `check` sees loss and gradient, the same numbers on every rank, before any weight changes; what it raises (left
    out, Diverged where one of them is not finite) prevents the change. `first` sees the first micro-batch's loss while
    the gradients are those of it alone.
    """

    def predict_and_blame(parts: int) -> Tensor:
        loss = torch.zeros((), device=device)
        weights.zero_gradients()
        for number, arrays in enumerate(micro_batches(ranks.rows(batch), parts, device)):
            part = loss_of(**arrays)  # predict, compare
            part.backward()  # type: ignore[no-untyped-call] # blame: d loss / d weight, for every weight
            weights.collect()
            loss += part.detach()
            if number == 0:
                first(part.detach())
        return loss

    loss = predict_and_blame(accumulate) if fit is None else fit(predict_and_blame)
    ranks.sum_gradients(weights)
    seen = torch.stack([ranks.sum(loss), ranks.norm(weights.gradients)])
    found = Update(*ranks.agree(*seen.tolist()))
    check(found)
    if clip is not None and found.grad_norm > clip:
        torch._foreach_mul_(weights.gradients, clip / found.grad_norm)
    set_rates(optimizers, rate)
    for optimizer in optimizers:  # adjust
        optimizer.step()
    weights.refresh()
    return found


def micro_batches(batch: Batch, accumulate: int, device: torch.device) -> Iterator[dict[str, Tensor | None]]:
    """What the loss takes of each part of the batch, on the device; `num_targets` is that of the whole batch."""
    num_targets = torch.tensor(max(1, batch.num_targets), device=device)
    arrays = batch.arrays()
    size = len(batch.sample_ids) // accumulate
    for start in range(0, len(batch.sample_ids), size):
        part = {
            name: None if array is None else torch.from_numpy(array[start : start + size]).to(device)
            for name, array in arrays.items()
        }
        yield {**part, "num_targets": num_targets}
