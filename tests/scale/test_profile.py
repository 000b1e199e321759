"""Profiles agree with the bootstrap where a number is well held, and are open where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from simulated import TRUTH, grid, losses

from glassformer.errors import UsageError
from glassformer.scale.fit import FORMS, Law, fit
from glassformer.scale.held import hold
from glassformer.scale.laws import centred
from glassformer.scale.points import Points
from glassformer.scale.solve import Huber, Prior


@pytest.fixture(scope="module")
def law() -> Law:
    N, D = grid()  # noqa: N806 # the field's symbols
    noise = np.exp(0.004 * np.random.default_rng(3).standard_normal(len(N)))
    return fit(Points.of(N, D, losses(N, D) * noise, unit="nats per token"), bootstrap=400)


@pytest.mark.parametrize("number", ["E", "A", "B", "alpha", "beta", "a"])
def test_a_profile_is_about_as_wide_as_the_bootstrap(law: Law, number: str) -> None:
    found = law.profile(number)
    low, high = law.interval(number)
    assert 0.5 < np.log(found.high / found.low) / np.log(high / low) < 2
    assert found.low < law.values[number] < found.high and not found.weakly_identified
    at = min(found.rows(), key=lambda row: row["objective"])
    assert at[number] == pytest.approx(law.values[number], rel=1e-6)
    assert all(row["objective"] >= law.objective * (1 - 1e-9) for row in found.rows())


def test_profiles_of_simulated_ladders_hold_the_truth_about_as_often_as_they_say() -> None:
    N, D = grid(4, 7)  # noqa: N806
    truth = TRUTH | {"a": TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])}
    rng, held = np.random.default_rng(0), 0
    for _ in range(12):
        noise = 0.003 * rng.standard_normal(len(N)) + 0.05 * (rng.random(len(N)) < 0.02)
        law = fit(Points.of(N, D, losses(N, D) * np.exp(noise)), bootstrap=100)
        for number in ("E", "alpha", "beta", "a"):
            found = law.profile(number)
            held += found.low <= truth[number] <= found.high
    assert held / 48 >= 0.85  # 95 % of many; of 60 ladders of 45 runs 0.92 to 0.98, by number


def test_a_step_of_a_profile_is_the_best_fit_with_that_number_held(law: Law) -> None:
    assert law.points is not None
    points, step = law.points, law.profile("alpha").rows()[2]
    start = [np.log(step["E"]), np.log(step["A"]), np.log(step["B"]), step["beta"]]

    def cost(x: np.ndarray) -> float:
        told = np.exp(x[0]) + np.exp(x[1]) / points.N ** step["alpha"] + np.exp(x[2]) / points.D ** x[3]
        return 1e6 * float(Huber().rho(np.log(told) - np.log(points.loss)).sum())

    other = minimize(cost, np.array(start) + 0.01, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9,
                                                                                  "fatol": 1e-9})  # fmt: skip
    assert other.fun / 1e6 >= step["objective"] * (1 - 1e-6)
    assert other.fun / 1e6 == pytest.approx(step["objective"], rel=0.02)


@pytest.mark.parametrize("form", list(FORMS))
def test_every_number_that_can_be_held_is_what_it_is_held_at(form: str) -> None:
    N, D = grid(4, 6)  # noqa: N806
    logs, centres = centred({"N": N, "D": D, "C": 6 * N * D})
    logs["warm"] = (np.arange(len(N)) % 2).astype(float)
    kind = FORMS[form]
    theta = kind.starts(logs, np.log(losses(N, D)))
    for name, values in kind.values(theta, centres).items():
        if name in ("warm", "p", "S") or (form, name) in (("kaplan", "alpha_N"), ("tied", "beta")):
            continue  # no straight lines, or nothing that anybody asks for
        value = float(values[0]) * 1.1
        held = hold(kind, {name: value}, centres)
        phi = held.phi(theta)
        assert held.values(phi, centres)[name] == pytest.approx(value, rel=1e-8), name
        assert phi.shape[1] == theta.shape[1] - 1
        fitted, slopes = held.log_loss(phi, logs)
        step = np.zeros(phi.shape[1])
        step[0] = 1e-6
        numeric = (held.log_loss(phi + step, logs)[0] - held.log_loss(phi - step, logs)[0]) / 2e-6
        assert slopes[:, 0] == pytest.approx(numeric, rel=1e-4, abs=1e-6) and fitted.shape == numeric.shape


def test_what_one_ratio_of_tokens_leaves_open_has_no_end_or_is_flagged() -> None:
    N = np.geomspace(3e7, 3e9, 14)  # noqa: N806
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(14))
    law = fit(Points.of(N, 20 * N, losses(N, 20 * N) * noise, unit="nats"), bootstrap=200)
    assert law.profile("a").weakly_identified and law.profile("A").weakly_identified
    said = law.profile("a").sentences()
    assert "Weakly identified" in said[1] and law.profile("a").to_dict()["weakly_identified"] is True


def test_what_cannot_be_held_or_profiled_is_refused(law: Law) -> None:
    with pytest.raises(UsageError, match="'gamma' of the law chinchilla cannot be held"):
        law.profile("gamma")
    assert law.points is not None
    prior = Prior(np.zeros(5), np.full(5, np.inf))
    with pytest.raises(UsageError, match="priors"):
        fit(law.points, prior=prior, bootstrap=0).profile("a")
    with pytest.raises(UsageError, match="no prior"):
        fit(law.points, prior=prior, held={"alpha": 0.3}, bootstrap=0)
    held = fit(law.points, held={"alpha": 0.34, "beta": 0.37}, bootstrap=100)
    assert held.interval("alpha") == pytest.approx((0.34, 0.34)) and not held.profile("E").weakly_identified
