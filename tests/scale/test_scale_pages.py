"""Pages and charts of laws: self-contained, with every number's unit and counting, and honest where nobody knows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from simulated import grid, losses

from glassformer import charts
from glassformer.scale import pictures, words
from glassformer.scale.checklist import checklist
from glassformer.scale.fit import Law, fit
from glassformer.scale.forecast import Forecaster
from glassformer.scale.isoflop import approaches, isoflop
from glassformer.scale.next_run import next_runs
from glassformer.scale.optimum import optimum
from glassformer.scale.points import Points
from glassformer.scale.repeats import fit_repeats, loss_of_repeated
from glassformer.scale.report import allocation_report, forecast_report, law_report, repeats_report


@pytest.fixture(scope="module")
def points() -> Points:
    N, D = grid(4, 7)  # noqa: N806 # the field's symbols
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))
    about = {"optimizer": "kind muon", "data": "paths tales", "schedule": "kind linear"}
    return Points.of(N, D, losses(N, D) * noise, unit="nats per token", tokenizer="bpe 4096", about=about)


@pytest.fixture(scope="module")
def law(points: Points) -> Law:
    return fit(points, bootstrap=100)


@pytest.fixture(scope="module")
def forecaster(points: Points) -> Forecaster:
    return Forecaster.of(points, bootstrap=100)


def repeated() -> Points:
    N = np.repeat([1e8, 4e8, 1.6e9], 6)  # noqa: N806
    U = np.tile([1e9, 4e9], 9)  # noqa: N806
    D = U * np.tile([1.0, 1.0, 3.0, 8.0, 20.0, 60.0], 3)  # noqa: N806
    y = [loss_of_repeated(n, d, u, 15.0, 5.0) for n, d, u in zip(N, D, U, strict=True)]
    return Points.of(N, D, np.array(y), U=U, unit="nats per token")


def self_contained(path: Path) -> str:
    page = path.read_text("utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page) and "<script" not in page
    assert "default-src 'none'" in page and "{" not in re.sub(
        r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.S
    )
    return page


def test_the_page_of_a_law_has_its_charts_doubts_numbers_and_checklist_and_nothing_from_outside(
    tmp_path: Path, law: Law
) -> None:
    pytest.importorskip("vl_convert")
    page = self_contained(law_report(law, tmp_path / "law.html"))
    for told in ("In words", "What is to be said against it", "How to divide compute", "How much the method matters",
                 "The checklist", "nats per token", "bpe 4096", "C = 6 N D", "kind muon"):  # fmt: skip
        assert told in page, told
    assert page.count("<svg") >= 4 and '<td class="warn">unknown</td>' in page


def test_the_page_of_a_forecast_says_its_interval_its_test_and_the_next_run(
    tmp_path: Path, forecaster: Forecaster, points: Points
) -> None:
    forecast = forecaster.forecast(flops=30 * float(points.C.max()))
    following = next_runs(forecaster, forecast)
    page = self_contained(forecast_report(forecaster, forecast, tmp_path / "f.html", following=following))
    low, high = forecast.intervals[0.9]
    for told in (
        f"{forecast.loss:.4g}",
        f"{low:.4g}",
        f"{high:.4g}",
        "Has it been right so far?",
        "Which run next",
    ):
        assert told in page, told


def test_the_pages_of_an_allocation_and_of_repeats_are_written_too(tmp_path: Path, points: Points) -> None:
    page = self_contained(allocation_report(isoflop(points, bootstrap=30), points, tmp_path / "a.html"))
    assert "3: chinchilla" in page and "2: isoflop" in page
    page = self_contained(repeats_report(fit_repeats(repeated()), repeated(), tmp_path / "r.html"))
    assert "identified" in page and "passes" in page


def test_without_the_extra_a_page_has_tables_instead(
    tmp_path: Path, law: Law, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)  # what an import finds when it is not installed
    page = law_report(law, tmp_path / "law.html").read_text("utf-8")
    assert "<svg" not in page and "pip install" in page


def test_every_chart_can_be_drawn(tmp_path: Path, law: Law, forecaster: Forecaster, points: Points) -> None:
    pytest.importorskip("vl_convert")
    found = isoflop(points, bootstrap=30)
    forecast = forecaster.forecast(flops=1e22)
    drawn = {
        "frontier": pictures.frontier(law), "residuals": pictures.residuals(law), "sizes": pictures.sizes(found),
        "parabolas": pictures.parabolas(points, found), "fan": pictures.fan(forecaster, forecast),
        "tested": pictures.tested(forecaster.tested), "epochs": pictures.epochs(fit_repeats(repeated())),
        "profile": law.profile("alpha").chart(), "flat": optimum(law, flops=1e22).chart(),
        "next": next_runs(forecaster, forecast).chart(), "power": pictures.frontier(fit(points, "size", bootstrap=0)),
    }  # fmt: skip
    for name, spec in drawn.items():
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec, name
        text = charts.svg(spec)
        assert text and "<svg" in text and "NaN" not in text, name
    charts.save(drawn["fan"], tmp_path / "fan.png")
    assert (tmp_path / "fan.png").stat().st_size > 10_000


def test_the_fan_is_the_forecasts_own_interval_at_every_compute(
    forecaster: Forecaster, points: Points
) -> None:
    spec = pictures.fan(forecaster, forecaster.forecast(flops=1e22))
    rows = spec["layer"][0]["data"]["values"]
    for row in rows[:: len(rows) // 5]:
        told = forecaster.forecast(flops=row["C"])
        assert (row["low90%"], row["high90%"]) == pytest.approx(told.intervals[0.9])
    assert rows[-1]["high90%"] / rows[-1]["low90%"] > rows[0]["high90%"] / rows[0]["low90%"]


def test_the_checklist_says_what_is_known_and_that_the_rest_is_unknown(
    law: Law, forecaster: Forecaster
) -> None:
    answers = {answer.question: answer for answer in checklist(law, forecaster)}
    assert len({answer.group for answer in answers.values()}) == 4
    assert answers["Optimizer"].answer == "kind muon" and answers["Tokenizer"].answer == "bpe 4096"
    assert answers["Precision"].answer == "unknown" and not answers["Precision"].known
    assert "cuts" in answers["Tested on runs held back"].answer
    bare = Points.of(*grid(2, 4), losses(*grid(2, 4)))
    few = {answer.question: answer.answer for answer in checklist(fit(bare, bootstrap=0))}
    assert few["Unit of the loss"] == few["Intervals"] == few["Optimizer"] == "unknown"


def test_sentences_carry_the_laws_own_numbers_and_units(law: Law, forecaster: Forecaster) -> None:
    said = " ".join([words.title(law), words.counting(law), *words.of_law(law), words.of_fit(law)])
    low, high = law.interval("a")
    assert f"({low:.3g} to {high:.3g})" in said and "nats per token" in said and "C = 6 N D" in said
    assert f"{10 ** -law.values['alpha']:.0%}" in said
    for form in ("kaplan", "frontier", "compute"):
        assert law.points is not None and len(words.of_law(fit(law.points, form, bootstrap=20))) >= 2
    forecast = forecaster.forecast(flops=1e22)
    told = " ".join(words.of_forecast(forecaster, forecast, 0.01))
    assert "times out of ten" in told and "nats per token" in told and "off on average" in told


def test_tables_for_people_keep_every_row_and_write_counts_shares_and_flops_so_that_they_can_be_read() -> (
    None
):
    rows = [
        {"N": 7.3e9, "C": 1.2e21, "more loss": 0.0031, "note": "x"},
        {"N": 1e6, "C": 6e18, "more loss": 0.0},
    ]
    assert words.shown(rows) == [
        {"parameters": "7.3B", "FLOPs": "1.2e21", "more loss": "0.31%", "note": "x"},
        {"parameters": "1M", "FLOPs": "6e18", "more loss": "0%"},
    ]


def test_notebooks_get_sentences_and_tables_of_laws_forecasts_optima_and_rules(
    law: Law, forecaster: Forecaster, points: Points
) -> None:
    forecast = forecaster.forecast(flops=1e22)
    things = (law, forecast, isoflop(points, bootstrap=30), fit_repeats(repeated()), optimum(law, flops=1e22),
              next_runs(forecaster, forecast))  # fmt: skip
    for thing in things:
        shown = thing._repr_html_()
        assert shown.startswith("<div>") and "<table>" in shown and "<script" not in shown, type(thing)


def test_where_parabolas_and_the_law_differ_both_are_told(points: Points) -> None:
    rows = {row["approach"]: row for row in approaches(points, 1e22, bootstrap=50)}
    assert set(rows) == {"2: isoflop", "3: chinchilla"}
    for row in rows.values():
        assert row["a from"] < row["a"] < row["a to"]
        assert 6 * row["N*"] * row["D*"] == pytest.approx(1e22)


def test_of_thousands_of_points_a_chart_draws_a_part_over_all_compute_and_says_so() -> None:
    N, D = grid(60, 40)  # noqa: N806
    many = fit(Points.of(N, D, losses(N, D), unit="nats per token"), bootstrap=0)
    for spec in (pictures.frontier(many), pictures.residuals(many)):
        drawn = next(
            layer["data"]["values"] for layer in spec["layer"] if len(layer["data"]["values"]) > 1000
        )
        assert len(drawn) == 1500
        costs = [row["C"] for row in drawn]
        assert min(costs) == (6 * N * D).min() and max(costs) == (6 * N * D).max()
    assert pictures.frontier(many)["title"].startswith("1,500 of 2,400 points")
