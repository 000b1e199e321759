"""Attention: every kernel agrees with every other, and with a loop in NumPy that knows nothing of torch."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from glassformer.model.attention import Attention, Kernel, attention_mask, causal_mask
from glassformer.model.positions import alibi_slopes, rotations

SEGMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 2, [0] * 16])
OPTIONS = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "one key head, other head size": {"kv_heads": 1, "head_size": 10},
    "qk norm": {"qk_norm": True},
    "biases and layernorm": {"bias": True, "norm": "layernorm", "qk_norm": True},
}
WHERE = list(itertools.product(["rope", "alibi", "none"], [False, True]))


def inputs(config, positions, segmented, dtype):
    """turn and mask, as a decoder makes them."""
    slopes = alibi_slopes(config.num_heads).to(dtype) if positions == "alibi" else None
    mask = attention_mask(
        16, 16, torch.device("cpu"), segments=SEGMENTS if segmented else None, slopes=slopes
    )
    return {
        "turn": rotations(16, config.head_width, 1e4).to(dtype) if positions == "rope" else None,
        "mask": mask,
    }


def random(config, dtype):
    layer = Attention(config, 0).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer, torch.randn(2, 16, config.width, dtype=dtype)


@pytest.mark.parametrize(("positions", "segmented"), WHERE)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_all_kernels_agree_in_values_and_gradients(tiny, options, positions, segmented, dtype, tolerance):
    config = tiny(**options)
    layer, x = random(config, dtype)
    results = {}
    for layer.kernel in get_args(Kernel):
        layer.zero_grad()
        y = layer(x, **inputs(config, positions, segmented, dtype))
        y.square().mean().backward()
        results[layer.kernel] = [y.detach(), *(p.grad for p in layer.parameters())]
    for kernel in results:
        for ours, theirs in zip(results[kernel], results["fused"], strict=True):
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("positions", "segmented"), WHERE)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_is_a_loop_over_queries_and_keys(tiny, options, positions, segmented):
    config = tiny(**options)
    layer, x = random(config, torch.float64)
    y = layer(x, **inputs(config, positions, segmented, torch.float64)).detach().numpy()
    np.testing.assert_allclose(y, by_hand(config, layer, x.numpy(), positions, segmented), atol=1e-6)


def by_hand(config, layer, x, positions, segmented):
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    size, heads, groups = config.head_width, config.num_heads, config.num_heads // config.num_kv_heads
    projected = x @ weights["qkv.weight"].T + weights.get("qkv.bias", 0.0)
    cuts = [heads * size, heads * size + config.num_kv_heads * size]
    q, k, v = (part.reshape(2, 16, -1, size) for part in np.split(projected, cuts, axis=-1))
    if config.qk_norm:
        q, k = (normalise(config, y, weights, f"{name}_norm") for name, y in (("q", q), ("k", k)))
    if positions == "rope":
        q, k = turned(q), turned(k)
    z = np.zeros((2, 16, heads, size))
    for row, head, query in itertools.product(range(2), range(heads), range(16)):
        scores = np.full(16, -np.inf)
        for key in range(query + 1):
            if segmented and SEGMENTS[row, key] != SEGMENTS[row, query]:
                continue
            scores[key] = q[row, query, head] @ k[row, key, head // groups] / np.sqrt(size)
            if positions == "alibi":
                scores[key] -= 2.0 ** (-8 * (head + 1) / heads) * (query - key)
        pattern = np.exp(scores - scores.max())
        z[row, query, head] = pattern / pattern.sum() @ v[row, :, head // groups]
    return z.reshape(2, 16, -1) @ weights["out.weight"].T + weights.get("out.bias", 0.0)


def normalise(config, y, weights, name):
    if config.norm == "layernorm":
        y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_epsilon)
    return y * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def turned(y):
    """Complex numbers, where the model turns pairs: (a + ib) e^(i angle)."""
    half = y.shape[-1] // 2
    angle = np.arange(16)[:, None] * 1e4 ** (-np.arange(half) / half)
    pairs = (y[..., :half] + 1j * y[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def test_each_row_of_a_pattern_sums_to_one_and_looks_at_nothing_later(tiny):
    layer, x = random(tiny(), torch.float32)
    seen = {}
    layer(x, see=lambda name, y: seen.setdefault(name, y))
    torch.testing.assert_close(seen["pattern"].sum(-1), torch.ones(2, 4, 16))
    assert seen["pattern"].triu(1).count_nonzero() == 0


def test_the_last_query_of_a_shorter_row_stands_at_the_last_key():
    assert causal_mask(2, 5, torch.device("cpu")).tolist() == [[True] * 4 + [False], [True] * 5]


def test_plain_causality_needs_no_mask():
    assert attention_mask(5, 5, torch.device("cpu")) is None
    assert attention_mask(1, 9, torch.device("cpu")) is None


def test_cross_attention_reads_keys_and_values_from_memory(tiny):
    """Against torch's MultiheadAttention, whose in_proj_weight is our qkv."""
    layer, x = random(tiny(bias=True), torch.float64)
    layer.causal = False
    memory = torch.randn(2, 7, 24, dtype=torch.float64)
    theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict({
        "in_proj_weight": layer.qkv.weight, "in_proj_bias": layer.qkv.bias,
        "out_proj.weight": layer.out.weight, "out_proj.bias": layer.out.bias,
    })  # fmt: skip
    expected = theirs(x, memory, memory, need_weights=False)[0]
    torch.testing.assert_close(layer(x, memory=layer.remember(memory)), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_every_kernel_drops_out_while_training_and_only_then(tiny, kernel):
    layer, x = random(tiny(dropout=0.5), torch.float32)
    layer.kernel = kernel
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
