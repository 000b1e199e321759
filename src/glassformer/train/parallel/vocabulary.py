"""Embedding and head divided by tokens: rank r of a tensor group holds the vectors of the r-th part of the vocabulary.

An embedding is looked up where it is, and what the ranks found is added up (torch's `RowwiseParallel`). Logits are
never put together: each rank has those of its own tokens v, and the loss of `model/loss.py` needs three sums over all

    m = max_v l_v        s = sum_v exp(l_v - m)        lse = m + log s        and l_y, sum_v l_v

which are exchanged (Shoeybi et al. 2019); d loss / d l_v is then each rank's own, and the gradients of the hidden
vectors are added up once. As in `model/loss.py` all this goes in chunks, so that logits never exist whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from glassformer.model.count import LOGITS_AT_ONCE
from glassformer.model.loss import IGNORE
from glassformer.model.transformer import Transformer


def divide_vocabulary(model: Transformer, mesh: DeviceMesh) -> None:
    """Leave this rank its tokens. A head for classes, which are few, stays whole; so does a vocabulary so small that
    some rank would have no token."""
    if _each(model.config.vocab_size, mesh) * (mesh.size() - 1) >= model.config.vocab_size:
        return
    styles: dict[str, Any] = {"embed": RowwiseParallel(input_layouts=Replicate())}
    of_tokens = model.config.kind != "encoder" or model.config.head == "tokens"
    if of_tokens:
        styles["head"] = ColwiseParallel(output_layouts=Replicate())
        model.compare = _Compare(model, mesh)  # type: ignore[method-assign] # for this model
    parallelize_module(model, mesh, styles, src_data_rank=None)
    if of_tokens and model.config.tied:
        model.head.weight = model.embed.weight


def _each(size: int, mesh: DeviceMesh) -> int:
    """Tokens of each rank but the last, which has what is left."""
    return -(-size // mesh.size())


class _Compare:
    """`Transformer.compare` of a model whose head is divided."""

    def __init__(self, model: Transformer, mesh: DeviceMesh) -> None:
        self._head, self._size, self._group = model.head, model.config.vocab_size, mesh.get_group()
        self._first = mesh.get_local_rank() * _each(self._size, mesh)

    def __call__(
        self, x: Tensor, targets: Tensor, *, num_targets: Tensor | int | None = None, **options: float
    ) -> Tensor:
        head: Any = self._head
        hidden, weight = x.flatten(0, 1), head.weight.to_local()
        bias = None if head.bias is None else head.bias.to_local()
        targets = targets.flatten()
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = (
                hidden.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
            )
        count = (targets != IGNORE).sum().clamp(min=1) if num_targets is None else num_targets
        total: Tensor = _Divided.apply(hidden, weight, bias, targets, self, options)  # type: ignore[no-untyped-call]
        return total / count

    def loss_and_gradient(
        self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Of one chunk: its summed loss, the same on all ranks, and the gradient of this rank's logits."""
        counted, place = (targets != IGNORE)[:, None], (targets - self._first)[:, None]
        here = (place >= 0) & (place < logits.shape[1])
        place = place.clamp(0, max(0, logits.shape[1] - 1))
        wide = logits.float()
        top = wide.amax(-1, keepdim=True)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self._group)
        grad = (wide - top).exp_()
        sums = torch.cat([grad.sum(-1, True), wide.gather(1, place) * here, wide.sum(-1, True)], dim=1)
        dist.all_reduce(sums, group=self._group)
        exps, right, every = torch.split(sums, 1, dim=1)
        lse = top + exps.log()
        loss = lse - (1 - label_smoothing) * right + z_loss * lse.square()
        loss = loss - label_smoothing * every / self._size
        grad.mul_((1 + 2 * z_loss * lse) / exps).sub_(label_smoothing / self._size)
        grad.scatter_add_(1, place, here * (label_smoothing - 1.0))
        return (loss * counted).sum(), (grad * counted).to(logits.dtype)

    def add_up(self, parts: Tensor) -> Tensor:
        dist.all_reduce(parts, group=self._group)
        return parts


class _Divided(torch.autograd.Function):
    """The summed loss and, in the same pass over the chunks, its gradients by hidden vectors and the rank's weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, compare: _Compare,
        options: dict[str, float],
    ) -> Tensor:  # fmt: skip
        size = max(1, LOGITS_AT_ONCE // max(1, weight.shape[0]))
        total = torch.zeros((), device=hidden.device)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = torch.zeros(weight.shape[0], device=hidden.device)
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            loss, grad = compare.loss_and_gradient(
                F.linear(hidden[rows], weight, bias), targets[rows], **options
            )
            total += loss
            if any(ctx.needs_input_grad):
                torch.mm(grad, weight, out=grad_hidden[rows])
                grad_weight += grad.t() @ hidden[rows]
                grad_bias += grad.sum(0)
        if any(ctx.needs_input_grad):
            compare.add_up(grad_hidden)
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype))
        ctx.biased = bias is not None
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        bias = grad_bias * grads[0] if ctx.biased else None
        return grad_hidden * grads[0], grad_weight * grads[0], bias, None, None, None
