"""Traps that published fits fell into, each with the wrong result it gave and the right one that is given here.

The wrong results are reproduced with scipy, so that they are seen to be traps. The points are those of
../shared/data/scaling, which does not ship; where it is absent these are skipped by name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from simulated import grid, losses

from glassformer.scale.fit import Law, fit, resampled
from glassformer.scale.laws import FORMS, Array, centred
from glassformer.scale.points import Points, read_points
from glassformer.scale.published import published_law
from glassformer.scale.repeats import fit_repeats
from glassformer.scale.report import law_report
from glassformer.scale.solve import Huber, solve

DATA = Path(__file__).parents[3] / "shared" / "data" / "scaling"
published = pytest.mark.skipif(
    not DATA.is_dir(), reason="the published points (shared/data/scaling) are not here"
)


def chinchilla(every: bool = False) -> Points:
    where = {} if every else {"used_in_published_fit": "1"}
    return read_points(DATA / "chinchilla_epoch_245.csv", where=where)


def objective(x: Array, points: Points) -> float:
    """Hoffmann's: x = (log A, log B, log E, alpha, beta), Huber of the log loss, summed."""
    a, b, e, alpha, beta = x
    told = np.logaddexp(np.logaddexp(a - alpha * np.log(points.N), b - beta * np.log(points.D)), e)
    return float(Huber().rho(told - np.log(points.loss)).sum())


@published
@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_a_mean_or_a_sum_of_hubers_stops_scipy_at_its_start_and_not_this_fit(scale: str) -> None:
    points = chinchilla()
    share = 1 / len(points) if scale == "mean" else 1.0
    start = np.array([np.log(400), np.log(400), np.log(1.7), 0.34, 0.28])
    trapped = minimize(lambda x: share * objective(x, points), start, method="L-BFGS-B")
    assert trapped.success and objective(trapped.x, points) > 0.00115  # it says it converged
    assert trapped.x[4] / (trapped.x[3] + trapped.x[4]) == pytest.approx(0.457, abs=0.003)
    logs, _ = centred({"N": points.N, "D": points.D})
    form, y = FORMS["chinchilla"], np.log(points.loss)
    starts = form.starts(logs, y)
    found = solve(form, logs, y, starts, noise=Huber(), weights=np.full((len(starts), len(points)), share))
    best = found.theta[found.objective.argmin()]
    assert found.objective.min() / share <= 0.0010182741
    assert best[4] / (best[2] + best[4]) == pytest.approx(0.514, abs=5e-4)


@published
def test_two_printed_digits_make_another_law_so_all_are_stored() -> None:
    points = chinchilla()
    whole = published_law("hoffmann-2022").values
    stored = [np.log(whole["A"]), np.log(whole["B"]), np.log(whole["E"]), whole["alpha"], whole["beta"]]
    printed = [np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28]
    assert objective(np.array(stored), points) == pytest.approx(0.001231163, rel=1e-4)
    assert objective(np.array(printed), points) == pytest.approx(0.004121009, rel=1e-4)


def test_llama_3s_two_printed_digits_are_six_trillion_tokens_off() -> None:
    assert pytest.approx(10.5e12, rel=0.01) == 0.29 * 3.8e25**0.53
    law = published_law("llama3-2024")
    assert law.best(3.8e25)[1] == pytest.approx(16.55e12, rel=0.02) and "10.5T" in law.note


@published
def test_the_interval_of_a_is_that_of_replicates_that_left_their_start() -> None:
    law = fit(chinchilla(), bootstrap=1000)
    low, high = law.interval("a")
    assert high - low == pytest.approx(0.0766, rel=0.08)  # replicates that stay give 0.001
    assert law.converged == 1000


def test_each_replicate_is_as_good_as_the_best_of_all_starts() -> None:
    N, D = grid(4, 6)  # noqa: N806 # the field's symbols
    noise = np.exp(0.004 * np.random.default_rng(1).standard_normal(len(N)))
    points = Points.of(N, D, losses(N, D) * noise)
    law = fit(points, bootstrap=12)
    logs, _ = centred({"N": N, "D": D})
    y, form = np.log(points.loss), FORMS["chinchilla"]
    weights = resampled(points.runs, 12, seed=0)
    for theta, row in zip(law.draws, weights, strict=True):
        assert np.abs(theta - law.theta).max() > 1e-3
        starts = form.starts(logs, y)
        again = solve(form, logs, y, starts, noise=Huber(), weights=np.repeat(row[None], len(starts), axis=0))
        own = float((row * Huber().rho(form.log_loss(theta[None], logs)[0][0] - y)).sum())
        assert own == pytest.approx(again.objective.min(), rel=1e-4)


@published
def test_five_points_that_lie_off_are_shown_with_both_laws() -> None:
    law = fit(chinchilla(every=True), bootstrap=0)
    assert law.values["a"] == pytest.approx(0.565, abs=0.003)
    both = {row["what"]: row for row in law.off}
    rest = next(row for what, row in both.items() if what.startswith("without"))
    assert both["with all points"]["a"] == law.values["a"]
    assert rest["a"] == pytest.approx(0.51, abs=0.015)  # 0.514 without the authors' own five
    said = " ".join(str(doubt) for doubt in law.doubts)
    assert "0.565" in said and f"a is {rest['a']:.3g}" in said


@published
def test_whichever_runs_are_picked_what_repeating_is_worth_is_told_to_be_weakly_known() -> None:
    table = DATA / "datablations_c4.csv"
    every = read_points(table, where={"variant": "plain"})
    assert every.U is not None
    subsets = [read_points(table, where={"used_in_published_fit": "1"}), every, every.where(every.D / every.U < 100),
               every.where(every.N < 1e9)]  # fmt: skip
    found = [fit_repeats(points) for points in subsets]
    values = [one.R_D for one in found]
    assert max(values) > 20 * min(values)  # the authors' own subsets: 4.4 to 2,083
    assert all(one.weakly_identified or one.high / one.low < 10 for one in found)
    assert found[0].weakly_identified and found[1].weakly_identified
    for one in found:
        worth = [row for row in one.rows() if row["epochs"] in (2, 4, 8, 16)]
        assert len(worth) == 4 and all(row["low"] <= row["worth"] <= row["high"] + 1e-9 for row in worth)


@published
def test_what_is_counted_as_parameters_stands_beside_every_number_of_the_law(tmp_path: Path) -> None:
    path, laws = DATA / "gemstones_checkpoints.csv", dict[str, Law]()
    for column in ("N", "N_no_emb"):
        points = read_points(path, where={"phase": "cool_end"}, columns={"N": column})
        laws[column] = fit(points, bootstrap=0)
    first, second = laws["N"], laws["N_no_emb"]
    assert abs(first.values["a"] - second.values["a"]) > 0.02
    assert second.points is not None and "N_no_emb" in second.points.counting
    assert "N_no_emb" in second.facts()["counting"]
    assert "N_no_emb" in law_report(second, tmp_path / "law.html").read_text("utf-8")
