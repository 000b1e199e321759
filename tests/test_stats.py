"""Shared statistics against Python's and torch's."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.stats import bits_per_byte, median


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_the_median_is_pythons(values):
    assert median(values) == statistics.median(values)


def test_nothing_has_no_median_and_no_bits():
    assert math.isnan(median([]))
    assert math.isnan(bits_per_byte(3.0, 0))


def test_a_uniform_guess_among_bytes_costs_eight_bits_each():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0)
