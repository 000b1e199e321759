"""Counts from a config against the model, torch's FLOP counter and optimizers, and published sizes."""

import subprocess
import sys
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from glassformer.model.config import ModelConfig
from glassformer.model.count import (
    activation_bytes,
    cache_bytes_per_token,
    cost,
    flops_per_token,
    memory,
    optimizer_bytes,
    parameters,
)
from glassformer.model.shapes import shapes
from glassformer.model.stacks import Decoder, build, count_parameters

GPT2 = ModelConfig(
    vocab=50257, width=768, layers=12, heads=12, context=1024, positions="learned", norm="layernorm",
    activation="gelu", bias=True,
)  # fmt: skip
LLAMA_7B = ModelConfig(
    vocab=32000, width=4096, layers=32, heads=32, context=2048, gated=True, activation="silu", tied=False,
    feedforward=11008,
)  # fmt: skip


@st.composite
def configs(draw):
    """Any decoder: every choice of every option, sizes small and unrelated."""
    few, some = st.integers(1, 3), st.integers(1, 40)
    kv_heads, half, width = draw(few), draw(few), draw(some)
    heads = kv_heads * draw(few)
    whole = draw(st.booleans())  # heads that divide the width, as most models have, or any
    values = {
        "vocab": draw(st.integers(2, 60)), "layers": draw(st.integers(0, 3)), "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads, "head_size": None if whole else 2 * half,
        "width": heads * 2 * half if whole else width, "context": draw(st.integers(2, 9)),
        "feedforward": draw(st.none() | some),
    }  # fmt: skip
    for field in ("activation", "norm", "norm_place", "positions"):
        values[field] = draw(st.sampled_from(get_args(ModelConfig.model_fields[field].annotation)))
    for field in ("gated", "qk_norm", "bias", "tied"):
        values[field] = draw(st.booleans())
    values["qkv_bias"] = not values["bias"] and draw(st.booleans())
    values["parallel"] = values["norm_place"] == "pre" and draw(st.booleans())
    return ModelConfig.model_validate(values)


@given(configs())
def test_shapes_are_the_models_own_in_order(config):
    model = Decoder(config)
    assert list(shapes(config).items()) == [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert parameters(config).total == count_parameters(model)


def test_published_sizes():
    """GPT-2 small as Hugging Face counts it, nanoGPT's 123.65M without positions, LLaMA 7B."""
    assert parameters(GPT2).total == 124_439_808
    assert parameters(GPT2).total - parameters(GPT2).positions == 123_653_376
    assert parameters(LLAMA_7B).total == 6_738_415_616


def test_parts_add_up_by_hand(tiny):
    parts = parameters(tiny(positions="learned", tied=False))
    assert (parts.embedding, parts.positions, parts.head) == (29 * 24, 16 * 24, 29 * 24)
    assert (parts.attention, parts.feedforward, parts.norms) == (2 * 4 * 24**2, 2 * 8 * 24**2, 5 * 24)
    assert parts.non_embedding == parts.total - 2 * 29 * 24 - 16 * 24


def test_conventions_by_hand():
    """N = 124,439,808; nanoGPT's estimate_mfu on its default model; Kaplan's 12 L d^2."""
    assert flops_per_token(GPT2, "six_n") == 6 * 124_439_808
    assert flops_per_token(GPT2, "nanogpt") == 6 * 123_653_376 + 12 * 12 * 768 * 1024
    kaplan = flops_per_token(GPT2, "six_n_non_embedding", training=False)
    assert kaplan == pytest.approx(2 * 12 * 12 * 768**2, rel=0.002)
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert flops_per_token(GPT2, "matmul", training=False) == 2 * matrices + 4 * 12 * 768 * 1024
    assert flops_per_token(GPT2, "matmul_causal", training=False) == 2 * matrices + 2 * 12 * 768 * 1025


def counted(model, ids, backward):
    """torch's count, and whether the kernel it chose multiplies q k^T again in its backward pass."""
    aten = torch.ops.aten
    again = aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping = {  # torch's formulas, which it does not yet give to its kernel for the CPU
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        again: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        loss = model.loss(ids, ids)
        if backward:
            loss.backward()
    return counter.get_total_flops(), again in counter.get_flop_counts()["Global"]


@pytest.mark.parametrize("kernel", ["explicit", "fused"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@settings(max_examples=40)
@given(config=configs(), batch=st.integers(1, 3), length=st.integers(1, 9))
def test_exact_flops_are_torchs(kernel, backward, config, batch, length):
    length = min(length, config.context)
    model = build(config)
    model.use_attention(kernel)
    expected, recompute = counted(model, torch.zeros(batch, length, dtype=torch.long), backward)
    per_token = flops_per_token(config, "matmul", length=length, training=backward, recompute=recompute)
    assert batch * length * per_token == expected


def test_torchs_fused_kernel_multiplies_once_more_in_its_backward_pass(tiny):
    found, recompute = counted(build(tiny()), torch.zeros(2, 16, dtype=torch.long), True)
    assert recompute
    assert found == 32 * flops_per_token(tiny(), recompute=True) > 32 * flops_per_token(tiny())


def _optimizers(model):
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and name.startswith("blocks."))]
    everything = hidden + rest
    return {
        "sgd": [torch.optim.SGD(everything)],
        "momentum": [torch.optim.SGD(everything, momentum=0.9)],
        "adam": [torch.optim.Adam(everything)],
        "adamw": [torch.optim.AdamW(everything)],
        "adafactor": [torch.optim.Adafactor(everything)],
        "muon": [torch.optim.Muon(hidden), torch.optim.AdamW(rest)],
    }


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "adafactor", "muon"])
def test_optimizer_bytes_are_what_torchs_own_keep(tiny, optimizer):
    config = tiny(bias=True, norm="layernorm", tied=False)
    model = Decoder(config)
    ids = torch.randint(0, 29, (2, 16))
    model.loss(ids, ids).backward()
    kept = 0
    for rule in _optimizers(model)[optimizer]:
        rule.step()
        states = [value for state in rule.state.values() for value in state.values()]
        kept += sum(v.nbytes for v in states if isinstance(v, torch.Tensor) and v.ndim)
    assert optimizer_bytes(shapes(config), optimizer) == kept


def test_lion_keeps_one_momentum(tiny):
    """Chen et al. 2023: half of Adam's."""
    assert optimizer_bytes(shapes(tiny()), "lion") == 4 * parameters(tiny()).total


MODELS = {
    "default": {},
    "layernorm, gelu, biases": {
        "norm": "layernorm",
        "activation": "gelu",
        "bias": True,
        "positions": "learned",
    },
    "gated, grouped": {"gated": True, "activation": "silu", "kv_heads": 2},
    "gated, relu squared": {"gated": True},
    "relu, post": {"activation": "relu", "norm_place": "post", "positions": "sinusoidal"},
    "qk norm": {"qk_norm": True},
    "qk norm, layernorm": {"qk_norm": True, "norm": "layernorm", "positions": "none"},
    "alibi": {"positions": "alibi"},
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_activations_are_within_three_percent_of_what_autograd_keeps(options, precision, fused):
    config = ModelConfig(**{"vocab": 70, "width": 48, "layers": 3, "heads": 4, "context": 24, **options})
    counted = activation_bytes(config, batch=4, precision=precision, fused=fused)
    assert counted == pytest.approx(kept_for_backward(config, precision, fused), rel=0.03)


def kept_for_backward(config, precision, fused):
    """Bytes of the distinct tensors that autograd saves, without the model's own and casts of its weights."""
    model = build(config)
    model.use_attention("fused" if fused else "explicit")
    model = model.bfloat16() if precision == "bf16" else model
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    weights = {tuple(t.shape[::-1]) for t in model.parameters() if t.ndim == 2}
    saved = {}

    def pack(y):
        if y.untyped_storage().data_ptr() not in own and tuple(y.shape) not in weights:
            saved[y.untyped_storage().data_ptr()] = y.untyped_storage()
        return y

    cast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "autocast" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y), cast:
        ids = torch.randint(0, 70, (4, config.context))
        torch.nn.functional.linear(model.hidden(ids), model.head.weight)
    return sum(storage.nbytes() for storage in saved.values())


def test_weights_copies_and_gradients_by_precision(tiny):
    n, matrices = parameters(tiny()).total, parameters(tiny()).total - 5 * 24
    held = {p: memory(tiny(), batch=2, precision=p) for p in ("fp32", "autocast", "bf16")}
    assert [(m.weights, m.copies, m.gradients) for m in held.values()] == [
        (4 * n, 0, 4 * n), (4 * n, 2 * matrices, 4 * n), (2 * n, 4 * n, 2 * n),
    ]  # fmt: skip


def test_logits_never_exceed_one_chunk(tiny):
    assert memory(tiny(), batch=2).logits == 8 * 2 * 16 * 29
    assert memory(GPT2, batch=64).logits == 8 * 2**24


def test_the_cache_holds_a_key_and_a_value_for_each_layer_and_key_head():
    assert cache_bytes_per_token(GPT2) == 2 * 12 * 768 * 4
    assert (
        cache_bytes_per_token(LLAMA_7B, precision="bf16") == 524_288
    )  # 512 KiB a token, LLaMA 7B in 16 bits
    assert cache_bytes_per_token(LLAMA_7B.model_copy(update={"kv_heads": 8}), precision="bf16") == 131_072


def test_rows_hold_every_number_with_its_unit():
    found = cost(GPT2, batch=4)
    rows = {(row["what"], row["name"], row["unit"]): row["value"] for row in found.rows()}
    assert rows["parameters", "total", "parameters"] == 124_439_808
    assert rows["training", "nanogpt", "FLOPs per batch"] == 4096 * flops_per_token(GPT2, "nanogpt")
    assert (
        rows["memory", "total", "bytes"]
        == found.bytes.total
        == sum(value for (what, name, _), value in rows.items() if what == "memory" and name != "total")
    )
    assert rows["generating", "cache", "bytes per token"] == cache_bytes_per_token(GPT2)
    assert len(rows) == len(found.rows())


def test_counting_needs_no_torch():
    code = "import sys, glassformer.model.count, glassformer.model.places; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
