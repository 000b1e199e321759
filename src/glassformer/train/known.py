"""Questions whose answers are known: what tells which of two ranks is wrong when they answer differently.

    product    C = A B of whole numbers so small that every sum is exact in float32, in any order of adding. Then
               C x = A (B x) for every x to the last digit, so one wrong entry anywhere in C shows (Freivalds 1979;
               Huang and Abraham 1984): the right side is computed in float64, from vectors.
    functions  exp, softmax, tanh and 1 / sqrt of float32 against the same in float64, within 1e-5

and the run's own question: loss and gradient of one micro-batch, eager, in float64, with explicit attention. The
distance of a rank's answer from that is the rounding of its float32, or more:

    distance = max( |loss - loss64| / |loss64|,   |g - g64| / |g64| )           g: the gradient of all weights

A rank that is wrong may be wrong about these too. It is then wrong in another way than before, so that its answer and
its own reference do not agree: a distance is large in any case, and it is the rank's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from glassformer.model.attention import Kernel
from glassformer.model.transformer import Transformer
from glassformer.train.engine import Choice, prepare_loss

_ROWS, _INNER = 128, 256
_CLOSE = 1e-5


def _softmax(x: Tensor) -> Tensor:
    return x.view(16, -1).softmax(-1)


def _inverse_root(x: Tensor) -> Tensor:
    return (x.abs() + 1).rsqrt()


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "softmax": _softmax, "tanh": torch.tanh, "1 / sqrt": _inverse_root,
}  # fmt: skip


def wrong_answers(device: torch.device) -> list[str]:
    """The questions that this device answers wrongly; none are put to one without float64."""
    if device.type == "mps":
        return []
    wrong = [] if _product_is_right(device) else ["a product of two matrices"]
    x = torch.linspace(-8, 8, 4096, device=device)
    for name, function in _FUNCTIONS.items():
        right = function(x.double())
        if not bool(((function(x).double() - right).abs() <= _CLOSE * right.abs()).all()):
            wrong.append(name)
    return wrong


def _product_is_right(device: torch.device) -> bool:
    count = torch.arange(_ROWS * _INNER, device=device)
    a = (count * 7919 % 17 - 8).view(_ROWS, _INNER).float()
    b = (count * 104729 % 15 - 7).view(_INNER, _ROWS).float()
    x = 2.0 * torch.arange(_ROWS, device=device, dtype=torch.float64) + 1
    left = (a @ b).double() * x
    right = a.double() * ((b.double() * x).sum(1))
    return bool((left.sum(1) == right.sum(1)).all())


def distance(
    model: nn.Module,
    choice: Choice,
    arrays: Mapping[str, Tensor | None],
    answer: tuple[float, Mapping[str, Tensor]],
    *,
    label_smoothing: float,
    z_loss: float,
) -> float:
    """How far an answer, (loss, gradient by weight), is from the one computed in float64."""
    loss, gradients = answer
    right, reference = _in_float64(model, choice, arrays, label_smoothing=label_smoothing, z_loss=z_loss)
    apart, length = 0.0, 0.0
    for name, gradient in reference.items():
        length += gradient.square().sum().item()
        given = gradients.get(name)
        apart += (gradient if given is None else given.double() - gradient).square().sum().item()
    found = max(abs(loss - right) / max(abs(right), 1e-30), math.sqrt(apart / max(length, 1e-60)))
    return found if math.isfinite(found) else math.inf


def _in_float64(
    model: nn.Module,
    choice: Choice,
    arrays: Mapping[str, Tensor | None],
    *,
    label_smoothing: float,
    z_loss: float,
) -> tuple[float, dict[str, Tensor]]:
    exact = copy.deepcopy(model).double()
    exact.zero_grad(set_to_none=True)
    explicit: Kernel | None = "explicit" if isinstance(model, Transformer) else None
    how = replace(choice, precision="fp32", compiled=False, attention=explicit)
    loss_of = prepare_loss(exact, how, label_smoothing=label_smoothing, z_loss=z_loss)
    wide = {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in arrays.items()
    }
    loss = loss_of(**wide)
    loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    return loss.item(), {name: w.grad for name, w in exact.named_parameters() if w.grad is not None}
