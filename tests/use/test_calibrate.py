"""Reliability and temperature against closed forms, scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve

from glassformer.errors import ModelError, UsageError
from glassformer.use.calibrate import calibration, fit_temperature, reliability, scaled, wilson


def made_up(rows: int, classes: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose true temperature is known: each class is drawn from softmax(scores / temperature)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (rows, classes))
    chances = special.softmax(scores / temperature, axis=1)
    targets = (rng.random((rows, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return scores, np.minimum(targets, classes - 1)


def test_the_table_by_hand() -> None:
    """Two rows at 0.6, one right: 0.1 off. Three at 0.9, all right: 0.1 off. One at 0.5, wrong: 0.5 off."""
    found = reliability([0.6, 0.6, 0.9, 0.9, 0.9, 0.5], [1, 0, 1, 1, 1, 0], bins=10)
    assert [(b.rows, b.accuracy, pytest.approx(b.confidence)) for b in found.bins if b.rows] == [
        (1, 0.0, 0.5), (2, 0.5, 0.6), (3, 1.0, 0.9),
    ]  # fmt: skip
    assert found.ece == pytest.approx((1 * 0.5 + 2 * 0.1 + 3 * 0.1) / 6)
    assert (found.num_rows, found.accuracy) == (6, pytest.approx(4 / 6))
    assert len(found.bins) == 10 and len(found.rows()) == 3 and math.isnan(found.bins[0].accuracy)


@pytest.mark.parametrize("bins", [1, 5, 15])
@pytest.mark.parametrize(("binning", "theirs"), [("width", "uniform"), ("rows", "quantile")])
def test_bins_are_those_of_scikit_learn(bins: int, binning: str, theirs: str) -> None:
    rng = np.random.default_rng(bins)
    rows = 702  # 701 is prime: no row lies on an edge, where rounding would decide
    confidence = rng.beta(4, 2, rows)
    right = rng.random(rows) < confidence**1.5
    expected = calibration_curve(right, confidence, n_bins=bins, strategy=theirs)
    found = reliability(confidence, right, bins=bins, binning=binning).rows()
    assert np.allclose(
        expected, [[r["accuracy"] for r in found], [r["confidence"] for r in found]], atol=1e-12
    )


@given(hits=st.integers(0, 40), misses=st.integers(0, 40))
def test_the_interval_of_a_bin_is_scipys(hits: int, misses: int) -> None:
    if hits + misses == 0:
        assert all(map(math.isnan, wilson(0, 0)))
        return
    expected = stats.binomtest(hits, hits + misses).proportion_ci(0.95, "wilson")
    assert wilson(hits, hits + misses) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_of_calibrated_models_one_in_twenty_is_found_wanting_and_a_boaster_always() -> None:
    rng = np.random.default_rng(0)
    found = wanting = boasting = 0
    for seed in range(200):
        confidence = rng.uniform(0.5, 1, 300)
        honest = reliability(confidence, rng.random(300) < confidence, draws=200, seed=seed)
        wanting += not honest.looks_calibrated
        found += honest.ece > honest.ece_by_chance
        boasting += reliability(confidence, rng.random(300) < confidence - 0.2, draws=200).looks_calibrated
    assert 1 <= wanting <= 22  # binomial: 10 expected, standard deviation 3
    assert 60 <= found <= 140  # about half lie above the mean
    assert boasting == 0


def test_the_error_by_chance_is_the_closed_form_for_one_bin() -> None:
    """n coins of probability p in one bin: mean |hits / n - p|, by the binomial distribution."""
    n, p = 25, 0.7
    k = np.arange(n + 1)
    expected = (stats.binom.pmf(k, n, p) * np.abs(k / n - p)).sum()
    found = reliability(np.full(n, p), np.ones(n), bins=1, draws=40_000)
    assert found.ece_by_chance == pytest.approx(expected, rel=0.02) and found.ece == pytest.approx(0.3)


def test_probabilities_of_classes_are_judged_by_the_predicted_one_and_yes_and_no_by_yes() -> None:
    found = calibration([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], [0, 1])
    assert (found.accuracy, found.confidence) == (0.5, pytest.approx(0.55))
    marks = calibration([[0.8, 0.1], [0.6, 0.2]], [[1, 0], [0, 0]])
    assert (marks.num_rows, marks.accuracy, marks.confidence) == (4, 0.25, pytest.approx(0.425))


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_the_temperature_that_made_the_data_is_found_within_its_standard_error(true: float) -> None:
    pulls = []
    for seed in range(40):
        scores, targets = made_up(600, 5, true, seed)
        found = fit_temperature(scores, targets)
        pulls.append((found.value - true) / found.standard_error)
        assert found.loss <= found.loss_before
    assert abs(np.mean(pulls)) < 4 / 40**0.5 and 0.7 < np.std(pulls) < 1.35


@given(seed=st.integers(0, 1000), true=st.floats(0.2, 5), classes=st.integers(2, 8))
def test_the_minimum_is_the_one_that_scipy_finds(seed: int, true: float, classes: int) -> None:
    scores, targets = made_up(300, classes, true, seed)

    def loss(log_t: float) -> float:
        return -special.log_softmax(scores / np.exp(log_t), axis=1)[np.arange(300), targets].mean()

    expected = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(scores, targets)
    assert found.value == pytest.approx(math.exp(expected.x), rel=1e-5)
    assert found.loss == pytest.approx(expected.fun, abs=1e-12)
    assert found.loss_before == pytest.approx(loss(0.0), abs=1e-12)


def test_scaling_leaves_the_predictions_and_mends_the_error() -> None:
    scores, targets = made_up(4000, 6, 3.0)
    before = calibration(scaled(scores, 1.0), targets)
    value = fit_temperature(scores[:2000], targets[:2000]).value
    after = calibration(scaled(scores, value), targets)
    assert after.accuracy == before.accuracy
    assert not before.looks_calibrated and after.looks_calibrated and after.ece < before.ece / 5


def test_yes_and_no_answers_have_the_temperature_of_their_two_class_softmax() -> None:
    scores, targets = made_up(500, 2, 1.7)
    one = scores[:, 1] - scores[:, 0]
    both, single = fit_temperature(scores, targets), fit_temperature(one, targets)
    assert single.value == pytest.approx(both.value, rel=1e-9)
    assert np.allclose(scaled(one, 2.0, yes_or_no=True), scaled(scores, 2.0)[:, 1], atol=1e-12)
    assert scaled([800.0, -800.0], 1.0, yes_or_no=True).tolist() == [1.0, 0.0]


def test_a_temperature_that_chance_explains_or_that_hangs_on_few_rows_is_said() -> None:
    """Of temperatures fitted where 1 is true, about one in twenty seems to matter; where 2 is true, all do."""
    found = [fit_temperature(*made_up(400, 5, 1.0, seed)).matters for seed in range(200)]
    assert 1 <= sum(found) <= 22
    assert all(fit_temperature(*made_up(400, 5, 2.0, seed)).matters for seed in range(20))
    scores, targets = made_up(400, 5, 1.0, 3)
    assert "no better than 1" in fit_temperature(scores, targets).warnings[0]
    keep = np.argsort(scores.argmax(axis=1) == targets, kind="stable")[-300:]
    wrong = int((scores.argmax(axis=1) != targets)[keep].sum())
    few = np.concatenate([keep[wrong:], np.flatnonzero(scores.argmax(axis=1) != targets)[:4]])
    result = fit_temperature(scores[few], targets[few])
    assert result.num_wrong == 4 and result.warnings[0].startswith(f"Only 4 of {len(few)} rows are wrong")
    assert fit_temperature(*made_up(2000, 5, 2.0)).warnings == ()


def test_scores_of_any_size_are_fitted_without_overflow() -> None:
    scores, targets = made_up(400, 4, 1.0)
    found = fit_temperature(scores * 500 + 1e6, targets)
    assert found.value == pytest.approx(500 * fit_temperature(scores, targets).value, rel=1e-6)


def test_where_no_temperature_is_best_it_is_said() -> None:
    scores, _ = made_up(50, 3, 1.0)
    with pytest.raises(ModelError, match="every row is right"):
        fit_temperature(scores, scores.argmax(axis=1))
    with pytest.raises(ModelError, match="say nothing about the right"):
        fit_temperature(scores, scores.argmin(axis=1))


def test_what_does_not_fit_is_refused() -> None:
    for probabilities, targets, words in (
        ([[0.5, 0.5]], [0, 1], "do not belong together"),
        ([[0.5, 0.5]], [2], "from 0 to 1"),
        ([[0.5, 0.5]], [-100], "from 0 to 1"),
        ([[0.5, math.nan]], [0], "not finite"),
        (np.empty((0, 2)), np.empty(0), "no rows"),
    ):
        with pytest.raises(ModelError, match=words):
            calibration(probabilities, targets)
    with pytest.raises(UsageError, match="0 bins"):
        reliability([0.5], [1], bins=0)
