"""Where weights start. One table: for each scheme, the standard deviation of every kind of matrix.

d_in and d_out are the matrix's inputs and outputs (queries, keys and values are one matrix, and so are gate
and up), L the number of layers. An untied head is a matrix.

    scheme  embedding   matrices                       matrices that write to the stream
    gpt2    0.02        0.02                           0.02 / sqrt(2 L)     Radford et al. 2019
    xavier  d^-0.5      sqrt(2 / (d_in + d_out))       the same             Glorot and Bengio 2010; 2017 model
    unit    0.02        d_in^-0.5                      0                    each block starts as the identity

All are normal distributions; gains start at 1 and biases at 0. Every tensor draws from its own stream, named
after it, so changing one layer leaves the others' starting weights as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glassformer.model.config import ModelConfig
from glassformer.seeds import derive

Rule = Callable[[Tensor, ModelConfig], float]

TABLE: dict[str, tuple[Rule, Rule, Rule]] = {
    "gpt2": (
        lambda w, c: 0.02,
        lambda w, c: 0.02,
        lambda w, c: 0.02 / math.sqrt(2 * max(c.layers, 1)),
    ),
    "xavier": (
        lambda w, c: c.width**-0.5,
        lambda w, c: math.sqrt(2 / sum(w.shape)),
        lambda w, c: math.sqrt(2 / sum(w.shape)),
    ),
    "unit": (
        lambda w, c: 0.02,
        lambda w, c: w.shape[1] ** -0.5,
        lambda w, c: 0.0,
    ),
}


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw every weight of `model` by the scheme the config names; one on `meta` has no numbers."""
    for name, weight in model.named_parameters():
        if not weight.is_meta:
            draw(name, weight, config, seed)


def draw(name: str, weight: Tensor, config: ModelConfig, seed: int) -> Tensor:
    """Fill one whole weight, on the CPU, with what it starts as."""
    if weight.ndim < 2:
        return weight.fill_(0.0 if name.endswith("bias") else 1.0)
    embedding, matrix, writer = TABLE[config.init]
    kind = embedding if name in ("embed.weight", "positions.weight", "types.weight") else matrix
    rule = writer if name.endswith(("attn.out.weight", "cross.out.weight", "mlp.down.weight")) else kind
    stream = torch.Generator().manual_seed(derive(seed, "init", name))
    deviation = rule(weight, config)
    return weight.normal_(0.0, deviation, generator=stream) if deviation else weight.zero_()
