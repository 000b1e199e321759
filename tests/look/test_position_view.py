"""What a model knows of order, against the formulas; and where attention looks, against the patterns themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import save_model

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def made(**changes: Any) -> Transformer:
    config = ModelConfig.model_validate(
        {"vocab": 23, "width": 32, "layers": 2, "heads": 4, "context": 48, **changes}
    )
    model = build(config).eval().requires_grad_(False)
    for number, weight in enumerate(model.parameters()):
        if weight.ndim > 1:
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    return model


@pytest.mark.parametrize("width", [32, 33])
@pytest.mark.parametrize("halves", [False, True])
def test_sinusoids_are_those_of_the_paper(width: int, halves: bool) -> None:
    """L19, written out entry by entry."""
    view = gf.positions(made(positions="sinusoidal_halves" if halves else "sinusoidal", width=width, heads=1))
    assert view.table is not None and view.deviation is not None and view.deviation < 1e-7
    for p in (0, 1, 7, 47):
        expected = [
            math.sin(p / 10000 ** (j / width)) if j % 2 == 0 else math.cos(p / 10000 ** ((j - 1) / width))
            for j in range(width)
        ]
        if halves:
            expected = expected[0::2] + expected[1::2]
        assert np.abs(view.table[p].numpy() - expected).max() < 1e-7
    pair = view.rows()[3]
    assert pair["tokens_per_turn"] == pytest.approx(2 * math.pi * 10000 ** (6 / width))
    assert pair["entries"] == (f"3, {3 + (width + 1) // 2}" if halves else "6, 7")


def test_the_kernel_of_sinusoids_is_the_mean_cosine_of_the_turns() -> None:
    view = gf.positions(made(positions="sinusoidal"))
    for row in view.kernel_rows():
        expected = np.mean([math.cos(row["offset"] * 10000 ** (-2 * i / 32)) for i in range(16)])
        assert row["likeness"] == pytest.approx(expected, abs=1e-6)


def test_a_table_that_is_not_the_formula_shows_in_the_deviation() -> None:
    model = made(positions="sinusoidal")
    model.table[5, 3] += 0.25
    assert gf.positions(model).deviation == pytest.approx(0.25, abs=1e-6)


def test_a_learned_table_is_the_weight_and_its_rows_name_the_most_alike() -> None:
    """L19: bitwise."""
    model = made(positions="learned")
    weight = model.get_parameter("positions.weight")
    view = gf.positions(model)
    assert view.table is not None and view.table.equal(weight) and view.deviation is None
    cosine = torch.nn.functional.cosine_similarity(weight[:, None], weight[None], dim=-1)
    torch.testing.assert_close(view.similarity(), cosine)
    without = cosine - 3 * torch.eye(48)
    for row in view.rows():
        p = row["position"]
        assert row["nearest"] == int(without[p].argmax()) and row["size"] == pytest.approx(
            float(weight[p].norm())
        )
        assert row["cosine"] == pytest.approx(float(without[p].max()), abs=1e-6)
    assert view.kernel_rows()[5]["likeness"] == pytest.approx(float(cosine.diagonal(5).mean()), abs=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"rotary_fraction": 0.5}, {"qk_norm": True, "kv_heads": 2}, {"rope_base": 100.0}]
)
def test_a_dot_product_after_rope_depends_on_the_offset_alone(settings: dict[str, Any]) -> None:
    """L19; and the kernel is its closed form as far as 64 random vectors tell."""
    model = made(positions="rope", **settings)
    view = gf.positions(model, IDS)
    assert view.deviation is not None and 0 < view.deviation < 1e-5
    assert view.own_deviation is not None and view.own_deviation < 1e-5
    size = model.config.rotary_width
    rates = [model.config.rope_base ** (-2 * i / size) for i in range(size // 2)]
    assert view.angles is not None and float(view.angles[7, 1]) == pytest.approx(7 * rates[1])
    for row in view.kernel_rows():
        expected = (2 * sum(math.cos(row["offset"] * rate) for rate in rates) + 8 - size) / 8
        assert row["likeness"] == pytest.approx(expected, abs=0.15)


def test_turns_that_are_wrong_at_one_place_show_in_the_deviation() -> None:
    model = made(positions="rope")
    model.turn[:, -1] = model.turn[:, 0]
    deviation = gf.positions(model).deviation
    assert deviation is not None and deviation > 0.1


def test_a_model_s_own_kernel_is_the_mean_over_its_queries_and_keys() -> None:
    model = made(positions="rope", kv_heads=2, qk_norm=True)
    view = gf.positions(model, IDS)
    trace = gf.look(model, IDS, ["blocks.1.attn.q", "blocks.1.attn.k"])
    attention = model.get_submodule("blocks.1.attn")
    q = attention.q_norm(trace["blocks.1.attn.q"])[0, :, 3]  # type: ignore[operator] # a Norm
    k = attention.k_norm(trace["blocks.1.attn.k"])[0, :, 1]  # type: ignore[operator] # heads 2 and 3 share it
    offset = 5
    turned = []
    for i, rate in enumerate(10000 ** (-2 * i / 8) for i in range(4)):
        c, s = math.cos(offset * rate), math.sin(offset * rate)
        turned.append((c * q[:, i] - s * q[:, i + 4], s * q[:, i] + c * q[:, i + 4]))
    q_turned = torch.stack([first for first, _ in turned] + [second for _, second in turned], dim=1)
    cosines = torch.nn.functional.cosine_similarity(q_turned[:, None], k[None], dim=-1)
    assert view.own is not None
    assert float(view.own["blocks.1"][3, offset]) == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_alibi_shows_slopes_and_how_fast_a_weight_halves() -> None:
    rows = gf.positions(made(positions="alibi", heads=8)).rows()
    assert [row["slope"] for row in rows] == [2.0**-h for h in range(1, 9)]
    assert rows[0]["half_weight_tokens"] == pytest.approx(2 * math.log(2)) and rows[0]["bias_at_end"] == -23.5


@pytest.mark.parametrize(
    "changes",
    [{}, {"positions": "alibi"}, {"positions": "none"}, {"kind": "encoder", "positions": "learned"},
     {"kind": "encoder-decoder", "positions": "sinusoidal"}],
)  # fmt: skip
def test_where_attention_looks_is_the_mean_of_the_patterns_along_the_distance(
    changes: dict[str, Any],
) -> None:
    model = made(**changes)
    target = IDS[:6] if changes.get("kind") == "encoder-decoder" else None
    view = gf.positions(model, IDS, target=target)
    trace = gf.look(model, IDS, "*.attn.pattern", target=target)
    assert view.reach is not None
    assert [one.layer for one in view.reach.layers] == [name.removesuffix(".attn.pattern") for name in trace]
    for one, pattern in zip(view.reach.layers, trace.values(), strict=True):
        pattern, length = pattern[0].double(), pattern.shape[-1]
        both = one.layer.startswith("encoder") or changes.get("kind") == "encoder"
        assert one.distances == range(1 - length if both else 0, length)
        for column, distance in enumerate(one.distances):
            expected = pattern.diagonal(-distance, 1, 2).mean(-1)
            torch.testing.assert_close(one.weights[:, column], expected)
            pairs = [1 / (length if both else q + 1) for q in range(length) if 0 <= q - distance < length]
            assert float(one.even[column]) == pytest.approx(np.mean(pairs))
        far = sum(float(pattern[:, q, k].mean()) * abs(q - k) for q in range(length) for k in range(length))
        assert one.distance == pytest.approx(far / length)
        assert one.on_previous == pytest.approx(float(pattern.diagonal(-1, 1, 2).mean()))
        assert one.on_first == pytest.approx(float(pattern[..., 0].mean()))
    assert len(view.reach.rows()) == len(trace)


@pytest.mark.parametrize("kind", ["rope", "sinusoidal", "learned", "alibi", "none"])
def test_every_chart_that_is_named_is_drawn_and_no_other(kind: str) -> None:
    view = gf.positions(made(positions=kind, context=200), IDS)
    assert view.chart_names[-1] in ("curves", "attention") and "attention" in view.chart_names
    for name in view.chart_names:
        values = view.chart(name)["data"]["values"]
        assert 1 < len(values) <= 64 * 64
    with pytest.raises(
        UsageError, match=rf"Positions '{kind}' have no chart 'x'. It can be {view.chart_names[0]}"
    ):
        view.chart("x")


def test_without_a_text_there_is_no_attention_and_a_target_needs_one() -> None:
    view = gf.positions(made(positions="none"))
    assert view.chart_names == () and view.rows() == [] and view.kernel_rows() == []
    with pytest.raises(UsageError, match="Give a text"):
        view.chart()
    with pytest.raises(UsageError, match="target was given without a text"):
        gf.positions(made(), target=[1])
    with pytest.raises(UsageError, match="have no table"):
        view.similarity()


def test_the_verb_shows_the_pairs_the_kernel_and_the_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    folder = str(save_model(tmp_path / "model", made(vocab=257), tokenizer))
    out = tmp_path / "far.json"
    assert main(["view", "positions", folder, "the cat", "--chart", "attention", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "places differ by" in shown.out and "blocks.1" in shown.out and "more rows" in shown.err
    assert json.loads(out.read_text())["title"] == "Where attention looks"
    assert main(["view", "positions", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "glassformer.positions" and told["kind"] == "rope" and len(told["rows"]) == 4
