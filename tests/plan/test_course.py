"""Runs with their failures, as a plan needs them."""

import pytest

from glassformer.plan.course import outlook
from glassformer.plan.failures import rate_known
from glassformer.plan.goodput import Saving
from glassformer.plan.precision import PRECISIONS

DAY = 86_400.0


def of(accelerators, parameters, days, **others):
    return outlook(
        days * DAY, parameters=parameters, accelerators=accelerators, per_node=8, precision=PRECISIONS["bf16"], **others
    )  # fmt: skip


def test_llama_3_loses_a_tenth_of_its_time_and_is_stopped_some_hundred_times():
    own = of(16_384, 405.85e9, 49, rate=rate_known(419, 110_592), step_seconds=5.0)
    assert own.mtbf_hours == pytest.approx(3.09, abs=0.05)
    assert own.ends.within("goodput").value > 0.9  # Meta: higher than 90 %
    assert own.ends.within("interruptions").value == pytest.approx(419, rel=0.1)
    foreseen = of(16_384, 405.85e9, 49, step_seconds=5.0).ends.within("interruptions", 0.9)
    assert foreseen.low < 419 < foreseen.high


def test_a_laptop_ends_on_time():
    one = outlook(3600.0, parameters=1e7, accelerators=1, per_node=1, precision=PRECISIONS["fp32"])
    assert one.ends.within("days").high * 24 < 1.05
    assert one.first_order_holds


def test_a_hundred_thousand_accelerators_are_beyond_the_closed_form():
    one = of(100_000, 1e12, 30, asynchronous=False)
    assert not one.first_order_holds
    assert one.ends.within("days").high > 45


@pytest.mark.parametrize(
    ("accelerators", "parameters", "days"), [(10**7, 1e13, 3e3), (10**9, 1e15, 1e9), (1, 100, 1e-7)]
)
def test_sizes_beyond_all_reason_still_give_numbers(accelerators, parameters, days):
    one = of(accelerators, parameters, days)
    for name in ("days", "interruptions", "goodput"):
        between = one.ends.within(name)
        assert 0 <= between.low <= between.value <= between.high < float("inf")
    assert one.course.expected() >= one.course.work


def test_what_the_user_states_is_used():
    one = of(512, 7e9, 10, saving=Saving(33, 5), interval=1234.0, evaluation=0.0)
    assert (one.course.saving, one.course.interval, one.course.evaluation) == (Saving(33, 5), 1234.0, 0.0)
    fast, slow = of(512, 7e9, 10, storage=1e12), of(512, 7e9, 10, storage=1e9)
    assert fast.course.saving.write < slow.course.saving.write
    assert fast.course.interval < slow.course.interval


def test_only_large_models_go_back_after_spikes():
    assert of(512, 7e9, 10).course.rewinds_per_day == 0
    assert of(512, 176e9, 10).course.rewinds_per_day > 0
