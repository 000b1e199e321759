"""The run that is suggested really tells more than another of the same cost, and about as much as it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import losses

from glassformer.errors import UsageError
from glassformer.scale.backtest import Backtest
from glassformer.scale.fit import fit
from glassformer.scale.forecast import Forecaster
from glassformer.scale.next_run import next_runs
from glassformer.scale.points import Points
from glassformer.scale.solve import Student


def ladder(seed: int) -> Points:
    """12 runs of which all but a few have much the same tokens per parameter, with 1 % of noise."""
    N = np.repeat(np.geomspace(3e7, 1e9, 6), 2)  # noqa: N806 # the field's symbols
    D = N * np.tile([15.0, 40.0], 6)  # noqa: N806
    noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(N)))
    return Points.of(N, D, losses(N, D) * noise, unit="nats per token")


def with_run(points: Points, N: float, D: float, noise: float) -> Points:  # noqa: N803
    n, d = np.append(points.N, N), np.append(points.D, D)
    loss = float(losses(np.array([N]), np.array([D]))[0]) * np.exp(noise)
    return Points.of(n, d, np.append(points.loss, loss), unit=points.unit)


def plain(points: Points) -> Forecaster:
    """A forecaster without priors and backtest, so that what it is unsure of is what the runs leave open."""
    law = fit(points, noise=Student(0.01), bootstrap=100)
    return Forecaster(law, 0.01, 0.0, Backtest([]))


def test_the_suggested_run_narrows_a_forecast_more_than_a_random_one_of_its_cost_and_as_much_as_it_says() -> (
    None
):
    ratios, told, got = [], [], []
    for seed in range(16):
        points, rng = ladder(seed), np.random.default_rng(100 + seed)
        before = plain(points)
        forecast = before.forecast(N=1e10, D=1e13)
        found = next_runs(before, forecast)
        same = [run for run in found.grid if run["C"] == found.best["C"]]
        random = same[int(rng.integers(len(same)))]
        noise = 0.01 * float(rng.standard_normal())
        width = []
        for run in (found.best, random):
            low, high = (
                plain(with_run(points, run["N"], run["D"], noise)).forecast(N=1e10, D=1e13).intervals[0.8]
            )
            width.append(np.log(high / low))
        low, high = forecast.intervals[0.8]
        told.append(1 - found.best["narrower"])
        got.append(width[0] / np.log(high / low))
        ratios.append(width[0] / width[1])
    assert np.mean(ratios) < 0.95
    assert np.median(got) == pytest.approx(np.median(told), abs=0.1)


def test_candidates_stay_below_the_cap_and_near_what_was_tried_and_are_ranked_by_the_flop() -> None:
    points = ladder(0)
    made = Forecaster.of(points, bootstrap=100)
    found = next_runs(made, made.forecast(flops=1e22), cap=1e20)
    assert all(run["C"] <= 1e20 and 6 * run["N"] * run["D"] == pytest.approx(run["C"]) for run in found.grid)
    ratios = [run["D"] / run["N"] for run in found.grid]
    assert min(ratios) >= 15 / 4 - 1e-9 and max(ratios) <= 160 + 1e-9
    each = [run["for each 1 % of the cap"] for run in found.rows()]
    assert each == sorted(each, reverse=True)
    for run in found.rows():
        rivals = [other["narrower"] for other in found.grid if other["C"] == run["C"]]
        assert run["narrower"] == max(rivals)
    assert found.to_dict()["cap"] == 1e20 and "layer" not in found.chart()


def test_where_no_run_helps_that_is_said_and_without_a_bootstrap_nothing() -> None:
    points = ladder(1)
    made = Forecaster.of(points, bootstrap=100)
    sure = replace(made, noise=10.0)
    found = next_runs(sure, sure.forecast(flops=1e22), cap=1e18)
    assert found.rows() == [] and "noise and the distance" in found.sentences()[0]
    with pytest.raises(UsageError, match="bootstrap"):
        next_runs(Forecaster.of(points, bootstrap=0), made.forecast(flops=1e22))
