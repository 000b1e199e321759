"""Blame: losses that add up, gradients that are torch's own, rankings that say what their formulas say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blame_models import BERT, FAMILY, IDS, NETWORKS, ROWS, TARGETS, member, network, written
from torch import Tensor

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import ModelError, UsageError
from glassformer.look.blame import Blame, blame
from glassformer.look.per_token import PerToken
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import Encoder
from glassformer.use.load import save_model, weights_digest
from glassformer.use.predict import predictor

PAGE = (Path(__file__).parents[2] / "docs" / "blame.md").read_text(encoding="utf-8")


def loss_of_training(name: str, model: Any) -> tuple[Tensor, int]:
    """The model's own loss, which training takes, and over how many tokens."""
    ids, target = torch.tensor([IDS]), TARGETS.get(name)
    if name == "classifier":
        return model.loss(ids, torch.tensor([target])), 1
    if isinstance(model, Encoder):
        return model.loss(ids, ids, places=torch.arange(len(IDS))[None]), len(IDS)
    if target is None:
        return model.loss(ids[:, :-1], ids[:, 1:]), len(IDS) - 1
    written = torch.tensor([target])
    return model.loss(ids, written[:, :-1], written[:, 1:]), len(target) - 1


@pytest.mark.parametrize("name", FAMILY)
def test_losses_sum_to_the_total_and_gradients_are_those_of_training(name: str) -> None:
    model = member(name)
    found = blame(model, IDS, target=TARGETS.get(name))
    expected, count = loss_of_training(name, model.requires_grad_(True))
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)
    assert sum(row["loss"] for row in found.rows()) == pytest.approx(found.total, abs=1e-9)
    assert found.total == pytest.approx(count * expected.item(), rel=1e-12) and len(found.rows()) == count
    expected.backward()
    assert list(found.weights) == [weight for weight, _ in model.named_parameters()]
    for weight_name, weight in model.named_parameters():
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(found.weights[weight_name], wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("head", NETWORKS)
def test_so_they_are_of_a_plain_network(head: str) -> None:
    model = network(head)
    found = blame(model, ROWS, target=NETWORKS[head])
    loss = model.loss(inputs=torch.tensor(ROWS).double(), targets=torch.tensor(NETWORKS[head]))
    loss.backward()  # type: ignore[no-untyped-call] # torch's
    assert found.loss == pytest.approx(loss.item(), rel=1e-6) and len(found.rows()) == 3
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found.weights[name], weight.grad, rtol=1e-6, atol=1e-12)
    assert found.places["inputs"].shape == (3, 4) and len(found.by("neurons")) == 11
    assert [row["input"] for row in sorted(found.by("tokens"), key=lambda row: row["input"])] == list("0123")
    assert found.chart("weights")["title"] and not found.by("heads")


def test_the_gradient_of_the_scores_is_what_was_said_less_what_was_right() -> None:
    model = member("llama")
    found = blame(model, IDS, "logits")
    logits = model(torch.tensor([IDS])).detach()
    expected = torch.zeros_like(logits)
    right = F.one_hot(torch.tensor(IDS[1:]), 29)
    expected[0, :-1] = (logits[0, :-1].softmax(-1) - right) / (len(IDS) - 1)
    torch.testing.assert_close(found.places["logits"], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["gpt2", "qwen", "alibi", "pair"])
def test_gradients_at_every_place_predict_what_a_small_change_there_does(name: str) -> None:
    """Along a random direction u: (L(y + hu) - L(y - hu)) / 2h = sum g u."""
    per_token = PerToken.of(member(name), IDS, target=TARGETS.get(name))
    found = blame(per_token.reading.model, IDS, "*", target=TARGETS.get(name))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    for place, gradient in found.places.items():
        u = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        sides = []
        for h in (1e-5, -1e-5):

            def moved(name: str, y: Tensor, place: str = place, h: float = h, u: Tensor = u) -> Tensor:
                return y + h * u if name == place else y

            with torch.no_grad():
                sides.append(float(per_token.run(moved).mean()))
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(
            float((gradient * u).sum()), rel=1e-5, abs=1e-8
        ), place


def scaled(per_token: PerToken, place: str, at: Any) -> float:
    """How the loss changes with the size of one part of what a place holds."""
    sides = []
    for size in (1 + 1e-5, 1 - 1e-5):

        def louder(name: str, y: Tensor, size: float = size) -> Tensor:
            if name != place:
                return y
            y = y.clone()
            y[at] *= size
            return y

        with torch.no_grad():
            sides.append(float(per_token.run(louder).mean()))
    return (sides[0] - sides[1]) / 2e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "pair-gqa"])
def test_a_head_a_neuron_and_a_token_are_ranked_by_how_the_loss_hangs_on_their_size(name: str) -> None:
    model, target = member(name), TARGETS.get(name)
    per_token, found = PerToken.of(model, IDS, target=target), blame(model, IDS, target=target)
    pair = name == "pair-gqa"
    heads, neurons, tokens = found.by("heads"), found.by("neurons", 3), found.by("tokens")
    assert len(heads) == (24 if pair else 8)
    for row in heads[:3] + heads[-3:]:
        place = f"{row.get('stack', 'blocks')}.{row['layer']}.{row.get('attention', 'attn')}.z"
        expected = scaled(per_token, place, (slice(None), slice(None), row["head"]))
        assert -row["if_zero"] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    for row in neurons:
        place = f"{row.get('stack', 'blocks')}.{row['layer']}.mlp.post"
        assert -row["if_zero"] == pytest.approx(scaled(per_token, place, (..., row["neuron"])), rel=1e-5)
    for row in tokens[:3]:
        place = {"read": "encoder.", "written": "decoder."}.get(row.get("side", ""), "") + "embed"
        at = (0, row["position"])
        assert -row["if_zero"] == pytest.approx(scaled(per_token, place, at), rel=1e-5, abs=1e-9)
        assert row["gradient"] == pytest.approx(float(found.places[place][at].norm()))
    for rows in (heads, neurons, tokens):
        assert [abs(row["if_zero"]) for row in rows] == sorted(
            (abs(row["if_zero"]) for row in rows), reverse=True
        )


def test_a_small_step_lowers_the_loss_by_what_is_foretold() -> None:
    model = member("llama")
    found = blame(model, IDS, learning_rate=1e-5)
    rows = found.by("weights")
    assert [row["gradient"] for row in rows] == sorted((row["gradient"] for row in rows), reverse=True)
    first = model.get_parameter(rows[0]["weight"])
    assert rows[0]["relative"] == pytest.approx(rows[0]["gradient"] / float(first.detach().norm()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight -= 1e-5 * found.weights[name]
    assert found.loss - blame(model, IDS).loss == pytest.approx(found.falls_by, rel=0.01)
    assert found.falls_by == pytest.approx(sum(row["falls_by"] for row in rows))


def test_softmax_does_not_see_the_bias_of_keys() -> None:
    found = blame(member("gpt2"), IDS)
    for layer in range(2):
        gradient = found.weights[f"blocks.{layer}.attn.qkv.bias"]
        assert float(gradient[24:48].abs().max()) <= 1e-14 < 1e-4 < float(gradient[:24].abs().max())


def test_the_model_stays_as_it_is() -> None:
    for model in (member("llama").train(), written().model):
        digest, asked = weights_digest(model), [weight.requires_grad for weight in model.parameters()]
        blame(model, IDS, "*", check=True, samples=10)
        assert weights_digest(model) == digest and all(weight.grad is None for weight in model.parameters())
        assert [weight.requires_grad for weight in model.parameters()] == asked
    assert not model.training


def test_without_places_the_fast_path_runs_and_with_them_only_they_are_seen() -> None:
    found = blame(member("gpt2"), IDS)
    assert not [place for place in found.places if "pattern" in place or "scores" in place]
    named = blame(member("gpt2"), IDS, ["blocks.1.attn.hook_pattern", "hook_embed"])
    assert list(named.places) == ["embed", "blocks.1.attn.pattern"] and not named.by("heads")
    with pytest.raises(UsageError, match=r"no place 'embd'.*'embed'"):
        blame(member("gpt2"), IDS, "embd")
    with pytest.raises(UsageError, match="no blame by heads"):
        named.chart("heads")
    with pytest.raises(UsageError, match=r"no ranking by 'head'.*'heads'"):
        found.by("head")  # type: ignore[arg-type] # the mistake is the test


def test_only_the_tokens_asked_for_are_blamed() -> None:
    model = member("llama")
    whole = blame(model, IDS)
    some = blame(model, IDS, tokens=[3, -1])
    assert [row["position"] for row in some.rows()] == [3, 9]
    assert [row["loss"] for row in some.rows()] == pytest.approx([whole.rows()[at]["loss"] for at in (2, 8)])
    early = blame(model, IDS, tokens=[3])
    assert (
        not early.places["embed"][0, 3:].any() and early.places["embed"][0, 2].any()
    )  # the future is not to blame
    for tokens, message in (([0], "Token 0 has no loss"), ([], "No token"), ([10], "Token 10 has no loss")):
        with pytest.raises(UsageError, match=message):
            blame(model, IDS, tokens=tokens)
    with pytest.raises(UsageError, match="Give a longer text"):
        blame(model, [3])


def test_several_rows_are_blamed_together() -> None:
    model = member("gpt2")
    both = blame(model, torch.tensor([IDS, IDS[::-1]]))
    one, other = blame(model, IDS), blame(model, IDS[::-1])
    assert both.total == pytest.approx(one.total + other.total) and both.rows()[9]["row"] == 1
    expected = (one.weights["norm.weight"] + other.weights["norm.weight"]) / 2
    torch.testing.assert_close(both.weights["norm.weight"], expected)


def test_an_encoder_is_blamed_for_the_tokens_that_a_target_puts_in_place_of_others() -> None:
    loaded = written(**BERT)
    mended = blame(loaded, "the hat sat", target="the cat sat")
    assert [(row["position"], row["token"]) for row in mended.rows()] == [
        (5, "c")
    ]  # <|endoftext|> stands first
    assert [row["token"] for row in blame(loaded, "the cat").rows()] == list("the cat")
    for target, message in (("the cat", "12 tokens, the target 8"), ("the hat sat", "are the same")):
        with pytest.raises(UsageError, match=message):
            blame(loaded, "the hat sat", target=target)
    with pytest.raises(ModelError, match="cannot be wrong"):
        blame(written(kind="encoder", head="none"), "the cat")


def test_a_classifier_needs_a_class_and_a_network_a_target_for_each_row() -> None:
    with pytest.raises(UsageError, match=r"No target was given.*'LABEL_0'"):
        blame(member("classifier"), IDS)
    with pytest.raises(UsageError, match="no class 'LABEL_3'"):
        blame(member("classifier"), IDS, target="LABEL_3")
    assert blame(member("classifier"), IDS, target="LABEL_1").rows()[0]["class"] == "LABEL_1"
    with pytest.raises(UsageError, match="3 rows and 2 targets"):
        blame(network("distribution"), ROWS, target=[1, 0])
    with pytest.raises(UsageError, match="Expected 3 numbers for each row"):
        blame(network("number"), ROWS, target=[[1.0], [1.0], [2.0]])


def test_a_predictor_is_blamed_in_the_words_of_its_columns() -> None:
    from glassformer.text.columns import Columns

    columns = Columns(features=("age", "size"), mean=(40, 1), scale=(10, 2), kind="numbers", targets=("price",),
                      target_mean=(100,), target_scale=(50,))  # fmt: skip
    config = NetworkConfig(inputs=2, outputs=1, hidden=(4,), head="number")
    model = predictor(gf.Network(config, seed=3), columns)
    rows = np.array([[50.0, 3.0], [30.0, 2.0]])
    found = blame(model, rows, target=[150.0, {"price": 50.0}])
    said = [one["price"] for one in gf.predict(model, rows)]
    expected = [((value - right) / 50) ** 2 for value, right in zip(said, (150, 50), strict=True)]
    assert [row["loss"] for row in found.rows()] == pytest.approx(expected, rel=1e-5)
    assert {row["input"] for row in found.by("tokens")} == {"age", "size"}


def test_numbers_that_are_not_finite_are_named_where_they_begin() -> None:
    model = member("gpt2")
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.down.weight")[2, 3] = torch.inf
    weights, values, losses, *gradients = blame(model, IDS).warnings
    assert weights.startswith("blocks.1.mlp.down.weight: 1 of 2,304 weights are not finite")
    assert values.startswith("blocks.1.mlp_out:") and losses.startswith("loss: 9 of 9")
    assert len(gradients) == 2 and all("gradients are not finite" in each for each in gradients)
    assert blame(member("gpt2"), IDS, "*").warnings == ()


def test_charts_show_the_rows(tmp_path: Path) -> None:
    found = blame(member("pair"), IDS, target=TARGETS["pair"])
    bars = found.chart()["data"]["values"]
    assert [bar["loss"] for bar in bars] == [row["loss"] for row in found.rows()]
    cells = found.chart("weights")["layer"][0]["data"]["values"]
    assert len(cells) == 2 * 2 + 2 * 3  # encoder: attn, mlp; decoder: attn, cross_attn, mlp
    squares = sum(cell["gradient"] ** 2 for cell in cells)
    inside = [g for name, g in found.weights.items() if re.match(r"(encoder|decoder)\.\d", name)]
    assert squares == pytest.approx(sum(float(g.square().sum()) for g in inside))
    assert len(found.chart("heads")["layer"][0]["data"]["values"]) == len(found.by("heads")) == 24
    for ranking in ("neurons", "tokens", "places"):
        names = [bar["name"] for bar in found.chart(ranking, 7)["data"]["values"]]  # type: ignore[arg-type]
        assert len(set(names)) == len(names) == 7


def test_what_the_program_prints_is_what_python_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = written()
    folder = save_model(tmp_path / "model", loaded.model, loaded.tokenizer)
    found: Blame = blame(gf.load(folder), "the cat", check=True)
    assert found.check is not None and found.check.right and "gradients are right" in repr(found)
    assert main(["blame", str(folder), "the cat", "--json", "--check", "--top", "3"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "glassformer.blame" and document["losses"] == found.rows()
    assert document["heads"] == found.by("heads", 3) and document["check"]["right"]
    assert (
        main(["blame", str(folder), "the cat", "--by", "heads", "--out", str(tmp_path / "heads.json")]) == 0
    )
    shown = capsys.readouterr().out
    assert f"{found.by('heads')[0]['gradient']:.4g}" in shown and "by weights" not in shown
    assert json.loads((tmp_path / "heads.json").read_text())["title"].startswith("Blame by head")
    assert main(["blame", str(folder), "the cat", "--integrated", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert (
        parts["complete"]
        and parts["attributions"] == gf.integrated_gradients(gf.load(folder), "the cat").rows()
    )
    assert main(["blame", str(folder), "the cat", "--integrated", "--check"]) == 2


def test_the_example_of_the_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})


def test_every_ranking_and_its_columns_are_on_the_page() -> None:
    found = blame(written(), "the cat")
    for ranking in ("weights", "heads", "neurons", "tokens", "places"):
        (line,) = re.findall(rf"^\| `{ranking}` \|.*$", PAGE, re.M)
        assert all(f"`{column}`" in line for column in found.by(ranking)[0]), ranking  # type: ignore[arg-type]
