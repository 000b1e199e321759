"""100% of what a trace holds, recomputed by tests/look/numpy_pass.py from what the trace says it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy_pass import expected

import glassformer as gf
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build

WIDE = {"vocab": 31, "width": 24, "layers": 2, "heads": 4, "context": 16}
GPT2 = {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"}
BERT = {
    **GPT2,
    "kind": "encoder",
    "norm_place": "post",
    "activation": "gelu",
    "embed_norm": True,
    "token_types": 2,
}
PAPER = {
    "kind": "encoder-decoder",
    "norm": "layernorm",
    "norm_place": "post",
    "bias": True,
    "activation": "relu",
}
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "llama": {"gated": True, "kv_heads": 2, "activation": "silu", "tied": False},
    "qwen3": {"gated": True, "kv_heads": 1, "activation": "silu", "qk_norm": True, "head_size": 10},
    "qwen2": {"qkv_bias": True, "gated": True, "rope_base": 5e5},
    "gpt2": GPT2,
    "gpt-neox": {**GPT2, "positions": "rope", "rotary_fraction": 0.34, "parallel": True, "activation": "gelu"},
    "alibi": {"positions": "alibi", "kv_heads": 2, "head_bias": True},
    "alibi, six heads": {"positions": "alibi", "heads": 6, "qk_norm": True},
    "no positions": {"positions": "none", "norm": "layernorm", "feedforward": 7},
    "post-norm": {"positions": "sinusoidal", "norm_place": "post", "scale_embeddings": True},
    "attention alone": {"feedforward": 0, "embed_norm": True},
    "attention alone, post-norm": {"feedforward": 0, "norm_place": "post"},
    "bert for tokens": {**BERT, "head_bias": True, "head_transform": True},
    "bert for classes": {**BERT, "head": "classes", "classes": 3, "pooler": True},
    "bert for vectors": {**BERT, "head": "none", "pooler": True},
    "encoder with the mean, rope": {"kind": "encoder", "head": "classes", "classes": 3, "gated": True},
    "encoder, alibi": {"kind": "encoder", "positions": "alibi"},
    "marian": {**PAPER, "positions": "sinusoidal_halves", "scale_embeddings": True, "head_bias": True},
    "encoder-decoder, pre": {"kind": "encoder-decoder", "encoder_layers": 3, "gated": True, "kv_heads": 2},
    "encoder-decoder, qk norm, alibi": {"kind": "encoder-decoder", "qk_norm": True, "positions": "alibi"},
    "encoder-decoder, embed norm": {
        **GPT2, "kind": "encoder-decoder", "embed_norm": True, "norm_place": "post", "gated": True
    },
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "classes": {"hidden": (8, 5), "activation": "relu"},
    "numbers": {"hidden": (8,), "activation": "tanh", "head": "number"},
    "marks": {"hidden": (8, 4), "activation": "gelu", "head": "scores"},
    "perceptron": {"hidden": (6,), "activation": "step"},
    "linear": {"hidden": ()},
    "sigmoid": {"hidden": (3,), "activation": "sigmoid"},
    "one matrix": {"hidden": (3,), "activation": "none"},
}
PRECISION = pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])


def drawn(model: Any, dtype: torch.dtype) -> Any:
    """Weights large enough for every part to matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def error(found: torch.Tensor, numbers: np.ndarray[Any, Any]) -> float:
    """The largest difference, in parts of the largest number; what is masked must be so in both."""
    own = found.double().numpy()
    assert own.shape == numbers.shape
    finite = np.isfinite(numbers)
    assert (finite == np.isfinite(own)).all() and (own[~finite] == numbers[~finite]).all()
    return float(np.abs(own[finite] - numbers[finite]).max() / np.abs(numbers[finite]).max())


def check(trace: gf.Trace, most: float) -> None:
    assert sorted(trace) == sorted(trace.reading.places())  # nothing is left out of the trace
    errors = {place: error(tensor, expected(trace, place)) for place, tensor in trace.items()}
    assert len(errors) == len(trace) and max(errors.values()) <= most, {
        place: found for place, found in errors.items() if not found <= most
    }


@PRECISION
@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_a_transformer_follows_from_those_before_it(
    name: str, dtype: torch.dtype, most: float
) -> None:
    config = gf.ModelConfig(**{**WIDE, **MODELS[name]})
    model, generator = drawn(build(config), dtype), torch.Generator().manual_seed(7)
    ids, source = (torch.randint(31, (2, length), generator=generator) for length in (11, 14))
    target = {"target": ids} if config.kind == "encoder-decoder" else {}
    check(gf.look(model, source if target else ids, "*", **target), most)


@PRECISION
@pytest.mark.parametrize("name", NETWORKS)
def test_every_number_of_a_plain_network_follows_from_those_before_it(
    name: str, dtype: torch.dtype, most: float
) -> None:
    network = drawn(Network(NetworkConfig(inputs=5, outputs=3, **NETWORKS[name])), dtype)
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    check(gf.look(network, rows, "*"), most)


def test_between_them_they_show_every_place_of_the_table() -> None:
    from glassformer.model.network import NETWORK_PLACES
    from glassformer.model.places import PLACES, find, names

    shown = {
        find(place).name for own in MODELS.values() for place in names(gf.ModelConfig(**{**WIDE, **own}))
    }
    assert shown == {place.name for place in PLACES}
    assert len(NETWORK_PLACES) == 5  # all of them are in "classes"


def test_a_number_that_is_wrong_by_a_part_in_ten_thousand_is_found() -> None:
    model = drawn(build(gf.ModelConfig(**WIDE)), torch.float32)
    trace = gf.look(model, torch.arange(11)[None], "*")
    for place in list(trace):
        right = trace.tensors[place]
        trace.tensors[place] = right * (1 + 1e-4)
        with pytest.raises(AssertionError):
            check(trace, 1e-5)
        trace.tensors[place] = right
    check(trace, 1e-5)
