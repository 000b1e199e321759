"""Norms: rescale each token's vector so that its size does not grow with depth.

    LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) * gain + bias      Ba et al. 2016
    RMSNorm(x)   =  x            / sqrt(mean(x^2) + eps) * gain          Zhang and Sennrich 2019

The mean runs over the vector's entries. Statistics are taken in float32 whatever the weights' precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.config import ModelConfig
from glassformer.model.places import See, unseen, wants


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, of `size` entries."""

    def __init__(self, config: ModelConfig, size: int | None = None) -> None:
        super().__init__()
        size = size or config.width
        self.epsilon, self.centred = config.norm_epsilon, config.norm == "layernorm"
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if self.centred and config.bias else None

    def forward(self, x: Float[Tensor, "*batch size"], see: See = unseen) -> Float[Tensor, "*batch size"]:
        if wants(see, "scale", "normalized"):
            return self.explicit(x, see)
        if self.centred:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.epsilon)

    def explicit(self, x: Float[Tensor, "*batch size"], see: See) -> Float[Tensor, "*batch size"]:
        """The same, with every number in a place."""
        wide = x if x.dtype == torch.float64 else x.float()
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        scale = see("scale", (wide.pow(2).mean(-1, keepdim=True) + self.epsilon).sqrt())
        y = (wide / scale).to(x.dtype) * self.weight
        seen: Tensor = see("normalized", y if self.bias is None else y + self.bias)
        return seen
