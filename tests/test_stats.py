"""Shared statistics against Python's and torch's."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from glassformer.stats import bits_per_byte, mean_interval, median, student_t


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_the_median_is_pythons(values):
    assert median(values) == statistics.median(values)


def test_nothing_has_no_median_and_no_bits():
    assert math.isnan(median([]))
    assert math.isnan(bits_per_byte(3.0, 0))


def test_a_uniform_guess_among_bytes_costs_eight_bits_each():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 30, 99, 1000, 1001, 50000])
def test_students_t_is_scipys(degrees):
    assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50))
def test_the_interval_of_a_mean_is_scipys(values):
    mean, low, high = mean_interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    assert mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert (low, high) == (pytest.approx(mean - half, abs=1e-6), pytest.approx(mean + half, abs=1e-6))


def test_one_value_has_a_mean_and_no_interval():
    mean, low, high = mean_interval([3.0])
    assert mean == 3.0 and math.isnan(low) and math.isnan(high) and math.isnan(mean_interval([])[0])
