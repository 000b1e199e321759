"""The plain network's settings, places and cost: `[model]` with kind = "network". Arithmetic only; no torch.

    a_0 = x                                       the row's numbers
    z_l = W_l a_(l-1) + b_l                       layers.{l}.pre, the weighted sums
    a_l = f(z_l)                                  layers.{l}.post, the activation
    s   = W a_L + b                               scores, one for each output
    y   = s, softmax(s) or sigmoid(s)             prediction, by the head

Symbols: L hidden layers, n_0 inputs, n_1 .. n_L their sizes, n_out outputs. The network of one layer and a
step is Rosenblatt's perceptron (1958); why it takes a hidden layer is Minsky and Papert's XOR (1969).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from glassformer.configs import Clash, Config
from glassformer.errors import ModelError, UsageError, nearest

NetworkActivation = Literal["none", "step", "sigmoid", "tanh", "relu", "gelu"]
Head = Literal["number", "distribution", "scores"]

HEADS: dict[str, Head] = {"classes": "distribution", "numbers": "number", "marks": "scores"}
"""The head for each kind of target."""


class NetworkConfig(Config):
    """One plain network (multi-layer perceptron)."""

    kind: Literal["network"] = "network"
    inputs: int | None = Field(None, ge=1)
    """Numbers in a row; left out, as many as the data has."""
    outputs: int | None = Field(None, ge=1)
    """Classes, numbers or marks to predict; left out, as many as the data has."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Neurons in each hidden layer; `[]` for none: a linear model."""
    activation: NetworkActivation = "relu"
    """f, after each hidden layer. `step` has no useful gradient; with `none` all layers equal one matrix."""
    head: Head = "distribution"
    """What the scores mean: `number`s as they are; one probability `distribution` over the outputs; or
    `scores`, a yes or no for each output by itself."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of each hidden layer's activations set to 0 at random in training (Srivastava et al. 2014)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if self.head == "distribution" and self.outputs == 1:
            problems.append("outputs 1 with head 'distribution' is always certain; give 2, or head 'scores'")
        if not self.hidden:
            for name in ("activation", "dropout"):
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    problems.append(f"{name} {value} has no effect with hidden [], which has no layer for it")
        if problems:
            raise Clash(problems)
        return self

    @property
    def layers(self) -> int:
        """L."""
        return len(self.hidden)

    @property
    def widths(self) -> tuple[int, ...]:
        """n_0, n_1 .. n_L, n_out, once they are known."""
        if self.inputs is None or self.outputs is None:
            raise ModelError(
                "The network's inputs and outputs are not known yet.",
                expected="They come from the data.",
                do="Set model.inputs and model.outputs to build or count a network without any.",
            )
        return (self.inputs, *self.hidden, self.outputs)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell whoever trains this network."""
        found = []
        if self.activation == "step" and self.hidden:
            found.append(STEP_WARNING)
        if self.activation == "none" and self.hidden:
            found.append("model.activation is 'none': all layers together equal one matrix, a linear model.")
        return tuple(found)


STEP_WARNING = (
    "model.activation is 'step', whose gradient is zero everywhere: only the output layer learns, and the "
    "hidden layers keep the weights they started with. Use 'sigmoid', a step made smooth, to train them."
)


class NetworkPlace(NamedTuple):
    """One numbered place. `{layer}` in the name stands for the hidden layer's number."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    exists: Callable[[NetworkConfig], bool] = lambda config: True


_NEURONS = ("row", "neuron")
_OUTPUTS = ("row", "output")

NETWORK_PLACES: tuple[NetworkPlace, ...] = (
    NetworkPlace("inputs", ("row", "input"), "the row's numbers, as given"),
    NetworkPlace("layers.{layer}.pre", _NEURONS, "each neuron's weighted sum, bias included"),
    NetworkPlace("layers.{layer}.post", _NEURONS, "each neuron's activation"),
    NetworkPlace("scores", _OUTPUTS, "the last weighted sums, one for each output"),
    NetworkPlace(
        "probabilities", _OUTPUTS, "the scores as probabilities (distribution, scores)",
        lambda config: config.head != "number",
    ),
)  # fmt: skip


def network_places(config: NetworkConfig) -> list[str]:
    """Every place this network has, in the order of the forward pass."""
    found: list[str] = []
    inside = [place.name for place in NETWORK_PLACES if "{layer}" in place.name]
    for place in NETWORK_PLACES:
        if place.name == inside[0]:
            found += [name.format(layer=layer) for layer in range(config.layers) for name in inside]
        elif place.name not in inside and place.exists(config):
            found.append(place.name)
    return found


def find(name: str) -> NetworkPlace:
    """The table's row of a place: `layers.1.post -> layers.{layer}.post`."""
    general = re.sub(r"^layers\.\d+\.", "layers.{layer}.", name)
    for place in NETWORK_PLACES:
        if place.name == general:
            return place
    known = nearest(general, [place.name for place in NETWORK_PLACES])
    raise UsageError(f"There is no place {name!r}; {known}")


def shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network by name, in its order."""
    names = [*(f"layers.{layer}" for layer in range(config.layers)), "head"]
    found: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in zip(names, pairwise(config.widths), strict=True):
        found |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return found


def parameters(config: NetworkConfig) -> int:
    """Weights and biases: sum of (n_in + 1) n_out over the layers."""
    return sum(map(prod, shapes(config).values()))


def flops_per_row(config: NetworkConfig, *, training: bool = True) -> int:
    """FLOPs of the matrix products for one row; a multiplication and the addition after it are 2.

    Forward 2 n_in n_out for each layer. The backward pass multiplies the gradient by both factors, except
    that nothing asks for the gradient of the inputs. With steps only the last layer learns.
    """
    products = [2 * inputs * outputs for inputs, outputs in pairwise(config.widths)]
    if not training:
        return sum(products)
    only_last = config.activation == "step" and len(products) > 1
    return sum(products) + products[-1] if only_last else 3 * sum(products) - products[0]
