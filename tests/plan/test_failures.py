"""Failure rates, against the published projections and records."""

import numpy as np
import pytest

from glassformer.errors import UsageError
from glassformer.plan.failures import (
    Record,
    init_seconds,
    left_out,
    mtbf,
    planned_share,
    rate_known,
    rate_of_next,
    records,
    recovery,
)


def test_the_rate_of_rsc1_gives_its_published_projections():
    assert mtbf(16_384 / 8, 6.5) == pytest.approx(1.80, abs=0.005)
    assert mtbf(131_072 / 8, 6.5) == pytest.approx(0.23, abs=0.005)


def test_counted_failures_give_the_published_rates():
    published = {"Meta Llama 3 405B": 3.79, "Meta RSC-1": 6.5, "Meta OPT-175B": 15.1, "BLOOM Jean Zay": 2.98}
    found = {one.system: one.rate for one in records()}
    for system, rate in published.items():
        assert found[system] == pytest.approx(rate, rel=0.01)


def test_llama_3_failed_every_three_hours():
    assert mtbf(2048, 3.789) == pytest.approx(3.093, abs=0.001)


def test_an_interval_of_nine_tenths_holds_four_of_five_records_that_it_was_not_made_from():
    held = [between.low <= record.failures <= between.high for record, between in left_out(0.9)]
    assert len(held) == 5
    assert sum(held) >= 4


def test_failures_are_more_spread_than_poisson():
    between = rate_of_next().interruptions(nodes=2048, days=54)
    assert between.high - between.low > 10 * np.sqrt(between.value)
    assert between.low < 419 < between.high


def test_systems_that_fail_alike_leave_a_narrower_interval_than_systems_that_do_not():
    alike = rate_of_next([Record(f"s{i}", 10_000, 50, "") for i in range(5)]).within()
    apart = rate_of_next(
        [Record(f"s{i}", 10_000, f, "") for i, f in enumerate((10, 20, 50, 120, 250))]
    ).within()
    assert alike.high / alike.low < 0.5 * apart.high / apart.low
    assert alike.value == pytest.approx(5, rel=0.1)


def test_ones_own_records_replace_the_published_ones():
    own = rate_known(failures=100, node_days=10_000).within()
    assert own.value == pytest.approx(10, rel=0.03)
    assert 8 < own.low < own.high < 12


def test_starting_up_takes_the_published_times():
    assert init_seconds(16_384) == pytest.approx(200)
    assert init_seconds(98_000) == pytest.approx(900)
    assert init_seconds(8) == 5


def test_a_restart_is_the_sum_of_its_parts():
    back = recovery(16_384, restore=40, detect=100, reschedule=50, warm_up=30)
    assert back.seconds == pytest.approx(100 + 50 + 200 + 40 + 30)


def test_planned_stops_are_those_of_llama_3():
    assert planned_share() == pytest.approx(47 / 419)


@pytest.mark.parametrize(("nodes", "rate"), [(0, 5), (-1, 5), (8, 0)])
def test_no_nodes_and_no_failures_are_refused(nodes, rate):
    with pytest.raises(UsageError, match="More than 0"):
        mtbf(nodes, rate)


def test_no_records_are_refused():
    with pytest.raises(UsageError, match="At least one"):
        rate_of_next([])
