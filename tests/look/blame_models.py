"""One small model of every kind that blame works for, weights large enough that errors show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

BERT = {"kind": "encoder", "norm_place": "post", "norm": "layernorm", "bias": True, "activation": "gelu"}
FAMILY: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"},
    "llama": {"gated": True, "activation": "silu", "kv_heads": 2, "tied": False},
    "qwen": {"gated": True, "activation": "silu", "kv_heads": 2, "qk_norm": True},
    "alibi": {"positions": "alibi", "activation": "relu", "parallel": True},
    "attention": {"feedforward": 0},
    "bert": {**BERT, "positions": "learned", "embed_norm": True, "token_types": 2, "head_transform": True},
    "classifier": {**BERT, "positions": "learned", "head": "classes", "classes": 3, "pooler": True},
    "pair": {
        "kind": "encoder-decoder", "norm_place": "post", "norm": "layernorm", "bias": True, "activation": "relu",
        "positions": "sinusoidal", "scale_embeddings": True,
    },
    "pair-gqa": {"kind": "encoder-decoder", "gated": True, "kv_heads": 2, "qk_norm": True},
}  # fmt: skip
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
TARGETS: dict[str, Any] = {"pair": [2, 7, 1, 8, 2], "pair-gqa": [2, 7, 1, 8, 2], "classifier": 1}
NETWORKS = {"distribution": [1, 0, 2], "number": [[1.0, 2.0, 3.0]] * 3, "scores": [[0, 1, 1]] * 3}
ROWS = [[0.5, -1.0, 2.0, 0.1], [1.5, 0.3, -0.7, 0.0], [-0.2, 0.9, 1.1, 2.0]]


def member(name: str, dtype: torch.dtype = torch.float64) -> Transformer:
    """A member of the family of two layers, its norms near 1."""
    config = ModelConfig(**{"vocab": 29, "width": 24, "layers": 2, "heads": 4, "context": 16, **FAMILY[name]})
    model = build(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.25)
            if "norm" in weight_name and weight_name.endswith("weight"):
                weight += 1
    return model


def network(head: str, dtype: torch.dtype = torch.float64) -> Network:
    return Network(
        NetworkConfig.model_validate({"inputs": 4, "outputs": 3, "hidden": (6, 5), "activation": "tanh", "head": head})
    ).to(dtype)  # fmt: skip


def written(**changes: Any) -> Loaded:
    """A model that reads bytes, as `gf.load` returns one."""
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    small = {
        "vocab": tokenizer.vocab_size,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "context": 32,
        "init": "xavier",
    }
    config = ModelConfig.model_validate(small | changes)
    return Loaded(build(config).eval().requires_grad_(False), tokenizer, config, Path("made"))
