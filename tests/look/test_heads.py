"""Scores of heads: planted heads are found, every formula equals the one written out cell by cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import CONTEXT, VOCAB, planted

import glassformer as gf
from glassformer.errors import UsageError
from glassformer.look.head_scores import KINDS, READ, REPEATED, Positional, attentions
from glassformer.look.random_rows import RandomRows
from glassformer.look.trace import Recorder
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

FAMILY: dict[str, dict[str, Any]] = {
    "decoder": {},
    "learned, layernorm, bias": {"positions": "learned", "norm": "layernorm", "bias": True},
    "alibi, grouped": {"positions": "alibi", "kv_heads": 2},
    "post, gated, qk_norm": {"norm_place": "post", "gated": True, "qk_norm": True},
    "parallel": {"parallel": True},
    "attention alone": {"feedforward": 0},
    "encoder": {"kind": "encoder", "head": "none"},
    "encoder-decoder": {"kind": "encoder-decoder", "positions": "sinusoidal", "encoder_layers": 1},
}


def made(**changes: Any) -> Transformer:
    """Weights so large that patterns are far from even."""
    config = ModelConfig.model_validate(
        {"vocab": 80, "width": 32, "layers": 2, "heads": 4, "context": 40} | changes
    )
    model = build(config).double().eval().requires_grad_(False)
    chance = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.copy_(0.3 * torch.randn(weight.shape, generator=chance, dtype=torch.float64))
    return model


def with_bytes(**changes: Any) -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    model = made(vocab=tokenizer.vocab_size, **changes)
    return Loaded(model, tokenizer, model.config, Path("made"))


def test_planted_heads_have_their_scores_and_no_other_head_has() -> None:
    found = gf.heads(planted()).scores["blocks"]
    for score, layer in (("previous_token", 0), ("induction", 1)):
        table = found[score].clone()
        assert table[layer, 0] >= 0.95
        table[layer, 0] = 0
        assert table.max() <= 0.2, score
    assert found["duplicate_token"].max() <= 0.2


def test_what_the_planted_induction_head_writes_is_seen_in_the_loss() -> None:
    found = gf.heads(planted())
    assert (found.length, found.repeats) == (50, 16)
    assert found.first_half is not None and found.second_half is not None
    assert found.second_half < 0.1 and found.first_half > 3


def test_a_planted_previous_token_head_follows_the_place_alone_and_looks_one_back() -> None:
    row = gf.heads(planted(), list(range(30)), repeats=2).rows()[0]
    assert row["positional"] == pytest.approx(1, abs=1e-6) and row["distance"] == pytest.approx(1, abs=1e-6)
    assert row["near"] == pytest.approx(1, abs=1e-6) and row["entropy"] == pytest.approx(0, abs=1e-6)


def test_heads_without_weights_spread_evenly_in_closed_form() -> None:
    row = gf.heads(planted(), list(range(20)))
    (even,) = [r for r in row.rows() if r["name"] == "L0H1"]
    harmonic = sum(1 / (q + 1) for q in range(1, 20)) / 19
    assert even["first_token"] == even["current_token"] == pytest.approx(harmonic, abs=1e-6)
    assert even["distance"] == pytest.approx(sum(q / 2 for q in range(1, 20)) / 19, abs=1e-5)
    assert even["near"] == pytest.approx(sum(5 / (q + 1) for q in range(5, 20)) / 15, abs=1e-6)
    assert even["induction"] == pytest.approx(sum(1 / (q + 1) for q in range(50, 100)) / 50, abs=1e-6)
    assert even["entropy"] == pytest.approx(1, abs=1e-6) and even["positional"] == 1


def cell_by_cell(score: str, p: list[list[float]], kind: str, start: int, n: int) -> float:
    """The formulas of head_scores.py written out for the pattern of one head on one row."""
    queries, keys = range(len(p)), range(len(p[0]))
    free = [q for q in queries if kind != "causal" or q > 0]
    again, copies = range(start + n, start + 2 * n), range(start, start + 2 * n)
    far = [q for q in queries if any(abs(q - k) > 4 for k in keys if kind != "causal" or k < q)]
    cells: dict[str, Callable[[], list[float]]] = {
        "induction": lambda: [p[q][q - n + 1] for q in again],
        "duplicate_token": lambda: [p[q][q - n] for q in again],
        "previous_token": lambda: [p[q][q - 1] for q in copies if q - 1 in copies],
        "next_token": lambda: [p[q][q + 1] for q in copies if q + 1 in copies],
        "first_token": lambda: [p[q][0] for q in queries if q != 0],
        "last_token": lambda: [p[q][-1] for q in queries if kind == "cross" or q != keys[-1]],
        "current_token": lambda: [p[q][q] for q in free],
        "near": lambda: [sum(p[q][k] for k in keys if abs(q - k) <= 4) for q in far],
        "distance": lambda: [sum(p[q][k] * abs(q - k) for k in keys) for q in free],
        "diagonal": lambda: [
            sum(p[q][k] for k in keys if abs(k - q * keys[-1] / queries[-1]) <= 2) for q in queries
        ],
        "entropy": lambda: [
            -sum(x * math.log(x) for x in p[q] if x) / math.log(q + 1 if kind == "causal" else len(keys))
            for q in free
        ],
    }
    found = cells[score]()
    return sum(found) / len(found)


@pytest.mark.parametrize("member", FAMILY)
@pytest.mark.parametrize("make", [made, with_bytes], ids=["bare", "with a tokenizer"])
def test_every_score_is_its_formula_cell_by_cell(make: Callable[..., Any], member: str) -> None:
    model = make(**FAMILY[member])
    pair = model.config.kind == "encoder-decoder"
    text, target = list(range(3, 26)), list(range(40, 55)) if pair else None
    found = gf.heads(model, text, target=target, repeats=3, length=9, seed=5)
    rows = RandomRows.of(model, 3, 9, 5)
    (twice,) = rows.readings(2)
    for part in attentions(model.config):
        for layer, place in enumerate(part.places):
            recorder = Recorder([place], place)
            twice.run(recorder)
            repeated = recorder.seen[place]
            read = gf.look(model, text, place, target=target)[place]
            for score in set(part.scores) - {"positional"}:
                pattern = repeated if score in REPEATED else read
                for head in range(4):
                    cells = [
                        cell_by_cell(score, row[head].tolist(), part.kind, rows.start(part.name), 9)
                        for row in pattern
                    ]
                    value = found.scores[part.name][score][layer, head]
                    assert value == pytest.approx(sum(cells) / len(cells), abs=1e-12), (place, score)


def test_positional_tells_what_stays_when_the_tokens_change() -> None:
    chance = torch.Generator().manual_seed(0)
    fixed = torch.randn(1, 1, 12, 12, generator=chance).softmax(-1).expand(400, -1, -1, -1)
    free = (3 * torch.randn(400, 1, 12, 12, generator=chance)).softmax(-1)
    for pattern, expected in ((fixed, 1.0), (free, 0.0)):
        measure = Positional()
        measure.add(pattern, "whole")
        assert float(measure.score()) == pytest.approx(expected, abs=0.02)
    halves = Positional()  # <A_r, A_s> / <A_r, A_r>, pair by pair
    mixed = (fixed[:6] + free[:6]) / 2
    for row in mixed:
        halves.add(row[None], "whole")
    apart = (mixed.double() - 1 / 12).flatten(1)
    products = apart @ apart.T
    between = (products.sum() - products.trace()) / 30
    assert float(halves.score()) == pytest.approx(float(between / (products.trace() / 6)), abs=1e-9)


def test_the_losses_are_those_of_the_model_on_each_half() -> None:
    for model in (made(), with_bytes(kind="encoder-decoder", positions="sinusoidal")):
        found = gf.heads(model, repeats=3, length=9, seed=5)
        rows = RandomRows.of(model, 3, 9, 5)
        (reading,) = rows.readings(2)
        start, ids = rows.start("decoder"), reading.inputs[-1]
        chances = reading.run().log_softmax(-1)
        nats = -chances[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        assert found.first_half == pytest.approx(float(nats[:, start : start + 8].mean()), abs=1e-12)
        assert found.second_half == pytest.approx(float(nats[:, start + 9 : start + 17].mean()), abs=1e-12)
    assert gf.heads(made(**FAMILY["encoder"]), repeats=2).first_half is None


def test_rows_of_random_tokens_hold_ordinary_tokens_that_differ_and_come_twice() -> None:
    model = with_bytes()
    end = model.tokenizer.end_of_text
    rows = torch.cat([reading.inputs[0] for reading in RandomRows.of(model, 30, 20, 1).readings(2)])
    assert rows.shape == (30, 40) and rows[:, :20].equal(rows[:, 20:])
    assert end not in rows and all(len(set(row.tolist())) == 20 for row in rows)
    other = torch.cat([reading.inputs[0] for reading in RandomRows.of(model, 30, 20, 2).readings(2)])
    assert not rows.equal(other)
    framed = with_bytes(kind="encoder", head="none")
    (reading,) = RandomRows.of(framed, 2, 9, 1).readings(2)
    assert reading.inputs[0][:, 0].tolist() == [end, end]


def test_the_same_seed_gives_the_same_scores_and_rows_in_parts_the_same_as_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made()
    one, again = gf.heads(model, seed=1), gf.heads(model, seed=1)
    assert one.to_dict() == again.to_dict() != gf.heads(model, seed=2).to_dict()
    monkeypatch.setattr("glassformer.look.random_rows._TOKENS_AT_ONCE", 1)
    for row, part in zip(one.rows(), gf.heads(model, seed=1).rows(), strict=True):
        assert part == {key: pytest.approx(value, abs=1e-9) for key, value in row.items()}


def test_nothing_is_changed_and_spread_is_the_deviation_between_rows() -> None:
    model = made().train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = gf.heads(model, repeats=4, length=8, seed=0)
    assert model.training and all(before[name].equal(weight) for name, weight in model.named_parameters())
    (reading,) = RandomRows.of(model, 4, 8, 0).readings(2)
    pattern = gf.look(model, reading.inputs[0], "blocks.1.attn.pattern")["blocks.1.attn.pattern"]
    rows = pattern[:, 2, range(8, 16), range(1, 9)].mean(-1)
    assert found.spread["blocks"]["induction"][1, 2] == pytest.approx(float(rows.std()), abs=1e-12)
    assert gf.heads(model, repeats=1).ranked()[0]["spread"] is None


def test_the_ranking_has_the_highest_first_and_says_where_each_score_comes_from() -> None:
    found = gf.heads(planted(), [1, 2, 3], repeats=2)
    first = found.ranked("previous_token", top=2)
    assert first[0]["name"] == "L0H0" and list(first[0])[:3] == ["name", "previous_token", "spread"]
    assert len(first) == 2 and found.ranked()[0]["name"] == "L1H0" and len(found.ranked()) == 4
    assert (
        found.measured_on("induction") == "repeated tokens"
        and found.measured_on("positional") == "random tokens"
    )
    assert found.measured_on("entropy") == "the text" and found.tokens == ("1", "2", "3")
    assert gf.heads(planted(), repeats=2).measured_on("entropy") == "random tokens"
    assert all(row["near"] is None for row in found.rows())  # every key of three is near
    assert found.ranked("near") == []


def test_each_kind_of_model_has_the_scores_that_make_sense_of_it() -> None:
    kinds = {name: gf.heads(made(**FAMILY[name]), repeats=2) for name in ("encoder", "encoder-decoder")}
    assert (
        kinds["encoder"].names() == list(KINDS["whole"])
        and kinds["encoder"].ranked()[0]["previous_token"] > 0
    )
    both = kinds["encoder-decoder"]
    assert {name: list(found) for name, found in both.scores.items()} == {
        "encoder": list(KINDS["whole"]), "decoder": list(KINDS["causal"]), "cross": list(KINDS["cross"]),
    }  # fmt: skip
    assert {row["attention"] for row in both.ranked("diagonal")} == {"cross"}
    assert both.ranked("induction")[0]["name"].startswith("decoder L")
    assert set(KINDS["causal"] + KINDS["whole"] + KINDS["cross"]) == {*REPEATED, *READ, "positional"}


def test_the_chart_has_a_cell_for_each_head_that_has_the_score() -> None:
    found = gf.heads(made(**FAMILY["encoder-decoder"]), repeats=2)
    for by, cells in (("induction", 2 * 4), ("entropy", 5 * 4), ("diagonal", 2 * 4)):
        spec = found.chart(by)
        values = spec["layer"][0]["data"]["values"]
        assert len(values) == cells and "measured on" in spec["title"]
        highest = max(values, key=lambda cell: cell[by])
        assert highest[by] == found.ranked(by)[0][by]


def test_what_cannot_be_scored_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"no score 'inductoin'.*'induction'"):
        gf.heads(made(), repeats=1).ranked("inductoin")
    with pytest.raises(UsageError, match="no layers"):
        gf.heads(made(layers=0))
    with pytest.raises(UsageError, match="plain network"):
        gf.heads(gf.Network(gf.NetworkConfig(inputs=2, outputs=2, hidden=(3,))))
    with pytest.raises(UsageError, match="has 1 token"):
        gf.heads(made(), [1])
    with pytest.raises(UsageError, match="no text"):
        gf.heads(made(), target=[1])
    with pytest.raises(UsageError, match=r"21 random tokens, each twice, do not fit.*2 to 20"):
        gf.heads(made(), length=21)
    with pytest.raises(UsageError, match="0 rows"):
        gf.heads(made(), repeats=0)
    with pytest.raises(UsageError, match="at least 4"):
        gf.heads(made(context=3))
    assert gf.heads(made(vocab=7), repeats=1).length == 7 and VOCAB < CONTEXT
