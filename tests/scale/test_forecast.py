"""A forecast is right where the law is known, holds the truth as often as it says, and says how far it reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated import TRUTH, grid, losses

from glassformer.errors import UsageError
from glassformer.scale.forecast import Forecaster
from glassformer.scale.points import Points


def ladder(seed: int, noise: float = 0.003, **law: Any) -> Points:
    N, D = grid(5, 7)  # noqa: N806 # the field's symbols
    y = losses(N, D, TRUTH | law) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    return Points.of(N, D, y, unit="nats per token")


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return Forecaster.of(ladder(0), bootstrap=200)


def test_ten_and_a_hundred_times_the_compute_are_forecast_within_their_intervals(
    forecaster: Forecaster,
) -> None:
    largest = float(ladder(0).C.max())
    widths = []
    for factor in (1, 10, 100):
        found = forecaster.forecast(flops=factor * largest)
        truth = float(losses(np.array([found.N]), np.array([found.D]))[0])
        low, high = found.intervals[0.9]
        assert low <= truth <= high and found.loss == pytest.approx(truth, rel=0.02)
        assert found.beyond["C"] == pytest.approx(factor)
        assert found.intervals[0.5][0] > found.intervals[0.8][0] > low
        widths.append(high - low)
    assert widths == sorted(widths)


def test_intervals_hold_laws_whose_exponents_are_not_those_of_the_prior() -> None:
    held = 0
    for seed in range(12):
        law = {"alpha": 0.28 + 0.01 * seed, "beta": 0.4 - 0.01 * seed}
        found = Forecaster.of(ladder(seed, **law), bootstrap=50).forecast(flops=30 * float(ladder(0).C.max()))
        truth = float(losses(np.array([found.N]), np.array([found.D]), TRUTH | law)[0])
        held += found.intervals[0.9][0] <= truth <= found.intervals[0.9][1]
    assert held >= 10


def test_the_best_size_has_the_lowest_loss_of_its_compute(forecaster: Forecaster) -> None:
    rows = forecaster.allocation(1e21)
    assert [row["more loss"] for row in rows][2] == 0 and all(row["more loss"] >= 0 for row in rows)
    n, d = forecaster.best(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    for factor in (0.99, 1.01):
        assert forecaster.law.loss(n * factor, d / factor) > forecaster.law.loss(n, d)


def test_where_it_flattens_doubling_buys_just_that(forecaster: Forecaster) -> None:
    for gain in (0.05, 0.01):
        middle, low, high = forecaster.flattens(gain)
        bought = forecaster.law.loss(*forecaster.best(middle)) - forecaster.law.loss(
            *forecaster.best(2 * middle)
        )
        assert bought == pytest.approx(gain, rel=1e-3) and low <= middle <= high


def test_a_law_that_fails_on_its_own_larger_runs_has_its_intervals_widened(forecaster: Forecaster) -> None:
    points = ladder(1)
    beyond = np.maximum(0.0, np.log(points.C / points.C.min()) - 3)
    bent = replace(points, loss=points.loss * np.exp(0.03 * beyond))
    widened = Forecaster.of(bent, bootstrap=100)
    alone = Forecaster.untested(bent, bootstrap=100)
    cuts = widened.tested.cuts
    assert len(cuts) >= 3 and np.mean([cut.error for cut in cuts]) < -0.02
    assert np.median([(cut.error / cut.expected) ** 2 for cut in cuts]) > 4
    assert widened.widened == pytest.approx(((16 + 2 * 4) / 18) ** 0.5)
    off = np.median([(cut.error / cut.expected) ** 2 for cut in forecaster.tested.cuts])
    assert off < 4 and forecaster.widened == pytest.approx(((16 + 2 * off) / 18) ** 0.5)
    at = np.array([1e10]), np.array([2e11])
    assert widened.sd(*at) == pytest.approx(widened.widened * alone.sd(*at))


def test_what_is_far_beyond_is_warned_of_and_half_a_question_refused(forecaster: Forecaster) -> None:
    said = " ".join(forecaster.forecast(N=1e13, D=1e11).warnings)
    assert "times the compute of the largest run" in said and "tokens per parameter" in said
    assert not forecaster.forecast(flops=float(ladder(0).C.max())).warnings
    for wrong in ({}, {"N": 1e9}, {"flops": 1e20, "N": 1e9, "D": 1e9}):
        with pytest.raises(UsageError, match="--flops"):
            forecaster.forecast(**wrong)
