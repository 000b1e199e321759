"""The law behind a forecast: its form has the old ones as limits, and its fit does what each of its parts promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import grid, losses

from glassformer.errors import UsageError
from glassformer.scale.forecast_law import FLOOR, SETTINGS, forecast_law, prior_of, weights_of
from glassformer.scale.laws import FORMS, centred
from glassformer.scale.points import Points
from glassformer.scale.solve import Student


def ladder(noise: float = 0.003, seed: int = 0, unit: str | None = "nats per token") -> Points:
    N, D = grid()  # noqa: N806 # the field's symbols
    off = noise * np.random.default_rng(seed).standard_normal(len(N))
    return Points.of(N, D, losses(N, D) * np.exp(off), unit=unit)


def test_with_p_of_one_the_lacks_add_up_and_with_a_large_p_the_larger_is_all_there_is() -> None:
    logs, centres = centred({"N": grid()[0], "D": grid()[1]})
    kind = FORMS["coupled"]
    for log_p, combine in ((0.0, np.add), (6.0, np.maximum)):
        theta = np.array([[0.5, -0.7, 0.34, -0.9, 0.37, log_p]])
        v = {name: float(value[0]) for name, value in kind.values(theta, centres).items()}
        N, D = grid()  # noqa: N806
        larger = N + (v["S"] ** 2 * N) ** (1 / 3)
        lack = combine(v["A"] / larger ** v["alpha"], v["B"] / D ** v["beta"])
        assert np.exp(kind.log_loss(theta, logs)[0][0]) == pytest.approx(
            v["E"] + lack, rel=1e-3 if log_p else 1e-12
        )


def test_kaplans_joint_law_is_the_one_without_a_floor_and_p_of_one_over_alpha_d() -> None:
    N, D = np.meshgrid(np.geomspace(1e12, 1e14, 5), np.geomspace(1e9, 1e12, 5))  # noqa: N806
    N, D = N.ravel(), D.ravel()  # noqa: N806
    alpha_n, alpha_d, n_c, d_c = 0.076, 0.103, 6.4e13, 1.8e13  # Kaplan et al. 2020, table 2
    kaplan = ((n_c / N) ** (alpha_n / alpha_d) + d_c / D) ** alpha_d
    logs, centres = centred({"N": N, "D": D})
    theta = np.array([[-40.0, alpha_n * (np.log(n_c) - centres["n"]), alpha_n,
                       alpha_d * (np.log(d_c) - centres["d"]), alpha_d, -np.log(alpha_d)]])  # fmt: skip
    logs["n"] = logs["n"] + 1e3  # far above S, where M is N
    theta[0, 1] += 1e3 * alpha_n
    assert np.exp(FORMS["coupled"].log_loss(theta, logs)[0][0]) == pytest.approx(kaplan, rel=1e-9)


def test_skewed_noise_has_the_slope_of_its_cost_and_minds_losses_below_the_law_more() -> None:
    noise = Student(0.003, 4.0, 2.0)
    r = np.linspace(-0.02, 0.02, 41) + 1e-4
    numeric = (noise.rho(r + 1e-8) - noise.rho(r - 1e-8)) / 2e-8
    assert noise.psi_and_curvature(r)[0] == pytest.approx(numeric, rel=1e-5, abs=1e-4)
    assert noise.rho(np.array([0.01])) > noise.rho(np.array([-0.01]))  # r: fitted less measured
    assert Student(0.003).rho(r) == pytest.approx(Student(0.003).rho(-r))


def test_under_tuned_runs_hardly_move_a_forecast() -> None:
    points = ladder()
    bad = np.random.default_rng(1).random(len(points)) < 0.25
    worse = replace(points, loss=points.loss * np.exp(0.03 * bad))
    at = np.array([2e10]), np.array([4e11])

    def moved(skew: float) -> float:
        settings = replace(SETTINGS, skew=skew)
        a, b = (forecast_law(each, settings=settings)[0].log_loss(*at)[0, 0] for each in (points, worse))
        return abs(float(a - b))

    assert moved(2.0) < 0.012 and moved(2.0) < 0.8 * moved(1.0)


def test_order_and_the_units_of_n_and_d_change_no_forecast() -> None:
    points = ladder()
    order = np.random.default_rng(3).permutation(len(points))
    other = Points.of(points.N[order] / 1e6, points.D[order] / 1e9, points.loss[order], unit=points.unit)
    law, noise = forecast_law(points)
    same, same_noise = forecast_law(other)
    mine, theirs = (
        law.log_loss(np.array([1e11]), np.array([2e12])),
        same.log_loss(np.array([1e5]), np.array([2e3])),
    )
    assert theirs == pytest.approx(mine, rel=1e-7) and same_noise == pytest.approx(noise, rel=1e-7)


def test_draws_are_as_wide_as_a_long_walk_through_the_posterior() -> None:
    """Metropolis' walk, 200 walkers at once, over the posterior that the fit states: a check of Laplace."""
    points = ladder()
    law, scale = forecast_law(points)
    kind, y = law.kind, np.log(points.loss)
    logs, _ = centred({"N": points.N, "D": points.D})
    noise, weights, prior = (
        Student(scale, SETTINGS.degrees, SETTINGS.skew),
        weights_of(points),
        prior_of(points),
    )

    def cost(theta: np.ndarray) -> np.ndarray:
        return (weights * noise.rho(kind.log_loss(theta, logs)[0] - y)).sum(axis=1) + prior.cost(theta)

    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(np.cov(law.draws.T))
    walkers = law.draws[:200].copy()
    now, kept = cost(walkers), []
    for step in range(600):
        tried = walkers + 0.8 * rng.standard_normal(walkers.shape) @ root.T
        then = cost(tried)
        taken = np.log(rng.random(200)) < now - then
        walkers[taken], now[taken] = tried[taken], then[taken]
        if step >= 200 and step % 20 == 0:
            kept.append(walkers.copy())
    at = np.array([2e10, 1e11]), np.array([4e11, 2e12])
    walked, drawn = law.log_loss(*at, theta=np.concatenate(kept)), law.log_loss(*at, theta=law.draws)
    assert drawn.std(axis=0) == pytest.approx(walked.std(axis=0), rel=0.25)
    assert drawn.mean(axis=0) == pytest.approx(walked.mean(axis=0), abs=0.5 * walked.std(axis=0).max())


def test_the_floor_is_expected_by_the_unit_where_the_losses_are_above_it() -> None:
    nats, unknown = prior_of(ladder()), prior_of(ladder(unit=None))
    assert nats.sd[0] < unknown.sd[0] == SETTINGS.share[1]
    assert unknown.mean[0] == pytest.approx(np.log(SETTINGS.share[0] * ladder().loss.min()))
    low = replace(ladder(), loss=ladder().loss * 0.5)
    assert low.loss.min() < FLOOR["nats per token"]
    assert prior_of(low).sd[0] == SETTINGS.share[1]


def test_few_runs_that_fit_by_chance_do_not_claim_to_be_without_noise() -> None:
    points = ladder(noise=0.0).where(np.arange(45) % 6 == 0)
    assert forecast_law(points)[1] > 0.001
    assert forecast_law(ladder(noise=0.02))[1] > 0.006


def test_points_that_hold_no_law_are_refused() -> None:
    points = ladder()
    with pytest.raises(UsageError, match="same N"):
        forecast_law(Points.of(np.full(9, 1e8), points.D[:9], points.loss[:9]))
    with pytest.raises(UsageError, match="3 points cannot hold"):
        forecast_law(points.where(np.arange(45) < 3))
