"""Starting weights: the table's standard deviations, measured; streams that do not disturb each other."""

import math

import pytest
import torch

from glassformer.model.init import TABLE
from glassformer.model.stacks import Decoder

WIDE = {
    "width": 128,
    "vocab": 400,
    "heads": 4,
    "layers": 3,
    "positions": "learned",
    "tied": False,
    "bias": True,
}
D, FF, L = 128, 512, 3
EXPECTED = {  # of embedding, positions, qkv, out, up, down, head
    "gpt2": [0.02] * 3 + [0.02 / math.sqrt(2 * L), 0.02, 0.02 / math.sqrt(2 * L), 0.02],
    "xavier": [D**-0.5] * 2
    + [(2 / (n + m)) ** 0.5 for n, m in ((D, 3 * D), (D, D), (D, FF), (FF, D), (D, 400))],
    "unit": [0.02] * 2 + [D**-0.5, 0.0, D**-0.5, 0.0, D**-0.5],
}
MATRICES = [
    "embed",
    "positions",
    *(f"blocks.1.{m}" for m in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")),
    "head",
]


def test_every_scheme_of_the_table_is_measured_here():
    assert set(EXPECTED) == set(TABLE)


@pytest.mark.parametrize("scheme", EXPECTED)
def test_measured_standard_deviations_are_the_tables(tiny, scheme):
    weights = dict(Decoder(tiny(**WIDE, context=100, init=scheme)).named_parameters())
    for name, expected in zip(MATRICES, EXPECTED[scheme], strict=True):
        weight = weights[f"{name}.weight"].double()
        # five standard errors of a mean and of a standard deviation
        assert abs(weight.mean().item()) <= 5 * expected / math.sqrt(weight.numel())
        assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize("scheme", TABLE)
def test_gains_start_at_one_and_biases_at_zero(tiny, scheme):
    for name, weight in Decoder(tiny(**WIDE, norm="layernorm", init=scheme)).named_parameters():
        if weight.ndim == 1:
            assert torch.all(weight == (0.0 if name.endswith("bias") else 1.0)), name


def test_unit_blocks_start_as_the_identity(tiny):
    seen = {}
    Decoder(tiny(init="unit"))(torch.arange(16)[None], see=lambda name, y: seen.setdefault(name, y))
    assert torch.equal(seen["blocks.1.resid_post"], seen["embed"])


def test_one_seed_gives_the_same_weights_and_another_gives_others(tiny):
    first, again, other = (Decoder(tiny(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_changing_one_layer_leaves_the_others_weights_as_they_were(tiny):
    """More layers, other widths of feed-forward: every tensor of unchanged shape starts the same."""
    small = Decoder(tiny(init="xavier")).state_dict()
    deeper = Decoder(tiny(init="xavier", layers=4, feedforward=50, positions="learned")).state_dict()
    same = [name for name in small if small[name].shape == deeper[name].shape]
    assert len(same) > 8
    assert all(torch.equal(small[name], deeper[name]) for name in same)


def test_building_a_model_leaves_the_global_generator_alone(tiny):
    Decoder(tiny())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Decoder(tiny())
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(3), expected)
