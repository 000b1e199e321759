"""The feed-forward layer: the same small network at every position.

    plain   mlp(x) = W_down activation(W_up x)
    gated   mlp(x) = W_down (activation(W_gate x) * W_up x)       Shazeer 2020; SwiGLU with silu

One neuron is one row of W_up (what it looks for; gated, one of W_gate too) and one column of W_down (what it
then writes). `pre` is what the activation is given, `pre_linear` what its result is multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.config import Activation, ModelConfig
from glassformer.model.places import See, unseen


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021)."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU as GPT-2 has it: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
    "relu_squared": relu_squared,
}


class FeedForward(nn.Module):
    """width -> feedforward -> width. Gated, `up` holds W_gate's rows first, then W_up's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated, self.activation = config.gated, ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.width, config.ff_width * (2 if config.gated else 1), bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.width, bias=config.bias)

    def forward(
        self, x: Float[Tensor, "batch position width"], see: See = unseen
    ) -> Float[Tensor, "batch position width"]:
        if self.gated:
            pre, linear = self.up(x).chunk(2, dim=-1)
            post = self.activation(see("pre", pre)) * see("pre_linear", linear)
        else:
            post = self.activation(see("pre", self.up(x)))
        y: Tensor = self.down(see("post", post))
        return y
