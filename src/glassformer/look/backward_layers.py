"""The gradient through one layer at a time: linear maps, norms, activations, the feed-forward layer.

The convention of the whole project: for any number z of the forward pass, dz is d loss / d z. Each function here
is given dy, the gradient that arrives at a layer's output, and what the forward pass left behind, and gives dx,
the gradient at its input, and the gradients of its weights. There is one rule, the chain rule:

    y = f(x, w)        dx = (dy/dx)^T dy        dw = (dy/dw)^T dy        (Rumelhart, Hinton and Williams 1986)

A weight serves every token, so its gradient is a sum over tokens. Nothing here asks autograd for anything;
`BlockBackward.check` compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.model.config import Activation
from glassformer.model.feedforward import ACTIVATIONS, FeedForward
from glassformer.model.norms import Norm

Stream = Float[Tensor, "batch position width"]


class Step(NamedTuple):
    """One gradient, and the formula it came from."""

    name: str
    """Of a place (`blocks.0.mlp.pre`) or of a weight (`blocks.0.mlp.up.weight`)."""
    gradient: Tensor
    formula: str


class Ledger:
    """One block's books: what the forward pass left at its places, and the gradients written down so far."""

    def __init__(self, block: str, seen: Mapping[str, Tensor]) -> None:
        self.block, self._seen = block, seen
        self.steps: list[Step] = []

    def seen(self, place: str) -> Tensor:
        """What the forward pass computed at a place of this block."""
        return self._seen[f"{self.block}.{place}"]

    def has(self, place: str) -> bool:
        """Whether this block has such a place."""
        return f"{self.block}.{place}" in self._seen

    def write(self, name: str, gradient: Tensor, formula: str) -> Tensor:
        """Note a gradient, and hand it on."""
        self.steps.append(Step(f"{self.block}.{name}", gradient, formula))
        return gradient


def linear(
    dy: Float[Tensor, "*tokens outputs"],
    x: Float[Tensor, "*tokens inputs"],
    weight: Float[Tensor, "outputs inputs"],
) -> tuple[Float[Tensor, "*tokens inputs"], Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """y = W x + b.

    dx = W^T dy                  every input is blamed by what it was multiplied with
    dW = sum_t dy_t x_t^T        one outer product for each token t
    db = sum_t dy_t
    """
    dx = dy @ weight
    dweight = torch.einsum("to,ti->oi", dy.flatten(0, -2), x.flatten(0, -2))
    return dx, dweight, dy.flatten(0, -2).sum(0)


def write_linear(ledger: Ledger, name: str, dweight: Tensor, dbias: Tensor, *, bias: bool) -> None:
    """Note the gradients of a linear map's weights."""
    ledger.write(f"{name}.weight", dweight, "dW = sum_t dy_t x_t^T")
    if bias:
        ledger.write(f"{name}.bias", dbias, "db = sum_t dy_t")


def norm(
    ledger: Ledger,
    module: Norm,
    dy: Float[Tensor, "*tokens size"],
    x: Float[Tensor, "*tokens size"],
    *,
    weight: str,
    place: str | None = None,
) -> Float[Tensor, "*tokens size"]:
    """y = gain n + bias with n = c / s and s = sqrt(mean_i c_i^2 + eps); c = x - mean(x) in LayerNorm (Ba et al.
    2016), c = x in RMSNorm (Zhang and Sennrich 2019).

    dgain = sum_t dy_t n_t;  dbias = sum_t dy_t
    dn = gain dy
    ds = -sum_i dn_i n_i / s                                 s divides every entry
    dc = dn / s + ds c / (size s)                            on its own, and through s
    dx = dc - mean(dc)     LayerNorm;   dx = dc     RMSNorm

    So dx is at a right angle to x (RMSNorm, but for eps): a longer x gives the same y, and has nothing to gain.
    """
    c = x - x.mean(-1, keepdim=True) if module.centred else x
    s = (c.square().mean(-1, keepdim=True) + module.epsilon).sqrt()
    n = c / s
    if place is not None:
        ledger.write(f"{place}.normalized", dy, "dy, as it arrives")
    ledger.write(f"{weight}.weight", (dy * n).flatten(0, -2).sum(0), "dgain = sum_t dy_t n_t")
    if module.bias is not None:
        ledger.write(f"{weight}.bias", dy.flatten(0, -2).sum(0), "dbias = sum_t dy_t")
    dn = dy * module.weight
    ds = -(dn * n).sum(-1, keepdim=True) / s
    if place is not None:
        ledger.write(f"{place}.scale", ds, "ds = -sum_i dn_i n_i / s, dn = gain dy")
    dc = dn / s + ds * c / (c.shape[-1] * s)
    return dc - dc.mean(-1, keepdim=True) if module.centred else dc


def feed_forward(ledger: Ledger, module: FeedForward, dout: Stream, x: Stream, f: Activation) -> Stream:
    """out = W_down post + b, post = f(pre), pre = W_up x + b; gated: post = f(pre) linear, pre = W_gate x,
    linear = W_up x (Shazeer 2020).

    dpost = W_down^T dout
    dpre  = dpost f'(pre)                gated: dpre = dpost linear f'(pre),  dlinear = dpost f(pre)
    dx    = W_up^T dpre                  gated: W_gate^T dpre + W_up^T dlinear
    """
    post, pre = ledger.seen("mlp.post"), ledger.seen("mlp.pre")
    dpost, *down = linear(dout, post, module.down.weight)
    write_linear(ledger, "mlp.down", *down, bias=module.down.bias is not None)
    ledger.write("mlp.post", dpost, "dpost = W_down^T dout")
    if module.gated:
        multiplier = ledger.seen("mlp.pre_linear")
        dlinear = ledger.write("mlp.pre_linear", dpost * ACTIVATIONS[f](pre), "dlinear = dpost f(pre)")
        dpre = ledger.write("mlp.pre", dpost * multiplier * SLOPES[f](pre), "dpre = dpost linear f'(pre)")
        dsums = torch.cat([dpre, dlinear], dim=-1)  # as `up` holds its rows: W_gate's first
    else:
        dsums = ledger.write("mlp.pre", dpost * SLOPES[f](pre), "dpre = dpost f'(pre)")
    dx, *up = linear(dsums, x, module.up.weight)
    write_linear(ledger, "mlp.up", *up, bias=module.up.bias is not None)
    return dx


def _relu(x: Tensor) -> Tensor:
    """1 where x > 0, else 0; at the corner itself 0, as everyone has it."""
    return (x > 0).to(x.dtype)


def _gelu(x: Tensor) -> Tensor:
    """(x Phi(x))' = Phi(x) + x phi(x), Phi the normal distribution and phi its density."""
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    below: Tensor = torch.special.ndtr(x)
    return below + x * density


def _gelu_tanh(x: Tensor) -> Tensor:
    """(x/2 (1 + tanh u))' = (1 + tanh u) / 2 + x/2 (1 - tanh^2 u) u', u = sqrt(2/pi) (x + 0.044715 x^3)."""
    c, a = math.sqrt(2 / math.pi), 0.044715
    tanh = torch.tanh(c * (x + a * x**3))
    return (1 + tanh) / 2 + x / 2 * (1 - tanh.square()) * c * (1 + 3 * a * x.square())


def _silu(x: Tensor) -> Tensor:
    """(x s)' = s + x s (1 - s), s = sigmoid(x)."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _relu_squared(x: Tensor) -> Tensor:
    """(max(x, 0)^2)' = 2 max(x, 0)."""
    return 2 * x.clamp(min=0)


SLOPES: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu_squared": _relu_squared,
}
"""f'(x) of each activation."""
