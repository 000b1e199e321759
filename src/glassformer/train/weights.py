"""What the optimiser changes, and what the model computes with.

In float32 and under autocast they are the same tensors. With `bf16` the model's own weights are bfloat16, half
the memory traffic and no casts, and float32 masters stand behind them: an update smaller than bfloat16 can
show is not lost, because it is the masters that add it up.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glassformer.model.count import Precision


class Weights:
    """The weights of one model, and their gradients."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self.working = dict(model.named_parameters())
        self.mixed = precision == "bf16"
        self.masters: dict[str, nn.Parameter] = self.working
        if self.mixed:
            self.masters = {
                name: nn.Parameter(w.detach().float(), w.requires_grad) for name, w in self.working.items()
            }
            for weight in self.working.values():
                weight.data = weight.data.bfloat16()
        else:
            for master in self.masters.values():
                master.grad = torch.zeros_like(master)

    @property
    def gradients(self) -> list[Tensor]:
        """The masters' gradients, in float32."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def zero_gradients(self) -> None:
        """Forget the last gradient. The masters' is let go of: the next forward pass has its memory."""
        if not self.mixed:
            torch._foreach_zero_(self.gradients)
            return
        for name, master in self.masters.items():
            master.grad = self.working[name].grad = None  # of a backward pass that broke off, too

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working weights' gradients, fresh from a backward pass, to the masters'."""
        if not self.mixed:
            return
        for name, weight in self.working.items():
            if weight.grad is None:
                continue
            master = self.masters[name]
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters to the working weights."""
        if self.mixed:
            torch._foreach_copy_(list(self.working.values()), list(self.masters.values()))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the masters, and with them the working weights."""
        for name, master in self.masters.items():
            master.copy_(tensors[name])
        self.refresh()

    @torch.no_grad()
    def settle(self) -> None:
        """At the end of training: the model takes the masters' values, in float32."""
        for name, weight in self.working.items():
            weight.data = self.masters[name].data
            weight.grad = None
