"""An architecture's parameters and FLOPs against the model that is built, torch's own counter and model/count.py."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from glassformer.errors import UsageError
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build, count_parameters
from glassformer.plan.architecture import Architecture
from glassformer.plan.flops import forward, looked_through, packed, seen, short_form, training
from glassformer.plan.layout import Recompute

few, some = st.integers(1, 3), st.integers(1, 40)


@st.composite
def configs(draw, kinds=("decoder", "encoder", "encoder-decoder")):
    """Any model of these kinds: every choice of every option, sizes small and unrelated."""
    kind = draw(st.sampled_from(kinds))
    kv_heads, half, width = draw(few), draw(few), draw(some)
    heads = kv_heads * draw(few)
    whole = draw(st.booleans())  # heads that divide the width, as most models have, or any
    values = {
        "kind": kind, "vocab": draw(st.integers(2, 60)), "layers": draw(st.integers(0, 3)), "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads, "head_size": None if whole else 2 * half,
        "width": heads * 2 * half if whole else width, "context": draw(st.integers(2, 9)),
        "feedforward": draw(st.none() | some),
    }  # fmt: skip
    for field in ("norm", "norm_place", "positions"):
        values[field] = draw(st.sampled_from(get_args(ModelConfig.model_fields[field].annotation)))
    for field in ("gated", "qk_norm", "bias", "tied", "embed_norm"):
        values[field] = draw(st.booleans())
    values["qkv_bias"] = not values["bias"] and draw(st.booleans())
    if kind == "encoder-decoder":
        values["encoder_layers"] = draw(st.none() | st.integers(0, 3))
        values["layers"] = draw(
            few
        )  # without a decoder's layer nobody reads the encoder, and it learns nothing
    if kind == "encoder":
        values["token_types"] = draw(st.integers(0, 2))
        values["pooler"] = draw(st.booleans())
        values["head"] = draw(st.sampled_from(("tokens", "classes", "none")))
        values["classes"] = 5 if values["head"] == "classes" else None
        values["head_transform"] = values["head"] == "tokens" and draw(st.booleans())
    if values.get("head", "tokens") == "tokens":
        values["head_bias"] = draw(st.booleans())
    values["parallel"] = kind != "encoder-decoder" and values["norm_place"] == "pre" and draw(st.booleans())
    return ModelConfig.model_validate(values)


@settings(max_examples=150, deadline=None)
@given(configs())
def test_parameters_are_the_built_models_to_the_last_one(config):
    found = Architecture.of(config).parameters
    assert found.total == count_parameters(build(config)) == count.parameters(config).total
    parts = count.parameters(config)
    if config.head == "tokens":
        assert found.embedding + found.positions <= parts.embedding + parts.positions
        assert found.positions == parts.positions


@pytest.mark.parametrize("hidden", [(), (7,), (5, 9)])
@pytest.mark.parametrize("activation", ["relu", "step"])
def test_a_plain_networks_parameters_and_flops_are_the_built_ones(hidden, activation):
    config = NetworkConfig(
        inputs=6, outputs=4, hidden=hidden, activation=activation if hidden else "relu", head="distribution"
    )
    model = Network(config)
    architecture = Architecture.of(config)
    assert architecture.parameters.total == count_parameters(model)
    with FlopCounterMode(display=False) as counter:
        model.loss(inputs=torch.ones(3, 6), targets=torch.zeros(3, dtype=torch.long)).backward()
    assert 3 * training(architecture, 1) == counter.get_total_flops()
    assert forward(architecture, 1).pattern == 0


def counted(config, length, batch, backward=True):
    """torch's count of a training step on these rows, with every product written out; tokens predicted."""
    model = build(config)
    model.use_attention("explicit")
    ids = torch.zeros(batch, length, dtype=torch.long)
    predicted = 1.0
    with FlopCounterMode(display=False) as counter:
        if config.kind == "encoder-decoder":
            loss = model.loss(ids, ids, ids)
        elif config.kind == "decoder":
            loss = model.loss(ids, ids)
        elif config.head == "classes":
            loss = model.loss(ids, torch.zeros(batch, dtype=torch.long))
        else:
            places = torch.zeros(batch, 1, dtype=torch.long)
            loss = model.loss(ids, torch.zeros(batch, 1, dtype=torch.long), places=places)
            predicted = 1 / length
        if backward:
            loss.backward()
    return counter.get_total_flops(), predicted


@settings(max_examples=120, deadline=None)
@given(config=configs(), batch=st.integers(1, 3), length=st.integers(1, 9), backward=st.booleans())
def test_flops_are_torchs_own_count(config, batch, length, backward):
    if config.head == "none":
        return  # nothing to learn from
    length = min(length, config.context)
    expected, predicted = counted(config, length, batch, backward)
    architecture = Architecture.of(config)
    if backward:
        per_token = training(architecture, length, predicted=predicted)
    else:
        per_token = forward(architecture, length, predicted=predicted).total
    assert batch * length * per_token == pytest.approx(expected, rel=1e-9)


@given(config=configs(("decoder", "encoder-decoder")), length=st.integers(1, 9))
def test_the_causal_count_is_the_recipes_own(config, length):
    causal = count.flops_per_token(config, "matmul_causal", length=length)
    assert training(Architecture.of(config), length, convention="causal") == pytest.approx(causal, abs=3)


def test_a_row_that_is_read_may_have_another_length():
    config = ModelConfig(
        kind="encoder-decoder", vocab=50, width=24, layers=2, encoder_layers=3, heads=4, context=16
    )
    model = build(config)
    model.use_attention("explicit")
    source, ids = torch.zeros(2, 15, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.loss(source, ids, ids).backward()
    assert 2 * 6 * training(Architecture.of(config), 6, read_length=15) == pytest.approx(
        counter.get_total_flops()
    )


def test_what_is_computed_again_by_hand():
    """L = 2, d = 4, f = 16, V = 10, s = 8: layers 2 (4 d^2 + 2 d f) and 4 s d a layer; the head 2 d V."""
    a = Architecture("toy", layers=2, width=4, heads=2, kv_heads=2, head_width=2, ff_width=16, vocab=10)
    layers, pattern, head = 2 * 2 * (4 * 16 + 2 * 64), 2 * 4 * 8 * 4, 2 * 40
    model = 3 * (layers + pattern + head)
    assert training(a, 8) == model
    assert training(a, 8, recompute=Recompute.FULL) == model + layers + pattern
    assert training(a, 8, recompute=Recompute.SELECTIVE) == model + pattern
    assert training(a, 8, fused_attention=True) == model + pattern / 2
    assert training(a, 8, convention="six_n") == 6 * a.parameters.total == 6 * looked_through(a)
    assert short_form(a, 8) == 6 * a.parameters.total + 12 * 2 * 4 * 8
    assert short_form(a, 8, causal=True) == 6 * a.parameters.total + 6 * 2 * 4 * 8


def test_an_untied_embedding_is_looked_up_and_not_multiplied_by():
    tied = Architecture("tied", layers=2, width=4, heads=2, kv_heads=2, head_width=2, ff_width=16, vocab=10)
    untied = Architecture("untied", layers=2, width=4, heads=2, kv_heads=2, head_width=2, ff_width=16, vocab=10,
                          tied=False)  # fmt: skip
    assert untied.parameters.total == tied.parameters.total + 40
    assert looked_through(untied) == looked_through(tied)


@given(length=st.integers(1, 50), window=st.integers(1, 60))
def test_keys_seen_are_the_ones_of_the_mask(length, window):
    mask = torch.ones(length, length).tril() - torch.ones(length, length).tril(-window)
    assert seen(length, window) == pytest.approx(mask.sum().item() / length)
    assert seen(length) == (length + 1) / 2
    assert seen(length, window, causal=False) == min(length, window)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_packed_documents_are_counted_as_each_alone(lengths):
    a = Architecture("toy", layers=2, width=4, heads=2, kv_heads=1, head_width=2, ff_width=16, vocab=10)
    for convention in ("full", "causal"):
        alone = sum(n * training(a, n, convention=convention) for n in lengths)
        together = sum(lengths) * training(a, packed(lengths), convention=convention)
        assert together == pytest.approx(alone)


def test_what_cannot_be_counted_says_so():
    a = Architecture("toy", layers=2, width=4, heads=2, kv_heads=1, head_width=2, ff_width=16, vocab=10)
    with pytest.raises(UsageError, match="0 tokens"):
        training(a, 0)
    with pytest.raises(UsageError, match="Documents"):
        packed([])
    with pytest.raises(UsageError, match="of 2 layers, 3 have a window"):
        Architecture("odd", layers=2, width=4, vocab=10, window=4, window_layers=3)
