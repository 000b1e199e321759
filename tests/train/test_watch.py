"""What is called a spike, and what is not, against scipy's statistics and known curves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from glassformer.train.config import FaultsConfig
from glassformer.train.watch import Watch, deviation

CONFIG = FaultsConfig()


def after(losses: list[float], norms: list[float] | None = None, **config: float) -> Watch:
    watch = Watch(FaultsConfig.model_validate(config))
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        watch.admit(loss, norm)
    return watch


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_the_robust_deviation_is_scipys(values: list[float]) -> None:
    assert deviation(values) == pytest.approx(median_abs_deviation(values) * 1.4826, rel=1e-12, abs=1e-12)


def test_a_spike_begins_exactly_ten_deviations_above_the_median() -> None:
    losses = np.random.default_rng(0).normal(3.0, 0.2, 100).tolist()
    edge = np.median(losses) + 10 * 1.4826 * median_abs_deviation(losses)
    watch = after(losses)
    assert watch.judge(edge - 1e-9, 1.0) is None and watch.judge(edge + 1e-9, 1.0) == "loss_spike"
    assert watch.judge(-edge, 1.0) is None  # far below is no spike


def test_a_gradient_is_compared_as_a_factor() -> None:
    norms = np.exp(np.random.default_rng(0).normal(0.0, 0.3, 100)).tolist()
    logs = np.log(norms)
    edge = math.exp(np.median(logs) + 10 * 1.4826 * median_abs_deviation(logs))
    watch = after([3.0] * 100, norms)
    assert watch.judge(3.0, edge * 0.999) is None and watch.judge(3.0, edge * 1.001) == "gradient_spike"


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (1.0, math.inf), (-math.inf, math.nan)])
def test_what_is_not_finite_is_seen_from_the_first_step_on(loss: float, norm: float) -> None:
    assert Watch(CONFIG).judge(loss, norm) == "not_finite"


def test_nothing_is_a_spike_before_half_a_window_is_known() -> None:
    assert after([3.0] * 49).judge(1e9, 1e9) is None
    assert after([3.0] * 50).judge(1e9, 1e9) == "loss_spike"


def test_spikes_that_were_let_through_do_not_hide_the_next() -> None:
    losses = np.random.default_rng(1).normal(3.0, 0.05, 100)
    losses[60:90] *= 10
    assert after(losses.tolist()).judge(30.0, 1.0) == "loss_spike"
    mean, std = losses.mean(), losses.std()
    assert mean + 10 * std > 30  # as a mean would


def test_a_constant_curve_does_not_make_its_last_digits_spikes() -> None:
    watch = after([2.0] * 100, [0.5] * 100)
    assert watch.judge(2.199, 0.5 * 2.7) is None
    assert watch.judge(2.201, 0.5) == "loss_spike" and watch.judge(2.0, 0.5 * 2.8) == "gradient_spike"


def test_a_falling_curve_with_noise_and_heavy_tailed_gradients_has_no_fault() -> None:
    rng = np.random.default_rng(2)
    n = 4000
    falling = 2 + 5 * np.exp(-np.arange(n) / 300) + rng.normal(0, 0.05, n)
    norms = np.exp(rng.standard_t(5, n) * 0.2 - np.arange(n) / n)
    watch = Watch(CONFIG)
    for loss, norm in zip(falling.tolist(), norms.tolist(), strict=True):
        assert watch.judge(loss, norm) is None
        assert watch.admit(loss, norm) is None


def test_a_slow_rise_without_a_spike_is_divergence_and_is_told_once_for_each_rise() -> None:
    rng = np.random.default_rng(3)
    rising = np.concatenate([np.full(300, 2.0), 2.0 + 0.002 * np.arange(600)]) + rng.normal(0, 0.05, 900)
    watch, told = Watch(CONFIG), []
    for step, loss in enumerate(rising.tolist()):
        assert watch.judge(loss, 1.0) is None
        if watch.admit(loss, 1.0) == "divergence":
            told.append(step)
    assert 300 < told[0] < 500 and 1 <= len(told) <= 5, told


def test_a_watch_that_was_written_down_goes_on_to_the_bit() -> None:
    losses = np.random.default_rng(4).normal(3.0, 0.2, 250).tolist()
    whole, half = after(losses), after(losses[:120])
    again = Watch(CONFIG)
    again.load(json.loads(json.dumps(half.state())))
    for loss in losses[120:]:
        again.admit(loss, 1.0)
    assert again.state() == whole.state()
    Watch(CONFIG).load(json.loads(json.dumps(Watch(CONFIG).state())))
