"""The plain network: weighted sum + bias + activation, layer on layer (see `network.py` for the formulas).

The head decides what the scores s mean, and so what being wrong costs, for each row:

    distribution   p = softmax(s), loss = -log p_y                        cross-entropy (as in the decoder)
    number         y = s,          loss = mean_k (s_k - y_k)^2            squared error
    scores         p = sigmoid(s), loss = -mean_k (y_k log p_k + (1 - y_k) log(1 - p_k))      logistic

Each is minus the log-likelihood of one output distribution (categorical; normal, up to scale; independent
Bernoulli), so its minimum is the same kind of answer. Label smoothing e turns a target into
(1 - e) y + e / K over K classes, and into (1 - e) y + e / 2 for a yes or no (Szegedy et al. 2016).

Starting weights are normal around 0, biases 0. Each tensor draws from its own stream, named after it, so that
changing one layer leaves the others' starting weights as they were. The standard deviation follows from what
comes after the weighted sum:

    relu, gelu              sqrt(2 / n_in)              He et al. 2015: half of the sums are cut off
    everything else         sqrt(2 / (n_in + n_out))    Glorot and Bengio 2010; the output layer is one of them
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.errors import ModelError
from glassformer.model.loss import cross_entropy
from glassformer.model.network import NetworkActivation, NetworkConfig
from glassformer.model.places import See, unseen
from glassformer.seeds import derive

Inputs = Float[Tensor, "row input"]
Outputs = Float[Tensor, "row output"]


def step(x: Tensor) -> Tensor:
    """1 where x > 0, else 0: the perceptron's. Its gradient is zero, exactly and everywhere."""
    return F.relu(torch.sign(x))


ACTIVATIONS: dict[NetworkActivation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "step": step,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
}


class Network(nn.Module):
    """Reads rows of numbers and predicts, for each, numbers, a distribution, or a yes or no for each output."""

    def __init__(self, config: NetworkConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        *hidden, last = pairwise(config.widths)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in hidden)
        self.head = nn.Linear(*last)
        self.activation = ACTIVATIONS[config.activation]
        if config.activation == "step":
            self.layers.requires_grad_(
                False
            )  # no gradient comes here: nothing may change it, weight decay neither
        _initialise(self, seed)

    def forward(self, inputs: Inputs, *, see: See = unseen) -> Outputs:
        """The prediction: probabilities, or with head `number` the numbers."""
        scores = self.scores(inputs, see=see)
        if self.config.head == "number":
            return scores
        chances = scores.softmax(-1) if self.config.head == "distribution" else scores.sigmoid()
        seen: Tensor = see("probabilities", chances)
        return seen

    def scores(self, inputs: Inputs, *, see: See = unseen) -> Outputs:
        """The last weighted sums, which the loss is taken from."""
        if inputs.ndim != 2 or inputs.shape[1] != self.config.widths[0]:
            raise ModelError(
                f"The rows have shape {list(inputs.shape)}.",
                expected=f"Expected [rows, {self.config.widths[0]}]: this network reads {self.config.widths[0]} "
                "numbers a row.",
            )
        a: Tensor = see("inputs", inputs.to(self.head.weight.dtype))
        for number, layer in enumerate(self.layers):
            z = see(f"layers.{number}.pre", layer(a))
            a = see(f"layers.{number}.post", self.activation(z))
            a = F.dropout(a, self.config.dropout, self.training)
        scores: Tensor = see("scores", self.head(a))
        return scores

    def loss(
        self,
        *,
        inputs: Inputs,
        targets: Int[Tensor, " row"] | Outputs,
        num_targets: int | Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean over the rows, or their sum divided by `num_targets` so that micro-batches add up to the mean.

        `targets` are class numbers for `distribution` (-100 carries no loss), else numbers or 0 and 1, one for
        each output.
        """
        self._refuse_without_effect(label_smoothing, z_loss)
        scores = self.scores(inputs)
        if self.config.head == "distribution":
            count = (targets >= 0).sum().clamp(min=1) if num_targets is None else num_targets
            return cross_entropy(scores, targets, label_smoothing, z_loss) / count
        if targets.shape != scores.shape:
            raise ModelError(
                f"The targets have shape {list(targets.shape)}.",
                expected=f"Expected {list(scores.shape)}: a number for each output of each row.",
            )
        if scores.dtype != torch.float64:
            scores = scores.float()  # sums are kept in float32, whatever the weights are
        targets = targets.to(scores.dtype)
        if self.config.head == "number":
            total = F.mse_loss(scores, targets, reduction="sum")
        else:
            smooth = targets * (1 - label_smoothing) + label_smoothing / 2
            total = F.binary_cross_entropy_with_logits(scores, smooth, reduction="sum")
        return total / scores.shape[1] / (len(scores) if num_targets is None else num_targets)

    def _refuse_without_effect(self, label_smoothing: float, z_loss: float) -> None:
        head = self.config.head
        for name, value, effect in (
            ("label_smoothing", label_smoothing, head != "number"),
            ("z_loss", z_loss, head == "distribution"),
        ):
            if value and not effect:
                raise ModelError(
                    f"{name} {value:g} has no effect with head '{head}'.", do=f"Set {name} to 0."
                )


@torch.no_grad()
def _initialise(network: Network, seed: int) -> None:
    rectified = network.config.activation in ("relu", "gelu")
    for name, weight in network.named_parameters():
        if weight.ndim < 2:
            weight.zero_()
            continue
        num_outputs, num_inputs = weight.shape
        followed = rectified and not name.startswith("head.")
        std = math.sqrt(2 / num_inputs if followed else 2 / (num_inputs + num_outputs))
        weight.normal_(0.0, std, generator=torch.Generator().manual_seed(derive(seed, "init", name)))
