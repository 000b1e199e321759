"""The last good state, kept in memory: weights, optimiser and counts as they were before one update.

It is taken after the check of a step has passed and before its update, so that these very weights have just given a
finite, usual loss and gradient; and only if every number in it is finite, the optimiser's too. There is one; it costs
as much memory as weights and optimiser (AdamW: 12 bytes a parameter, on the host), and one copy of that every
`faults.remember_every` steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glassformer.train.optimizers import forget, state_tensors
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.weights import Weights

Optimizers = Sequence[torch.optim.Optimizer]


class Memory:
    """One state to go back to."""

    def __init__(self) -> None:
        self.step: int | None = None
        """Updates that had been done; None while nothing is kept."""
        self.state: dict[str, Any] = {}
        self._model: dict[str, Tensor] = {}
        self._optimizer: dict[str, Tensor] = {}

    def keep(
        self,
        step: int,
        weights: Weights,
        optimizers: Optimizers,
        state: Mapping[str, Any],
        *,
        ranks: Ranks = ALONE,
    ) -> bool:
        """Take a copy in place of the older one; False, and the older one stays, where a number is not finite, on
        whichever of `ranks`: all of them go back to the same step."""
        model = ranks.mine(weights.masters)
        remembered = ranks.mine(state_tensors(optimizers, weights.masters))
        if ranks.anywhere(not all_finite([*model.values(), *remembered.values()])):
            return False
        _copy(model, self._model)
        _copy(remembered, self._optimizer)
        self.step, self.state = step, dict(state)
        return True

    @torch.no_grad()
    def restore(self, weights: Weights, optimizers: Optimizers, *, ranks: Ranks = ALONE) -> None:
        """Weights and optimiser are again what they were, each number in its own place."""
        for name, part in ranks.mine(weights.masters).items():
            part.copy_(self._model[name])
        weights.refresh()
        forget(optimizers, weights.masters, but=self._optimizer)
        for name, part in ranks.mine(state_tensors(optimizers, weights.masters)).items():
            part.copy_(self._optimizer[name])


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every number in every tensor is finite, in one pass: a largest entry that is finite says so."""
    largest = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not largest:
        return True
    return bool(
        torch.stack([norm.float() for norm in torch._foreach_norm(largest, torch.inf)]).isfinite().all()
    )


def not_finite(tensors: Mapping[str, Tensor | None]) -> list[dict[str, Any]]:
    """The tensors with numbers that are not finite: how many of how many, and where the first one is."""
    found = []
    for name, tensor in tensors.items():
        if tensor is None or not tensor.is_floating_point() or all_finite([tensor]):
            continue
        bad = (~tensor.detach().isfinite()).nonzero()
        found.append({"tensor": name, "count": len(bad), "of": tensor.numel(), "first": bad[0].tolist()})
    return found


def _copy(source: Mapping[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Into the memory that is there already, where it fits."""
    for name in kept.keys() - source.keys():
        del kept[name]
    for name, value in source.items():
        old = kept.get(name)
        if old is not None and old.shape == value.shape and old.dtype == value.dtype:
            old.copy_(value.detach())
        else:
            kept[name] = value.detach().to("cpu", copy=True)
