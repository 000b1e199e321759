"""Numbers with units, shown and read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import UsageError
from glassformer.units import (
    parse_bytes,
    parse_count,
    parse_seconds,
    show_bytes,
    show_count,
    show_flops,
    show_seconds,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (12_345_678, "12.3M"), (124_439_808, "124M"), (1.5e9, "1.5B"),
     (15e12, "15T"), (2e15, "2P"), (0.25, "0.25"), (-1500, "-1.5k"), (999_999, "1M"), (3e18, "3000P")],
)  # fmt: skip
def test_counts_are_shown_with_decimal_prefixes(number, text):
    assert show_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3_221_225_472, "3.0 GiB"), (2**40, "1.0 TiB"),
     (-2048, "-2.0 KiB")],
)  # fmt: skip
def test_bytes_are_shown_with_binary_prefixes(number, text):
    assert show_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00s"), (0.25, "0.25s"), (10, "10s"), (59.7, "1m 00s"),
     (90.2, "1m 30s"), (3599.6, "1h 00m"), (3660, "1h 01m")],
)  # fmt: skip
def test_durations_are_shown_in_two_units(seconds, text):
    assert show_seconds(seconds) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (12, "12 FLOP"),
        (1.234e15, "1.23 PFLOP"),
        (999.9e6, "1 GFLOP"),
        (5e18, "5 EFLOP"),
        (2.5e9, "2.5 GFLOP"),
    ],
)
def test_flops_are_shown_with_decimal_prefixes(flops, text):
    assert show_flops(flops) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [("15T", 15 * 10**12), ("20k", 20_000), ("1.5M", 1_500_000), ("1_000", 1000),
     ("1,000", 1000), ("2e3", 2000), (7, 7)],
)  # fmt: skip
def test_counts_are_read(text, number):
    assert parse_count(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("4 GiB", 2**32), ("512MB", 512_000_000), ("1kib", 1024), ("100", 100), ("0.5 GiB", 2**29), (9, 9)],
)
def test_sizes_are_read(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    ("text", "seconds"), [("55m", 3300), ("90s", 90), ("2h", 7200), ("1.5 h", 5400), ("10", 10), (2.5, 2.5)]
)
def test_durations_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("parse", [parse_count, parse_bytes, parse_seconds])
@pytest.mark.parametrize("text", ["", "many", "-3", "3 bananas", "1.2.3", "k", "3 4"])
def test_what_is_no_number_is_refused_with_an_example(parse, text):
    with pytest.raises(UsageError, match=r"Expected something like"):
        parse(text)


@given(st.integers(0, 10**15 - 1))
def test_a_shown_count_reads_back_within_its_three_digits(number):
    assert parse_count(show_count(number).replace("1P", "1000T")) == pytest.approx(number, rel=0.006)


@given(st.integers(0, 2**60))
def test_shown_bytes_read_back_within_their_digit(number):
    assert parse_bytes(show_bytes(number)) == pytest.approx(number, rel=0.06)
