from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import UsageError
from glassformer.look.summary import summary
from glassformer.look.trace import look
from glassformer.look.visible import visible
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

TEXT = "the cat sat"
BYTES = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])


def made(**settings: Any) -> Loaded:
    config = ModelConfig(vocab=257, width=32, layers=2, heads=4, context=32, init="xavier", **settings)
    return Loaded(build(config, seed=1).eval(), BYTES, config, Path("made"), classes=("yes", "no", "maybe"))


def test_losses_are_those_of_the_place_and_what_was_said_is_the_likeliest() -> None:
    loaded = made()
    found = summary(loaded, TEXT)
    assert [row["token"] for row in found.tokens] == ["t", "h", "e", "·", "c", "a", "t", "·", "s", "a", "t"]
    losses = [row["loss"] for row in found.tokens]
    assert losses[0] is None
    trace = look(loaded, TEXT, ["loss", "logits"])
    np.testing.assert_allclose(losses[1:], trace["loss"][0], atol=1e-5)
    said = trace["logits"][0, 3].argmax()
    assert found.tokens[4]["said"] == visible(BYTES.decode([int(said)]) or "<|endoftext|>")


def test_the_answers_are_the_last_positions_distribution() -> None:
    loaded = made(head_bias=True)
    found = summary(loaded, TEXT, top=300)
    logits = look(loaded, TEXT, "logits")["logits"][0, -1].double()
    assert len(found.answers) == 257 and sum(row["probability"] for row in found.answers) == pytest.approx(
        1, abs=1e-5
    )
    for row in found.answers[:5]:
        assert row["logit"] == pytest.approx(float(logits[row["id"]]), abs=1e-5)
        assert row["probability"] == pytest.approx(float(logits.softmax(-1)[row["id"]]), abs=1e-6)
    assert found.entropy == pytest.approx(float(torch.special.entr(logits.softmax(-1)).sum()), abs=1e-4)


def test_norms_are_the_mean_lengths_of_what_is_in_the_places() -> None:
    loaded = made(kind="encoder-decoder", encoder_layers=1)
    found = summary(loaded, TEXT, target="on it")
    blocks = {row["block"]: row for row in found.layers}
    assert list(blocks) == ["encoder.0", "decoder.0", "decoder.1"]
    trace = look(loaded, TEXT, "*", target="on it")
    for block, row in blocks.items():
        for name, norm in row.items():
            if name != "block":
                assert norm == pytest.approx(float(trace[f"{block}.{name}"].norm(dim=-1).mean()), rel=1e-5)
    assert "cross_attn_out" in blocks["decoder.1"] and "cross_attn_out" not in blocks["encoder.0"]


def test_an_encoder_says_what_stands_at_each_position_and_a_classifier_its_classes() -> None:
    found = summary(made(kind="encoder"), TEXT)
    assert len(found.tokens) == 12 and all(row["loss"] is not None for row in found.tokens)
    classes = summary(made(kind="encoder", head="classes", classes=3), TEXT)
    assert {row["output"] for row in classes.answers} == {"yes", "no", "maybe"}
    assert sum(row["probability"] for row in classes.answers) == pytest.approx(1, abs=1e-6)
    vectors = summary(made(kind="encoder", head="none"), TEXT)
    assert vectors.answers == [] and vectors.entropy is None and len(vectors.tokens) == 12


def test_a_plain_network_is_looked_into_as_well() -> None:
    network = Network(NetworkConfig(inputs=3, outputs=2, hidden=(5,)), seed=2)
    rows = torch.tensor([[0.5, -1.0, 2.0]])
    found = summary(network, rows)
    assert found.answers[0]["probability"] == pytest.approx(float(network(rows).detach().max()))
    assert [row["block"] for row in found.layers] == ["", "layers.0"]
    trace = look(network, rows)
    assert set(trace) == {"inputs", "layers.0.pre", "layers.0.post", "scores", "probabilities"}
    weight, bias = network.layers[0].weight, network.layers[0].bias
    torch.testing.assert_close(trace["layers.0.pre"], (rows @ weight.T + bias).detach())


def test_weights_that_are_not_finite_are_said() -> None:
    loaded = made()
    with torch.no_grad():
        loaded.model.get_parameter("blocks.1.mlp.up.weight")[0, :3] = torch.nan
    warning = "blocks.1.mlp.up.weight: 3 of 4,096 weights are not finite."
    assert summary(loaded, TEXT).warnings == (warning,) == look(loaded, TEXT, "embed").warnings
    rows = {row["place"]: row for row in look(loaded, TEXT, "*").rows()}
    assert rows["blocks.1.resid_pre"]["not_finite"] == 0 and rows["blocks.1.mlp.pre"]["not_finite"] == 11
    assert rows["blocks.0.attn.scores"]["not_finite"] == 0  # the masked ones are as they should be


def test_a_layer_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="Its layers are 0 to 1"):
        look(made(), TEXT, "blocks.7.attn.q")
