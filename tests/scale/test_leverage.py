"""Which runs a law hangs on."""

from __future__ import annotations

import numpy as np
import pytest

from glassformer.scale.fit import fit, fit_law
from glassformer.scale.leverage import influential, leverage
from glassformer.scale.points import Points
from glassformer.scale.solve import Student


def simulated(**last: float) -> Points:
    """30 runs of a known law with 0.3 % noise; `last` changes the last one."""
    n, d = (side.ravel() for side in np.meshgrid(np.geomspace(1e7, 3e8, 6), np.geomspace(2e8, 2e10, 5)))
    n[-1], d[-1] = last.get("N", n[-1]), last.get("D", d[-1])
    loss = (1.8 + 480 / n**0.35 + 2000 / d**0.366) * np.exp(np.random.default_rng(1).normal(0, 0.003, 30))
    loss[-1] *= last.get("times", 1.0)
    return Points.of(n, d, loss, runs=[f"run-{i}" for i in range(30)], unit="nats per token")


@pytest.mark.parametrize("form", ["chinchilla", "kaplan", "frontier"])
def test_leverages_are_shares_that_sum_to_the_numbers_of_the_law(form: str) -> None:
    law = fit_law(simulated(), form, bootstrap=0)
    found = leverage(law)
    assert found.sum() == pytest.approx(len(law.theta)) and (found > 0).all() and (found <= 1 + 1e-12).all()


def test_leverage_is_how_far_a_fit_follows_one_point() -> None:
    points = simulated()
    law = fit(points, noise=Student(0.5), bootstrap=0)  # so wide that every residual counts with its square
    found = leverage(law)
    for place in (0, 13, 29):
        loss = points.loss.copy()
        loss[place] *= np.exp(1e-4)
        moved = fit(Points.of(points.N, points.D, loss), noise=Student(0.5), bootstrap=0)
        follows = (moved.log_loss(points.N, points.D) - law.log_loss(points.N, points.D))[0, place] / 1e-4
        assert follows == pytest.approx(found[place], abs=0.03)


def test_a_run_far_from_all_others_leads_the_table_with_the_law_that_there_is_without_it() -> None:
    points = simulated(N=3e10, D=2e12, times=1.02)
    law = fit_law(points, bootstrap=0)
    first = influential(law)[0]
    assert first["run"] == "run-29" and first["leverage"] > 0.2
    rest = fit_law(points.where(np.arange(30) < 29), bootstrap=0)
    assert first["alpha without"] == pytest.approx(rest.values["alpha"]) and law.influential[0] == first
    assert law.to_dict()["influential"][0]["run"] == "run-29"
