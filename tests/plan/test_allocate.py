"""The best model for a budget: against the law's closed form, the published tables, and the law of repeats."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import glassformer as gf
from glassformer.errors import UsageError
from glassformer.plan.allocate import CENTRE, EXPONENT_ERROR, best_size, best_tokens, laws, read_law, usual
from glassformer.plan.flops import training
from glassformer.plan.intervals import Z
from glassformer.scale.published import published_law
from glassformer.scale.repeats import loss_of_repeated


def test_the_law_is_the_published_one_number_by_number() -> None:
    for name, law in laws().items():
        theirs = published_law(name)
        assert float(law.loss(7e9, 2e12)) == pytest.approx(
            float(np.exp(theirs.log_loss(np.array([7e9]), np.array([2e12])))[0, 0])
        )


def test_gophers_budget_is_best_spent_on_about_a_quarter_of_gopher() -> None:
    """By the refit of Besiroglu et al. 72.4B at 5.76e23, with 18.3 tokens a parameter, at 6 N D; exact FLOPs move
    both a little. A bootstrap of the runs gives 10.0 to 29.1 tokens a parameter there, and 6.5 to 31.6 at 1e26."""
    found = best_size(5.76e23)
    assert found.parameters == pytest.approx(72.4e9, rel=0.06)
    assert found.tokens_per_parameter == pytest.approx(18.3, rel=0.06)
    for flops, low, high in ((5.76e23, 10.0, 29.1), (1e26, 6.5, 31.6)):
        spread = math.log(high / low) / (2 * Z)  # of D / N, which moves twice as much as N
        assert 2 * EXPONENT_ERROR * math.log(flops / CENTRE) == pytest.approx(spread, rel=0.02)


def test_the_budget_is_spent_to_the_last_flop_with_exact_counting() -> None:
    for flops in (1e16, 3.8e25):
        found = best_size(flops, length=2048)
        assert training(found.architecture, 2048, convention="causal") * found.tokens == pytest.approx(flops)


def test_half_and_double_the_size_cost_what_the_law_says() -> None:
    found = best_size(1e23)
    for row in found.flatness:
        more = float(found.law.loss(row["parameters"], row["tokens"])) / found.loss - 1
        assert row["loss_higher"] == pytest.approx(more, abs=2e-4) and row["loss_higher"] > 0
    low, high = found.within_one_percent
    assert low < found.parameters / 2 and high > 2 * found.parameters


def test_a_model_that_will_be_served_is_smaller_and_sees_more_tokens() -> None:
    plain, served = best_size(1e23), best_size(1e23, serve=1e13)
    assert (
        served.parameters < 0.8 * plain.parameters
        and served.tokens_per_parameter > plain.tokens_per_parameter
    )
    with pytest.raises(UsageError, match="more than the whole budget"):
        best_size(1e16, serve=1e15)


def test_few_unique_tokens_are_repeated_as_the_published_example_does() -> None:
    """2305.16264's README: 1e22 FLOPs and 25B unique tokens are best spent on 7.02B parameters and 237B tokens, by 6
    N D."""
    found = best_size(1e22, "muennighoff-2023", unique=25e9)
    assert found.parameters == pytest.approx(7.02e9, rel=0.12) and found.tokens == pytest.approx(
        237.3e9, rel=0.05
    )
    theirs = loss_of_repeated(found.parameters, found.tokens, 25e9, 15.387756, 5.309743)
    assert found.loss == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("size", [1e5, 1e7, 1.24e8, 1e9, 7e9, 7e10, 4.05e11, 1e13])
def test_a_usual_model_has_about_the_asked_size_and_a_shape_that_can_be_built(size: float) -> None:
    made = usual(size)
    assert made.parameters.total == pytest.approx(size, rel=0.3 if size < 1e7 else 0.05)
    assert made.width == made.heads * made.head_width and made.heads % made.kv_heads == 0


def test_the_best_tokens_for_a_size_are_those_of_the_budget_it_is_best_for() -> None:
    law = laws()["besiroglu-2024"]
    n = 1e10
    d = best_tokens(n)
    other = [float(law.loss(n * f, d / f)) for f in (0.97, 1.0, 1.03)]
    assert other[1] < other[0] and other[1] < other[2]


def test_a_law_of_ones_own_runs_forecasts_the_loss_and_what_to_expect_on_the_way(tmp_path: Path) -> None:
    rows, chance = ["N,D,loss"], np.random.default_rng(0)
    for n in np.geomspace(1e6, 1e8, 6):
        for d in (20 * n, 60 * n):
            loss = (1.8 + 400 / n**0.34 + 1000 / d**0.33) * math.exp(0.002 * chance.standard_normal())
            rows.append(f"{n},{d},{loss}")
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(rows), encoding="utf-8")
    path = gf.Forecaster.of(gf.scale_points([table], columns="N=N,D=D,loss=loss")).save(tmp_path / "law.json")
    law = read_law(path)
    assert law.is_own and law.a == pytest.approx(0.5, abs=0.1)
    found = gf.plan("gpt2-small", hardware="h100-sxm", count=8, tokens="10B", law=path)
    assert found.loss.low < found.loss.value < found.loss.high
    assert [row["tokens"] for row in found.loss_at][-1] == 1e10
    assert found.loss_at[0]["value"] > found.loss_at[-1]["value"]
    published = gf.plan("gpt2-small", hardware="h100-sxm", count=8, tokens="10B")
    assert "loss" not in published.quantities and not published.loss_at


@pytest.mark.parametrize(
    ("flops", "words"), [(0.0, "train nothing"), (1e6, "At least"), (float("nan"), "train nothing")]
)
def test_a_budget_too_small_for_anything_says_the_least(flops: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        best_size(flops)
