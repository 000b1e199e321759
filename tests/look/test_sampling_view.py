"""The next token stage by stage, against transformers' processors, `generate`, and chance itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import ModelError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded, save_model

TEXT = "the cat sat"
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.4, "top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 0.8, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
]


@pytest.fixture(scope="module")
def make() -> Callable[..., Loaded]:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])

    def make(**changes: Any) -> Loaded:
        config = ModelConfig.model_validate(
            {"vocab": 257, "width": 32, "layers": 2, "heads": 4, "context": 32, **changes}
        )
        model = build(config).eval().requires_grad_(False)
        for number, weight in enumerate(model.parameters()):
            if weight.ndim > 1:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
        return Loaded(model, tokenizer, config, Path("made"))

    return make


@pytest.fixture(scope="module")
def loaded(make: Callable[..., Loaded]) -> Loaded:
    return make()


def theirs(settings: dict[str, Any]) -> list[tuple[str, LogitsProcessor]]:
    made: dict[str, Callable[[Any], LogitsProcessor]] = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    return [(name, make(settings[name])) for name, make in made.items() if name in settings]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_stage_is_that_of_transformers_over_the_whole_vocabulary(
    loaded: Loaded, settings: dict[str, Any]
) -> None:
    found = gf.sampling_view(loaded, TEXT, **settings)
    ids = torch.from_numpy(loaded.tokenizer.encode(TEXT))[None]
    scores = loaded.model(ids)[:, -1].clone()
    stages = {stage.name: stage for stage in found.stages}
    torch.testing.assert_close(stages["model"].probabilities, scores.softmax(-1)[0], rtol=0, atol=1e-6)
    for name, process in theirs(settings):
        scores = process(ids, scores)
        expected = scores.softmax(-1)[0]
        torch.testing.assert_close(stages[name].probabilities, expected, rtol=0, atol=1e-6)
        assert stages[name].num_kept == int((expected > 0).sum())
        assert stages[name].entropy == pytest.approx(float(torch.special.entr(expected).sum()), abs=1e-5)
    assert set(stages) == {"model", "temperature", *settings}


@pytest.mark.parametrize("settings", [*SETTINGS, {"temperature": 0.0}])
@pytest.mark.parametrize("text", [TEXT, "def ", "", "a long text " * 5])
def test_the_token_is_the_one_that_generate_writes(
    loaded: Loaded, settings: dict[str, Any], text: str
) -> None:
    for seed in range(4):
        found = gf.sampling_view(loaded, text, seed=seed, **settings)
        given = gf.generate(loaded, text, seed=seed, max_tokens=1, **{"temperature": 1.0, **settings})
        assert given.tokens == ([found.token] if found.token != loaded.tokenizer.end_of_text else [])
        assert list(found.warnings) == given.warnings
        if given.tokens:
            own = found.stages[0].probabilities[found.token].log()
            assert given.logprobs[0] == pytest.approx(float(own), abs=1e-5)


def test_u_falls_into_the_part_of_the_running_sum_that_is_the_token_s(loaded: Loaded) -> None:
    for seed in range(30):
        found = gf.sampling_view(loaded, TEXT, seed=seed, top_k=30)
        assert found.u is not None and found.below <= found.u < found.through
        before = found.probabilities[: found.token].double().sum()
        assert found.below == pytest.approx(float(before), abs=1e-6)
        rows = found.draw_rows()
        assert [row["token"] for row in rows if row["drawn"]] == found.reading.words([found.token])
        assert all(one["to"] == pytest.approx(two["from"]) for one, two in pairwise(rows))
    greedy = gf.sampling_view(loaded, TEXT, temperature=0)
    assert greedy.u is None and greedy.token == int(greedy.stages[0].logits.argmax())


def test_a_hundred_thousand_draws_are_what_the_probabilities_say(loaded: Loaded) -> None:
    """L21: chi-square over tokens that are expected at least ten times; the others together."""
    draws = 100_000
    found = gf.sampling_view(loaded, TEXT, temperature=1.3, top_p=0.95, seed=7, draws=draws)
    assert found.counts is not None and int(found.counts.sum()) == draws
    expected = found.probabilities.double() / found.probabilities.double().sum() * draws
    assert int(found.counts[expected == 0].sum()) == 0
    often = expected >= 10
    observed = torch.cat([found.counts[often], found.counts[~often].sum()[None]]).double()
    theory = torch.cat([expected[often], expected[~often].sum()[None]])
    able = theory > 0
    assert int(able.sum()) > 20
    assert stats.chisquare(observed[able].numpy(), theory[able].numpy()).pvalue > 0.001


def test_each_draw_is_what_another_seed_would_write(loaded: Loaded) -> None:
    found = gf.sampling_view(loaded, TEXT, seed=3, draws=20)
    tokens = [gf.sampling_view(loaded, TEXT, seed=seed).token for seed in range(3, 23)]
    assert found.counts is not None and found.counts.equal(
        torch.bincount(torch.tensor(tokens), minlength=257)
    )
    assert gf.sampling_view(loaded, TEXT, seed=3).token == found.token == tokens[0]


def test_rows_tell_which_stage_cut_a_token_and_stages_what_is_left(loaded: Loaded) -> None:
    found = gf.sampling_view(loaded, "def ", temperature=0.9, top_k=3, seed=1, top=257)
    rows = {row["id"]: row for row in found.rows()}
    assert len(rows) == 257 and sum(row["drawn"] for row in rows.values()) == 1
    assert rows[ord("a")]["cut_by"] == "held_space" and rows[ord(" ")]["kept"]
    stages = found.stage_rows()
    assert [row["stage"] for row in stages] == ["model", "held_space", "temperature", "top_k"]
    assert stages[1]["tokens"] == 1 and stages[1]["kept"] == pytest.approx(rows[ord(" ")]["model"], abs=1e-6)


def test_a_padded_vocabulary_draws_only_what_the_tokenizer_knows(make: Callable[..., Loaded]) -> None:
    found = gf.sampling_view(make(vocab=300), TEXT, draws=100)
    assert len(found.probabilities) == 257


def test_an_encoder_decoder_and_ids_are_read_too_and_an_encoder_draws_nothing(
    make: Callable[..., Loaded],
) -> None:
    pair = make(kind="encoder-decoder", positions="sinusoidal")
    found = gf.sampling_view(pair, "ab", target="cd", top_k=5)
    ends = [pair.tokenizer.end_of_text]
    source, ids = torch.tensor([[97, 98, *ends]]), torch.tensor([[*ends, 99, 100]])
    expected = pair.model(source, ids)[0, -1].softmax(-1)
    torch.testing.assert_close(found.stages[0].probabilities, expected)
    bare = make().model
    one = gf.sampling_view(bare, [1, 2, 3]).stages[0].logits
    torch.testing.assert_close(one, bare(torch.tensor([[1, 2, 3]]))[0, -1])
    with pytest.raises(UsageError, match="does not write"):
        gf.sampling_view(make(kind="encoder"), TEXT)
    with pytest.raises(UsageError, match="One text at a time"):
        gf.sampling_view(bare, torch.tensor([[1, 2], [3, 4]]))


def test_what_would_show_nothing_is_refused(loaded: Loaded, make: Callable[..., Loaded]) -> None:
    with pytest.raises(UsageError, match="draws would show nothing"):
        gf.sampling_view(loaded, TEXT, temperature=0, draws=10)
    with pytest.raises(UsageError, match="top_p must be"):
        gf.sampling_view(loaded, TEXT, top_p=1.5)
    with pytest.raises(UsageError, match="top 0"):
        gf.sampling_view(loaded, TEXT, top=0)
    broken = make()
    broken.model.head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        gf.sampling_view(broken, TEXT)


def test_the_verb_shows_stages_tokens_and_the_draw(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_model(tmp_path / "model", loaded.model, loaded.tokenizer))
    command = ["view", "sampling", folder, TEXT, "--top-k", "9", "--seed", "4", "--draws", "50"]
    assert main([*command, "--out", str(tmp_path / "next.json")]) == 0
    shown = capsys.readouterr().out
    assert "top_k" in shown and "<- u" in shown
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = gf.sampling_view(loaded, TEXT, top_k=9, seed=4, draws=50)
    assert told["schema"] == "glassformer.sampling_view" and told["token"] == found.token
    assert [row["id"] for row in told["rows"]] == [row["id"] for row in found.rows()]
    for row, expected in zip(told["rows"], found.rows(), strict=True):
        assert row["draws"] == expected["draws"] and row["top_k"] == pytest.approx(
            expected["top_k"], abs=1e-5
        )
    assert json.loads((tmp_path / "next.json").read_text())["mark"]["type"] == "bar"
