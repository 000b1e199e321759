"""Small models of every kind, weights drawn large enough that an error shows."""

from __future__ import annotations

from typing import Any

import torch

from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer

IDS, SOURCE = [3, 1, 4, 1, 5, 9], [2, 7, 1, 8]

LAYERNORM: dict[str, Any] = {"norm": "layernorm", "bias": True}
FAMILY: dict[str, dict[str, Any]] = {
    "rope": {},
    "gated, grouped queries": {"gated": True, "activation": "silu", "kv_heads": 2, "qk_norm": True, "tied": False},
    "gpt-2": {**LAYERNORM, "positions": "learned", "activation": "gelu_tanh"},
    "alibi, head bias": {"positions": "alibi", "head_bias": True, "tied": False},
    "parallel": {**LAYERNORM, "parallel": True, "rotary_fraction": 0.5},
    "post-norm": {**LAYERNORM, "norm_place": "post", "positions": "sinusoidal", "scale_embeddings": True},
    "post-norm, no centring": {"norm_place": "post"},
    "attention alone": {"feedforward": 0},
    "encoder": {**LAYERNORM, "kind": "encoder", "norm_place": "post", "embed_norm": True, "token_types": 2,
                "positions": "learned", "head_bias": True},
    "pair": {**LAYERNORM, "kind": "encoder-decoder", "norm_place": "post", "positions": "sinusoidal_halves",
             "head_bias": True, "encoder_layers": 2},
    "pair, pre-norm": {"kind": "encoder-decoder", "kv_heads": 2, "embed_norm": True},
}  # fmt: skip


def drawn(settings: dict[str, Any], *, dtype: torch.dtype = torch.float64, std: float = 0.25) -> Transformer:
    """A model whose every weight is drawn, gains around 1."""
    base = {"vocab": 23, "width": 16, "layers": 3, "heads": 4, "context": 12}
    model = build(ModelConfig(**{**base, **settings})).eval()
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        gain = weight.ndim == 1 and name.endswith("weight")
        weight.data = gain + std * torch.randn(weight.shape, generator=generator)
        weight.requires_grad_(False)
    return model.to(dtype)


def asked(settings: dict[str, Any]) -> dict[str, Any]:
    """What such a model is given to read."""
    if settings.get("kind") == "encoder-decoder":
        return {"text": SOURCE, "target": IDS}
    return {"text": IDS}
