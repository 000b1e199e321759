"""An encoder in use: vectors of texts, and guesses at what is hidden."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import ModelError, TokenizerError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.use.embed import compare, save_vectors
from glassformer.use.fill import fill_in
from glassformer.use.load import Loaded

TEXTS = ["a", "the cat", "a longer text", "the cat", "xy"]


@pytest.fixture(scope="module")
def encoder() -> Loaded:
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind="bytes", mask_token=True), [b""])
    config = ModelConfig(
        kind="encoder", vocab=258, width=32, layers=2, heads=4, context=32, pooler=True, init="xavier"
    )
    return Loaded(build(config).eval().requires_grad_(False), tokenizer, config, Path("made"))


def test_each_text_gets_the_vector_it_gets_alone_whatever_stands_beside_it(encoder: Loaded) -> None:
    for pooling in ("mean", "first", "pooler"):
        together = gf.embed(encoder, TEXTS, pooling=pooling)  # type: ignore[arg-type] # mypy widens the tuple
        alone = torch.cat([gf.embed(encoder, text, pooling=pooling) for text in TEXTS])  # type: ignore[arg-type]
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
    assert torch.equal(together[1], together[3])


def test_a_mean_is_the_mean_of_the_tokens_vectors_frame_included(encoder: Loaded) -> None:
    ids = torch.tensor([[encoder.tokenizer.end_of_text, *b"the cat"]])
    expected = encoder.encoder.hidden(ids)
    torch.testing.assert_close(gf.embed(encoder, "the cat", normalize=False), expected.mean(1))
    torch.testing.assert_close(gf.embed(encoder, "the cat", pooling="first", normalize=False), expected[:, 0])


def test_cosines_of_all_pairs_the_nearest_first(encoder: Loaded) -> None:
    rows = compare(gf.embed(encoder, TEXTS, normalize=False), TEXTS)
    assert len(rows) == 10 and (rows[0]["text"], rows[0]["other"]) == ("the cat", "the cat")
    assert rows[0]["cosine"] == pytest.approx(1) and [r["cosine"] for r in rows] == sorted(
        (r["cosine"] for r in rows), reverse=True
    )


def test_guesses_are_the_softmax_at_the_hidden_place_with_the_text_they_make(encoder: Loaded) -> None:
    rows = gf.fill(encoder, "a <|mask|>c<|mask|>", top=258)
    assert [row["place"] for row in rows] == [0] * 258 + [1] * 258
    ids = torch.tensor([[256, *b"a ", 257, ord("c"), 257]])
    expected = encoder.model(ids)[0, [3, 5]].softmax(-1)
    for row in rows:
        assert row["probability"] == pytest.approx(expected[row["place"], row["id"]].item(), abs=1e-6)
    assert sum(row["probability"] for row in rows[:258]) == pytest.approx(1, abs=1e-5)
    (b,) = [row for row in rows[:258] if row["id"] == ord("b")]
    assert (b["token"], b["text"]) == ("b", "a bc<|mask|>")
    best = [
        max(rows[258 * place : 258 * place + 258], key=lambda row: row["probability"])["token"]
        for place in (0, 1)
    ]
    assert fill_in(encoder, "a <|mask|>c<|mask|>") == f"a {best[0]}c{best[1]}"


def test_a_berts_hidden_place_is_named_either_way_and_its_frame_is_not_part_of_the_text(
    tmp_path: Path,
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
    library = tokenizers.Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    library.add_special_tokens(words[:5])
    library.save(str(tmp_path / "tokenizer.json"))
    config = ModelConfig(kind="encoder", vocab=8, width=16, layers=1, heads=2, context=8, init="xavier")
    made = Loaded(build(config).eval(), gf.Tokenizer.load(tmp_path), config, tmp_path)
    rows = gf.fill(made, "the <|mask|> sat", top=8)
    assert rows == gf.fill(made, "the [MASK] sat", top=8)
    expected = made.model(torch.tensor([[2, 5, 4, 7, 3]]))[0, 2].softmax(-1)
    assert [row["probability"] for row in rows] == pytest.approx(sorted(expected.tolist(), reverse=True))
    (cat,) = [row for row in rows if row["token"] == "cat"]
    assert cat["text"] == "the cat sat"


def test_what_cannot_be_done_says_what_can(
    encoder: Loaded, make: Callable[..., Loaded], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="Nothing is hidden"):
        gf.fill(encoder, "all is said")
    with pytest.raises(UsageError, match="32, the model's context"):
        gf.embed(encoder, ["short", "x" * 40])
    with pytest.raises(UsageError, match="no pooling 'max'"):
        gf.embed(encoder, "x", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no pooler"):
        gf.embed(make(kind="encoder"), "x", pooling="pooler")
    with pytest.raises(ModelError, match="kind 'decoder'"):
        gf.embed(make(), "x")
    with pytest.raises(ModelError, match="head for none"):
        gf.fill(make(kind="encoder", head="none"), "<|mask|>")
    with pytest.raises(TokenizerError, match="hidden one"):
        gf.fill(make(kind="encoder"), "<|mask|>")
    with pytest.raises(UsageError, match=r"\.npy"):
        save_vectors(tmp_path / "x.txt", torch.zeros(1, 1))


@pytest.mark.parametrize("changes", [{"head": "none"}, {"head": "classes", "classes": 3}, {"head": "tokens"}])
def test_every_head_is_saved_and_opened_again(
    make: Callable[..., Loaded], tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = make(kind="encoder", **changes)
    opened = gf.load(gf.save_model(tmp_path / "model", made.model, made.tokenizer))
    ids = torch.arange(20)[None]
    torch.testing.assert_close(opened.model(ids), made.model(ids), rtol=0, atol=1e-6)


def test_the_verbs_print_vectors_cosines_and_candidates(
    encoder: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(gf.save_model(tmp_path / "model", encoder.model, encoder.tokenizer))
    (tmp_path / "texts.txt").write_text("the cat\n\nxy\n", encoding="utf-8")
    found = gf.embed(encoder, ["a", "the cat", "xy"])
    arguments = ["embed", folder, "--text", "a", "--file", str(tmp_path / "texts.txt")]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["a", "the cat", "xy"]
    torch.testing.assert_close(torch.tensor([row["vector"] for row in rows]), found)
    assert main([*arguments, "--out", str(tmp_path / "x.npy"), "--compare", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert np.load(tmp_path / "x.npy").shape == (3, 32) and len(out) == 3
    assert json.loads(out[0])["cosine"] == pytest.approx(
        compare(found, ["a", "the cat", "xy"])[0]["cosine"], abs=1e-6
    )
    assert main(["fill", folder, "a <|mask|>", "--top", "2", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["fill", folder, "a <|mask|>"]) == 0
    assert "probability" in capsys.readouterr().out
    assert main(["embed", folder]) == 2
