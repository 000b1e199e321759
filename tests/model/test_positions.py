"""Positions against the papers' formulas and numbers, and Hugging Face's rotary embedding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from glassformer.model.positions import alibi_slopes, rotate, rotations, sinusoids


@pytest.mark.parametrize("width", [16, 17])
def test_sinusoids_are_the_2017_formula(width):
    table = sinusoids(50, width).numpy()
    for position in range(50):
        for entry in range(width):
            angle = position / 10000 ** ((entry - entry % 2) / width)
            assert abs(table[position, entry] - (math.cos if entry % 2 else math.sin)(angle)) < 1e-7


@given(
    query=st.integers(0, 400), key=st.integers(0, 400), shift=st.integers(0, 100), seed=st.integers(0, 2**20)
)
def test_a_rotated_product_depends_on_the_distance_alone(query, key, shift, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 16))
    turn = rotations(501, 16, 10000.0).double()

    def product(at_query: int, at_key: int) -> float:
        turned = [
            rotate(torch.from_numpy(x).view(1, 1, 1, -1), turn[:, at : at + 1])
            for x, at in ((q, at_query), (k, at_key))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(query, key) == pytest.approx(product(query + shift, key + shift), abs=1e-5)


def test_a_rotation_keeps_lengths_and_leaves_the_first_position_alone():
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    turned = rotate(x, rotations(7, 8, 10000.0).double())
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_rotation_equals_llamas(base):
    llama = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128)
    llama.rope_parameters = {"rope_type": "default", "rope_theta": base}
    q, k = torch.randn(2, 2, 4, 128, 16)
    cos, sin = LlamaRotaryEmbedding(llama)(q, torch.arange(128)[None])
    turn = rotations(128, 16, base)
    for ours, theirs in zip(
        (rotate(q, turn), rotate(k, turn)), apply_rotary_pos_emb(q, k, cos, sin), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


def test_alibi_slopes_are_the_papers():
    """Section 3: 8 heads have 1/2, 1/4, ..., 1/256; 16 heads 1/2^0.5, 1/2^1, ..., 1/2^8."""
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(16).tolist() == pytest.approx([2 ** (-h / 2) for h in range(1, 17)])


def test_twelve_alibi_heads_fill_in_from_sixteen():
    """The authors' code for 12 heads: the 8 of 8 heads, then every other one of 16."""
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    )
