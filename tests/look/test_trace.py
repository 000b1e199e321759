from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glassformer.errors import ModelError, UsageError
from glassformer.look.trace import Recorder, look
from glassformer.model.config import ModelConfig
from glassformer.model.places import names
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

TEXT = "the cat sat"


@pytest.fixture(
    scope="module", params=[{}, {"gated": True, "kv_heads": 2, "positions": "learned", "bias": True}]
)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    config = ModelConfig(vocab=257, width=32, layers=3, heads=4, context=32, init="xavier", **request.param)
    return Loaded(build(config).eval(), tokenizer, config, Path("made"))


def test_every_place_is_seen_with_the_axes_of_the_table(loaded: Loaded) -> None:
    trace = look(loaded, TEXT, "*")
    assert set(trace) == set(names(loaded.config))
    sizes = {
        "batch": 1, "position": 11, "query": 11, "key": 11, "head": 4, "head_size": 8, "width": 32, "one": 1,
        "kv_head": loaded.config.num_kv_heads, "next": 10, "feedforward": loaded.config.ff_width, "vocab": 257,
    }  # fmt: skip
    for name, tensor in trace.items():
        assert list(tensor.shape) == [sizes[axis] for axis in trace.axes(name)], name


def test_looking_does_not_change_what_the_model_says(loaded: Loaded) -> None:
    trace = look(loaded, TEXT, ["logits", "blocks.*.attn.scores"])
    plain = loaded.model(torch.tensor([trace.ids]))
    torch.testing.assert_close(trace["logits"], plain, rtol=0, atol=1e-5)


def test_only_what_was_asked_for_is_held_and_only_there_the_explicit_path_runs(loaded: Loaded) -> None:
    trace = look(loaded, TEXT, ["blocks.1.attn.hook_pattern", "hook_embed"])
    assert set(trace) == {"blocks.1.attn.pattern", "embed"}
    assert trace["blocks.1.attn.hook_pattern"] is trace["blocks.1.attn.pattern"]
    recorder = Recorder(names(loaded.config), "blocks.1.*")
    assert recorder.wants("blocks.1.attn.q") and not recorder.wants("blocks.0.attn.pattern")


def test_rows_of_a_pattern_sum_to_one_and_look_only_back(loaded: Loaded) -> None:
    for pattern in look(loaded, TEXT).values():
        torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 4, 11))
        assert float(pattern.triu(1).abs().max()) == 0


def test_rows_tell_the_range_of_the_finite_numbers(loaded: Loaded) -> None:
    trace = look(loaded, TEXT, ["embed", "blocks.0.attn.scores"])
    embed, scores = trace.rows()
    assert embed["place"] == "embed" and embed["axes"] == ["batch", "position", "width"]
    assert embed["mean"] == pytest.approx(trace["embed"].mean().item(), abs=1e-6)
    assert embed["max"] == trace["embed"].max().item()
    assert scores["min"] > -1e9  # masked ones are -inf and no part of the range


def test_a_place_that_is_not_there_is_answered_with_the_nearest(loaded: Loaded) -> None:
    with pytest.raises(UsageError, match=r"no place 'blocks.0.attn.patern'.*'blocks.0.attn.pattern'"):
        look(loaded, TEXT, "blocks.0.attn.patern")
    with pytest.raises(UsageError, match="no place"):
        look(loaded, TEXT, "blocks.3.*")
    with pytest.raises(UsageError, match=r"was not recorded.*'embed'"):
        look(loaded, TEXT, "embed")["embd"]


def test_what_the_model_cannot_read_is_refused(loaded: Loaded) -> None:
    for text, tokens in ((TEXT * 3, 33), ("", 0)):
        with pytest.raises(ModelError, match=rf"has {tokens} tokens. Expected 1 to 32"):
            look(loaded, text)
    with pytest.raises(UsageError, match="reads ids"):
        look(loaded.model, TEXT)


def test_dropout_is_off_while_looking_and_training_goes_on_after(loaded: Loaded) -> None:
    model = build(loaded.config.model_copy(update={"dropout": 0.5})).train()
    first, second = (look(model, [1, 2, 3], "logits")["logits"] for _ in range(2))
    assert first.equal(second) and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
