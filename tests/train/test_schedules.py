"""Schedules against the formulas of their papers, written out here a second time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassformer.train.config import ScheduleConfig
from glassformer.train.schedules import factor

KINDS = ["constant", "linear", "cosine", "noam", "inverse_sqrt", "wsd"]


def curve(num_steps: int, **settings: Any) -> list[float]:
    schedule = ScheduleConfig.model_validate(settings)
    return [factor(schedule, step, num_steps) for step in range(num_steps)]


def test_noam_gives_the_rates_of_the_2017_paper() -> None:
    width, warmup, num_steps = 512, 4000, 20_000
    ours = curve(num_steps, kind="noam", warmup=warmup)
    for t in (1, 2, 3999, 4000, 4001, 10_000, 20_000):
        paper = width**-0.5 * min(t**-0.5, t * warmup**-1.5)
        assert math.isclose((width * warmup) ** -0.5 * ours[t - 1], paper, rel_tol=1e-12)
    assert math.isclose(
        (width * warmup) ** -0.5 * max(ours), 6.98771242968684e-4
    )  # the peak people quote: 7e-4


def test_cosine_is_torchs_annealing_from_the_full_rate_to_the_final_one() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    rates = []
    for _ in range(50):
        optimizer.step()
        theirs.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert curve(50, kind="cosine", warmup=0, final=0.1) == pytest.approx(rates, rel=1e-9)


def test_cosine_is_half_way_down_in_the_middle_after_warm_up() -> None:
    rates = curve(110, kind="cosine", warmup=10, final=0.2)
    assert rates[9] == 1.0 and math.isclose(rates[59], 0.6) and math.isclose(rates[109], 0.2)


def test_linear_is_torchs_linear_after_warm_up() -> None:
    rates = curve(60, kind="linear", warmup=10, final=0.25)
    assert rates[:10] == pytest.approx([t / 10 for t in range(1, 11)])
    assert rates[9:] == pytest.approx([1 - 0.75 * t / 50 for t in range(51)])


def test_wsd_warms_up_stays_and_falls_over_its_last_fraction() -> None:
    rates = curve(100, kind="wsd", warmup=5, decay=0.2, final=0.0)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rates[5:80]) == {1.0}
    assert rates[80:] == pytest.approx([1 - t / 20 for t in range(1, 21)], abs=1e-12)


def test_wsd_without_decay_never_falls() -> None:
    assert curve(10, kind="wsd", warmup=0, decay=0.0) == [1.0] * 10


def test_inverse_sqrt_is_fairseqs() -> None:
    rates = curve(1000, kind="inverse_sqrt", warmup=100)
    assert rates[:100] == pytest.approx([t / 100 for t in range(1, 101)])
    assert [rates[t - 1] for t in (100, 400, 900)] == pytest.approx([1.0, 1 / 2, 1 / 3])


def test_warm_up_below_one_is_a_fraction_of_the_run_and_from_one_on_a_number_of_steps() -> None:
    assert curve(50, kind="constant", warmup=0.1) == curve(50, kind="constant", warmup=5)
    assert curve(3, kind="constant", warmup=1) == [1.0, 1.0, 1.0]


@given(
    st.sampled_from(KINDS), st.integers(1, 400), st.floats(0, 500) | st.floats(0, 0.999),
    st.floats(0, 1), st.floats(0, 1), st.data(),
)  # fmt: skip
def test_a_factor_is_a_number_from_0_to_1_whatever_the_settings(
    kind: str, num_steps: int, warmup: float, decay: float, final: float, data: st.DataObject
) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup": warmup, "decay": decay, "final": final})
    step = data.draw(st.integers(0, num_steps - 1))
    assert 0 <= factor(schedule, step, num_steps) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_no_steps_or_one_has_a_rate_too(kind: str) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind})
    assert all(0 < factor(schedule, 0, num_steps) <= 1 for num_steps in (0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_never_jumps(kind: str) -> None:
    rates = curve(1000, kind=kind, warmup=100, decay=0.3, final=0.1)
    assert max(abs(b - a) for a, b in pairwise(rates)) <= 1 / 100 + 1e-12
    assert rates[99] == 1.0  # whatever comes after, warm-up ends at the full rate
