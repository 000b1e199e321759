"""Checkpoint intervals, against the published examples and the exact formula."""

import numpy as np
import pytest

from glassformer.plan.goodput import (
    Saving,
    best_interval,
    checkpoint_bytes,
    daly,
    goodput,
    lost_share,
    most_available,
    saving_asynchronous,
    stall_table,
    write_seconds,
    young,
)
from glassformer.plan.precision import PRECISIONS

HOUR = 3600.0
LLAMA = 3.09 * HOUR


def test_bloom_should_save_every_two_hours_and_loses_one_part_in_seventy():
    interval = young(40, 168 * HOUR)
    assert interval / HOUR == pytest.approx(1.9, abs=0.05)
    assert lost_share(interval, Saving(40), 168 * HOUR, 20 * 60) == pytest.approx(0.014, abs=0.001)


def test_llama_3_with_ten_seconds_saves_every_eight_minutes_and_loses_a_tenth():
    interval = young(10, LLAMA)
    assert interval / 60 == pytest.approx(7.9, abs=0.05)
    assert lost_share(interval, Saving(10), LLAMA, 600) == pytest.approx(0.096, abs=0.0005)


def test_llama_3_with_a_minute_loses_a_sixth():
    assert lost_share(young(60, LLAMA), Saving(60), LLAMA, 600) == pytest.approx(0.158, abs=0.001)


def test_the_interval_of_young_is_the_minimum_of_the_first_order():
    interval = young(10, LLAMA)
    best = lost_share(interval, Saving(10), LLAMA, 600)
    for other in (0.9 * interval, 1.1 * interval):
        assert lost_share(other, Saving(10), LLAMA, 600) > best


def test_daly_comes_within_a_thousandth_of_the_best_exact_goodput():
    for stall, mtbf in ((10, LLAMA), (60, LLAMA), (300, LLAMA), (40, 168 * HOUR), (60, 1200)):
        every = np.geomspace(stall / 10, 10 * mtbf, 20_000)
        best = goodput(every, Saving(stall), mtbf, 600).max()
        assert goodput(daly(stall, mtbf), Saving(stall), mtbf, 600) > best - 1e-3


def test_the_most_available_period_tends_to_young_where_failures_are_rare():
    assert most_available(10, 1e9, 600) == pytest.approx(young(10, 1e9), rel=1e-3)


def test_exact_goodput_agrees_with_the_first_order_where_little_is_lost():
    for mtbf in (1e5, 1e6, 1e7):
        interval = young(20, mtbf)
        first = 1 - lost_share(interval, Saving(20), mtbf, 300)
        assert goodput(interval, Saving(20), mtbf, 300) == pytest.approx(first, rel=0.002)


def test_a_write_beside_the_steps_costs_less_than_one_that_stops_them():
    beside, stopping = Saving(1, 59), Saving(60)
    here = goodput(best_interval(beside, LLAMA, 600), beside, LLAMA, 600)
    assert here > goodput(best_interval(stopping, LLAMA, 600), stopping, LLAMA, 600) + 0.05
    assert best_interval(Saving(0.001, 500), LLAMA, 600) >= 500  # one save at a time


def test_five_minute_checkpoints_cost_llama_3_twelve_days_more_than_ten_second_ones():
    ten, *_, five_minutes = stall_table(3.093, 600, work_days=49, accelerators=16_384)
    assert ten["goodput"] == pytest.approx(0.908, abs=0.001)
    assert five_minutes["days"] - ten["days"] == pytest.approx(12, abs=0.2)
    assert five_minutes["lost_accelerator_hours"] > 3 * ten["lost_accelerator_hours"]


def test_blooms_checkpoint_is_its_published_size_and_time():
    size = checkpoint_bytes(176.2e9, PRECISIONS["bf16"])
    assert size == pytest.approx(2.3e12, rel=0.1)
    taken = write_seconds(2.3e12, 48)
    assert taken.low < 40 < taken.high
    assert write_seconds(2.3e12, 48, storage=57.5e9).value == pytest.approx(40)


def test_storage_on_more_nodes_than_anyone_measured_is_between_the_fastest_seen_and_as_fast_a_node():
    taken = write_seconds(5.7e12, 2048)
    assert taken.low < 5 < 40 < taken.high
    assert saving_asynchronous(5.7e12, 2048, 16_384).stall == pytest.approx(1.03, abs=0.01)
