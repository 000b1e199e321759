"""One neuron's part in the backward pass, down to the products of single numbers.

forward     pre_t  = sum_j w_in,j x_t,j + b             for each token t
            post_t = f(pre_t)                           gated: f(pre_t) linear_t, linear_t = sum_j w_up,j x_t,j
            out_t += w_down post_t                      what it writes to the stream

backward    dpost_t  = sum_i w_down,i dout_t,i          would more of what it writes help?
            dpre_t   = dpost_t f'(pre_t)                gated: dpost_t linear_t f'(pre_t)
            dw_in,j  = sum_t dpre_t x_t,j               its own weights: what it saw, times what it was blamed for
            dw_down,i = sum_t post_t dout_t,i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError, nearest
from glassformer.look.asked import check_number
from glassformer.look.backward_layers import SLOPES
from glassformer.look.reading import Reading
from glassformer.model.block import Block
from glassformer.model.config import ModelConfig
from glassformer.model.feedforward import ACTIVATIONS

Row = dict[str, Any]
PerToken = Float[Tensor, " token"]
Vectors = Float[Tensor, "token width"]


@dataclass(frozen=True, slots=True)
class NeuronBackward:
    """The numbers of one neuron, for each token, forward and back."""

    block: str
    neuron: int
    tokens: list[str]
    x: Vectors = field(repr=False)
    """What it read."""
    dout: Vectors = field(repr=False)
    """The gradient at what the layer adds to the stream."""
    forward: Mapping[str, PerToken] = field(repr=False)
    """pre, slope = f'(pre), post; gated also linear and f = f(pre)."""
    back: Mapping[str, PerToken] = field(repr=False)
    """dpost, dpre; gated also dlinear. By the sums above, one neuron alone."""
    weights: Mapping[str, Float[Tensor, " width"]] = field(repr=False)
    """`in` (gated: W_gate's row), `down`; gated also `up`."""

    def rows(self) -> list[Row]:
        """One row for each token: pre, slope, post on the way forward, dpost, dpre on the way back."""
        columns = {name: values.tolist() for name, values in {**self.forward, **self.back}.items()}
        return [
            {"token": token, **{name: column[t] for name, column in columns.items()}}
            for t, token in enumerate(self.tokens)
        ]

    def to_dict(self) -> Row:
        return {
            "schema": "glassformer.neuron_backward",
            "version": 1,
            "block": self.block,
            "neuron": self.neuron,
            "tokens": self.rows(),
            "weights": self.weight_rows(),
        }

    def dpost_terms(self, token: int) -> list[Row]:
        """dpost of one token, product by product: w_down,i dout_i. They sum to it; the largest come first."""
        products = self.weights["down"] * self.dout[self._token(token)]
        order = products.abs().argsort(descending=True, stable=True).tolist()
        return [
            {
                "entry": i,
                "w_down": self.weights["down"][i].item(),
                "dout": self.dout[token, i].item(),
                "product": products[i].item(),
            }
            for i in order
        ]

    def weight_terms(self, entry: int, of: str = "in") -> list[Row]:
        """The gradient of one weight, token by token, in their order: dpre_t x_t,j (`in`), dlinear_t x_t,j (`up`),
        post_t dout_t,i (`down`). They sum to it."""
        (left, first), (right, second) = self._factors(of)
        if not 0 <= entry < second.shape[1]:
            raise UsageError(f"There is no entry {entry}.", expected=f"Expected 0 to {second.shape[1] - 1}.")
        return [
            {"token": token, left: first[t].item(), right: second[t, entry].item(),
             "product": (first[t] * second[t, entry]).item()}
            for t, token in enumerate(self.tokens)
        ]  # fmt: skip

    def gradient(self, of: str = "in") -> Float[Tensor, " width"]:
        """The gradients of its weights: the sums of `weight_terms`."""
        (_, first), (_, second) = self._factors(of)
        return (first[:, None] * second).sum(0)

    def weight_rows(self) -> list[Row]:
        """One row for each entry of the stream: the weights that read and write it, and their gradients."""
        found: list[Row] = [{"entry": entry} for entry in range(self.x.shape[1])]
        for of, weights in self.weights.items():
            for row, weight, gradient in zip(
                found, weights.tolist(), self.gradient(of).tolist(), strict=True
            ):
                row |= {f"w_{of}": weight, f"dw_{of}": gradient}
        return found

    def _factors(self, of: str) -> tuple[tuple[str, PerToken], tuple[str, Vectors]]:
        if of not in self.weights:
            raise UsageError(f"This neuron has no weights {of!r}; {nearest(of, self.weights)}")
        if of == "down":
            return ("post", self.forward["post"]), ("dout", self.dout)
        name = "dpre" if of == "in" else "dlinear"
        return (name, self.back[name]), ("x", self.x)

    def _token(self, token: int) -> int:
        if not 0 <= token < len(self.tokens):
            raise UsageError(f"There is no token {token}.", expected=f"Expected 0 to {len(self.tokens) - 1}.")
        return token


def neuron_backward(
    reading: Reading,
    block: str,
    seen: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    tokens: Sequence[str],
    index: int,
) -> NeuronBackward:
    """Neuron `index` of a block: the forward pass's numbers of it from `seen`, dout from `gradients`, and the rest
    computed from these alone."""
    config, module = reading.model.config, reading.model.get_submodule(block)
    assert isinstance(config, ModelConfig) and isinstance(module, Block)
    if module.mlp is None:
        raise UsageError(f"{block} is attention alone; it has no neurons.")
    check_number("neuron", index, config.ff_width)
    up, down = module.mlp.up.weight.detach(), module.mlp.down.weight.detach()
    f, slope = ACTIVATIONS[config.activation], SLOPES[config.activation]

    def numbers(place: str) -> PerToken:
        return seen[f"{block}.mlp.{place}"][..., index].flatten()

    cross = "resid_mid_cross" if module.cross is not None else "resid_mid"
    read = "ln2.normalized" if module.pre else cross
    x, dout = seen[f"{block}.{read}"].flatten(0, -2), gradients[f"{block}.mlp_out"].flatten(0, -2)
    weights = {"in": up[index], "down": down[:, index]}
    forward = {"pre": numbers("pre"), "slope": slope(numbers("pre"))}
    dpost = (dout * weights["down"]).sum(1)
    back = {"dpost": dpost, "dpre": dpost * forward["slope"]}
    if config.gated:
        weights["up"] = up[config.ff_width + index]
        forward |= {"f": f(numbers("pre")), "linear": numbers("pre_linear")}
        back = {
            "dpost": dpost,
            "dpre": dpost * forward["linear"] * forward["slope"],
            "dlinear": dpost * forward["f"],
        }
    forward["post"] = numbers("post")
    return NeuronBackward(block, index, list(tokens), x, dout, forward, back, weights)
