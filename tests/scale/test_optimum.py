"""The best division of compute is the best there is: against closed forms, stationarity and brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import TRUTH, grid, losses

from glassformer.errors import UsageError
from glassformer.scale.fit import Law, fit
from glassformer.scale.isoflop import isoflop
from glassformer.scale.optimum import optimum
from glassformer.scale.points import Points
from glassformer.scale.repeats import Repeats, loss_of_repeated


@pytest.fixture(scope="module")
def law() -> Law:
    N, D = grid()  # noqa: N806 # the field's symbols
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))
    return fit(Points.of(N, D, losses(N, D) * noise, unit="nats per token"), bootstrap=100)


def test_the_best_size_is_that_of_the_closed_form_for_every_form_and_cost(law: Law) -> None:
    for flops in (1e19, 1e22, 1e25):
        v = law.values
        g = (v["alpha"] * v["A"] / (v["beta"] * v["B"])) ** (1 / (v["alpha"] + v["beta"]))
        found = optimum(law, flops=flops)
        assert pytest.approx(g * (flops / 6) ** v["a"], rel=1e-6) == found.N
        assert pytest.approx(flops) == 6 * found.N * found.D and found.unit == "nats per token"
    kaplan = fit(law.points, "kaplan", bootstrap=0)  # type: ignore[arg-type] # of `fit`
    found = optimum(kaplan, flops=1e22)
    for factor in (0.99, 1.01):
        assert kaplan.loss(found.N * factor, found.D / factor) > kaplan.loss(found.N, found.D)


def test_its_interval_is_that_of_each_draws_own_best(law: Law) -> None:
    drawn = law.kind.values(law.draws, law.centres)
    alpha, beta = drawn["alpha"], drawn["beta"]
    g = (alpha * drawn["A"] / (beta * drawn["B"])) ** (1 / (alpha + beta))
    own = g * (1e22 / 6) ** (beta / (alpha + beta))
    found = optimum(law, flops=1e22)
    assert found.interval is not None
    assert found.interval == pytest.approx(tuple(np.quantile(own, [0.1, 0.9])), rel=2e-3)


def test_asked_by_size_tokens_or_loss_the_same_point_comes_out(law: Law) -> None:
    by_cost = optimum(law, flops=1e22)
    assert pytest.approx(1e22, rel=1e-4) == optimum(law, N=by_cost.N).C
    assert pytest.approx(1e22, rel=1e-4) == optimum(law, D=by_cost.D).C
    assert by_cost.loss is not None
    assert pytest.approx(1e22, rel=1e-4) == optimum(law, loss=by_cost.loss).C


def test_how_flat_it_is_is_what_the_law_says_of_other_sizes(law: Law) -> None:
    found = optimum(law, flops=1e22)
    for row in found.rows():
        assert 6 * row["N"] * row["D"] == pytest.approx(1e22)
        more = law.loss(row["N"], row["D"]) / law.loss(found.N, found.D) - 1
        assert row["more loss"] == pytest.approx(more, abs=1e-9) and more >= 0
    assert found.close is not None
    for end in found.close:
        share = law.loss(end, 1e22 / 6 / end) / law.loss(found.N, found.D) - 1
        assert share == pytest.approx(0.01, abs=5e-4)
    assert "Half the size costs" in " ".join(found.sentences())


def test_serving_makes_the_best_model_smaller_and_nothing_near_is_better(law: Law) -> None:
    alone, served = optimum(law, flops=1e22), optimum(law, flops=1e22, serve=1e12)
    assert (
        served.N < alone.N and pytest.approx(1e22, rel=1e-6) == 6 * served.N * served.D + 2 * served.N * 1e12
    )
    for size in served.N * np.array([0.97, 1.03]):
        assert law.loss(size, (1e22 - 2 * size * 1e12) / (6 * size)) > law.loss(served.N, served.D)


def test_the_cheapest_way_to_a_loss_is_where_no_other_size_costs_less(law: Law) -> None:
    found = optimum(law, loss=2.3, serve=1e12)
    v = law.values
    sizes = np.geomspace(found.N / 30, found.N * 30, 4001)
    left = 2.3 - v["E"] - v["A"] / sizes ** v["alpha"]
    tokens = np.where(left > 0, (v["B"] / np.maximum(left, 1e-9)) ** (1 / v["beta"]), np.inf)
    costs = 6 * sizes * tokens + 2 * sizes * 1e12
    assert pytest.approx(costs.min(), rel=1e-4) == found.C + 2 * found.N * 1e12
    assert pytest.approx(sizes[costs.argmin()], rel=0.01) == found.N
    with pytest.raises(UsageError, match="below what this law reaches"):
        optimum(law, loss=0.5 * law.values["E"])


def test_text_that_runs_out_is_repeated_and_the_model_is_smaller_than_without_it(law: Law) -> None:
    repeats = Repeats(15.0, 5.0, 0.0, law.values, [], 8.0, 40.0)
    limited = optimum(law, flops=1e22, unique=5e9, repeats=repeats)
    assert limited.epochs == pytest.approx(limited.D / 5e9) and limited.epochs > 2
    base = {name: law.values[name] for name in ("E", "A", "B", "alpha", "beta")}
    best = loss_of_repeated(limited.N, limited.D, 5e9, 15.0, 5.0, base)
    for factor in (0.9, 1.1):
        assert loss_of_repeated(limited.N * factor, limited.D / factor, 5e9, 15.0, 5.0, base) > best
    assert limited.open is not None and limited.open[0] > limited.N > limited.open[1]
    for end, r_d in zip(limited.open, (8.0, 40.0), strict=True):
        assert end == pytest.approx(optimum(law, flops=1e22, unique=5e9, repeats=replace(repeats, R_D=r_d)).N)
    plenty = optimum(law, flops=1e22, unique=1e15, repeats=repeats)
    assert plenty.epochs == 1.0
    assert pytest.approx(optimum(law, flops=1e22).N, rel=0.01) == plenty.N
    assert any("R_D* = 15.4" in w for w in optimum(law, flops=1e22, unique=5e9).warnings)


def test_a_rule_of_the_best_size_is_an_optimum_too_and_says_nothing_of_loss() -> None:
    N, D = grid(6, 9)  # noqa: N806
    rule = isoflop(Points.of(N, D, losses(N, D)), bootstrap=50)
    found = optimum(rule, flops=1e21)
    assert pytest.approx(rule.best(1e21)) == (found.N, found.D) and found.loss is None and not found.rows()
    assert pytest.approx(1e21, rel=1e-4) == optimum(rule, N=found.N).C
    with pytest.raises(UsageError, match="says nothing of loss"):
        optimum(rule, flops=1e21, serve=1e12)


def test_half_a_question_and_laws_that_do_not_divide_are_refused(law: Law) -> None:
    for wrong in ({}, {"flops": 1e21, "N": 1e9}):
        with pytest.raises(UsageError, match="Give one of --flops"):
            optimum(law, **wrong)
    assert law.points is not None
    with pytest.raises(UsageError, match="does not weigh"):
        optimum(fit(law.points, "compute", bootstrap=0), flops=1e21)


def test_far_from_what_was_tried_an_optimum_warns() -> None:
    N, _ = grid(5, 9)  # noqa: N806
    D = 300 * N  # noqa: N806
    D = D * np.tile([1, 2, 4], 15)  # noqa: N806
    law = fit(Points.of(N, D, losses(N, D, TRUTH)), bootstrap=0)
    said = " ".join(optimum(law, flops=1e24).warnings)
    assert "never tried" in said and "times the compute" not in said
