"""How wrong a prediction is: cross-entropy, computed in chunks so that large logits never exist whole.

For a hidden vector h, the head's matrix W (V rows) and the right token y, with l = W h:

    lse  = log sum_v exp(l_v)
    loss = (1 - s)(lse - l_y) + s (lse - mean_v l_v) + z lse^2

s is label smoothing (Szegedy et al. 2016) and z the weight of z-loss, which keeps lse near 0 (Chowdhery et
al. 2022). Its gradient is as short, and is taken in the same pass:

    d loss / d l_v = softmax(l)_v (1 + 2 z lse) - (1 - s) [v = y] - s / V

A batch of 4,096 tokens over 50,304 words would hold 824 MB of float32 logits and as much again of gradient; a
chunk holds a few tens of MB.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.model.count import LOGITS_AT_ONCE

IGNORE = -100
"""A target that carries no loss."""


def linear_cross_entropy(
    hidden: Float[Tensor, "token width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " token"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    num_targets: Int[Tensor, ""] | int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Float[Tensor, ""]:
    """Mean loss in nats over targets that are not IGNORE (or their sum over `num_targets`).

    Up to `logits_at_once` the plain computation is as fast and holds little; more go in chunks.
    """
    count = (targets != IGNORE).sum().clamp(min=1) if num_targets is None else num_targets
    if hidden.shape[0] * weight.shape[0] <= logits_at_once:
        return cross_entropy(F.linear(hidden, weight, bias), targets, label_smoothing, z_loss) / count
    if torch.is_autocast_enabled(hidden.device.type):
        # the products below write into given memory, which autocast does not reach
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    size = max(1, logits_at_once // weight.shape[0])
    total: Tensor = _Chunked.apply(hidden, weight, bias, targets, label_smoothing, z_loss, size)  # type: ignore[no-untyped-call]
    return total / count


def cross_entropy(
    logits: Float[Tensor, "token vocab"],
    targets: Int[Tensor, " token"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Tensor, ""]:
    """Summed loss in nats, from logits that exist whole."""
    logits = logits.to(_wide(logits))
    loss = F.cross_entropy(
        logits, targets, ignore_index=IGNORE, label_smoothing=label_smoothing, reduction="sum"
    )
    if z_loss:
        loss = loss + z_loss * (logits.logsumexp(-1).square() * (targets != IGNORE)).sum()
    return loss


class _Chunked(torch.autograd.Function):
    """The summed loss and, in the same pass over the chunks, its gradients by hidden vectors and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        label_smoothing: float,
        z_loss: float,
        size: int,
    ) -> Tensor:
        total = torch.zeros((), dtype=_wide(weight), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight))
        grad_bias = torch.zeros(
            weight.shape[0] if bias is not None else 0, dtype=_wide(weight), device=hidden.device
        )
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            loss, grad = _loss_and_gradient(
                F.linear(hidden[rows], weight, bias), targets[rows], label_smoothing, z_loss
            )
            total += loss
            torch.mm(grad, weight, out=grad_hidden[rows])
            _add_product(grad_weight, grad, hidden[rows])
            if bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype))
        ctx.biased = bias is not None
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        bias = grad_bias * grads[0] if ctx.biased else None
        return grad_hidden * grads[0], grad_weight * grads[0], bias, None, None, None, None


@torch.library.custom_op(
    "glassformer::add_product",
    mutates_args=["total"],
    schema="(Tensor(a!) total, Tensor left, Tensor right) -> ()",
)
def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right. A compiler that sees inside makes every chunk's product first, and adds them last."""
    total += left.t() @ right


def _wide(x: Tensor) -> torch.dtype:
    """Sums are kept in float32, or in float64 where that is what the weights are."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    counted = (targets != IGNORE)[:, None]
    right = targets.clamp(min=0)[:, None]
    wide = logits.to(_wide(logits))
    lse = wide.logsumexp(-1, keepdim=True)
    loss = lse - (1 - label_smoothing) * wide.gather(1, right) + z_loss * lse.square()
    if label_smoothing:
        loss = loss - label_smoothing * wide.mean(-1, keepdim=True)
    grad = (wide - lse).exp_() * (1 + 2 * z_loss * lse) - label_smoothing / wide.shape[1]
    grad.scatter_add_(1, right, torch.full_like(lse, label_smoothing - 1))
    return (loss * counted).sum(), (grad * counted).to(logits.dtype)
