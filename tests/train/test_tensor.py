"""Ranks that compute each layer together: every kind of model, and every mesh, gives the numbers of one rank."""

from __future__ import annotations

import json
from typing import Any

from ports import free_port
from test_ranks import place
from trainer import Trainer

SMALL = {"width": 12, "layers": 2, "heads": 4, "head_size": 4, "context": 16, "feedforward": 10}
ORIGINAL = {
    "positions": "sinusoidal",
    "norm": "layernorm",
    "norm_place": "post",
    "bias": True,
    "activation": "relu",
}
MODELS: dict[str, dict[str, Any]] = {
    "our own": {},
    "gpt-2": {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"},
    "llama": {"kv_heads": 2, "gated": True, "activation": "silu", "tied": False},
    "qwen": {"kv_heads": 2, "gated": True, "activation": "silu", "qkv_bias": True, "qk_norm": True},
    "gpt-neox": {"parallel": True, "bias": True, "norm": "layernorm", "rotary_fraction": 0.5, "tied": False},
    "alibi": {"positions": "alibi", "kv_heads": 2, "qk_norm": True, "norm": "layernorm", "bias": True},
    "attention alone": {"positions": "none", "feedforward": 0, "tied": False},
    "head bias": {"head_bias": True, "scale_embeddings": True, "tied": False},
    "bert": {"kind": "encoder", "positions": "learned", "norm": "layernorm", "norm_place": "post", "bias": True,
             "activation": "gelu", "embed_norm": True, "token_types": 2, "head_bias": True, "head_transform": True},
    "classifier": {"kind": "encoder", "head": "classes", "classes": 3, "qk_norm": True},
    "2017": {"kind": "encoder-decoder", "scale_embeddings": True, **ORIGINAL},
    "marian": {"kind": "encoder-decoder", "head_bias": True, "encoder_layers": 1, **ORIGINAL, "tied": True},
    "translates with fewer keys": {"kind": "encoder-decoder", "kv_heads": 2, "qk_norm": True, "gated": True},
}  # fmt: skip


def test_a_divided_model_has_the_loss_and_the_gradients_of_the_whole_one(trainer: Trainer) -> None:
    port, models = free_port(), json.dumps({name: {**SMALL, **values} for name, values in MODELS.items()})
    pids = [
        trainer.start(None, module="divided_models", MODELS=models, **place(rank, 2, port)) for rank in (0, 1)
    ]
    first, second = (trainer.end(pid, number) for number, pid in enumerate(pids))
    assert (first.exit, second.exit) == (0, 0), first.said + second.said
    (found,) = first.events
    assert all(found.pop("noise").values())
    assert list(found) == list(MODELS)
    for name, far in found.items():
        assert far["begins alike"] and far["gathered alike"] and far["saved alike"], name
        assert far["orthogonal"] < 2e-2, (name, far)  # a few units in the last place of bfloat16
        assert far["loss"] < 1e-6 and far["length"] < 1e-6 and far["gradient"] < 3e-5, (name, far)
        assert far["held"] < 0.7, (name, far)
