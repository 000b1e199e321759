"""What people type, read as numbers; and what they should not have typed, told to them."""

import math

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from glassformer.errors import UsageError
from glassformer.plan import given


@pytest.mark.parametrize(
    ("read", "text", "number"),
    [
        (given.tokens, "15T", 15e12), (given.tokens, "2.1e12", 2.1e12), (given.tokens, "300B tokens", 3e11),
        (given.tokens, "15 T", 15e12), (given.tokens, "1,000,000", 1e6), (given.tokens, 5, 5),
        (given.tokens, "20k", 2e4),
        (given.duration, "60 days", 60 * 86400), (given.duration, "55m", 3300), (given.duration, "2 weeks", 1209600),
        (given.duration, "12h", 43200), (given.duration, "90 minutes", 5400), (given.duration, "60", 60 * 86400),
        (given.duration, 0.5, 43200), (given.duration, ".5 days", 43200),
        (given.dollars, "$5M", 5e6), (given.dollars, "5M", 5e6), (given.dollars, "5M$", 5e6),
        (given.dollars, "1.5B USD", 1.5e9), (given.dollars, "20000", 2e4), (given.dollars, "$1,250.50", 1250.5),
        (given.dollars, "300 dollars", 300), (given.dollars, "US$3k", 3000),
        (given.flops, "1e24", 1e24), (given.flops, "1e30", 1e30), (given.flops, "500 EFLOP", 5e20),
        (given.flops, "3.8e25 FLOPs", 3.8e25), (given.flops, "2 YFLOP", 2e24),
        (given.memory, "80GB", 80e9), (given.memory, "16 GiB", 2**34), (given.memory, "1.5TB", 1.5e12),
    ],
)  # fmt: skip
def test_numbers_are_read_in_their_own_units(read, text, number):
    assert read(text) == pytest.approx(number)


def test_things_that_do_not_come_in_parts():
    assert given.whole("16384", "count") == 16384
    assert given.whole("16k", "count") == 16000
    assert given.whole("8 gpus", "count") == 8
    for odd in ("2.5", 2.5, "1e-3"):
        with pytest.raises(UsageError, match=r"count is .* whole number"):
            given.whole(odd, "count")


@pytest.mark.parametrize(
    ("read", "text", "kind"),
    [
        (given.tokens, "60 days", "a duration"), (given.tokens, "$5M", "money"),
        (given.tokens, "80GB", "a size in bytes"),
        (given.tokens, "1e24 FLOPs", "FLOPs"), (given.duration, "$5M", "money"), (given.duration, "1e24 FLOP", "FLOPs"),
        (given.dollars, "60 days", "a duration"), (given.dollars, "80GB", "a size in bytes"),
        (given.flops, "15T tokens", "a count"), (given.flops, "$3", "money"), (given.memory, "15T tokens", "a count"),
    ],
)  # fmt: skip
def test_units_of_something_else_are_named(read, text, kind):
    with pytest.raises(UsageError, match=f"which is {kind}") as told:
        read(text)
    assert told.value.expected
    assert text in str(told.value)


READERS = (given.tokens, given.duration, given.dollars, given.flops, given.memory, given.budget)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    "odd",
    ["0", 0, "-3", -3, "-$5M", "", "many", "1.2.3", "nan", math.nan, math.inf, "1e999", True, None, "3 4", "5M 6d",
     "1d 2 usd"],
)  # fmt: skip
def test_what_is_no_amount_is_refused(read, odd):
    with pytest.raises(UsageError) as told:
        read(odd)
    assert told.value.expected


def test_a_budget_is_refused_under_its_own_name():
    with pytest.raises(UsageError, match="spend is '0 days'"):
        given.budget("0 days", "spend")


def test_millions_are_not_minutes():
    with pytest.raises(UsageError, match="millions, or minutes"):
        given.duration("5M")
    assert given.dollars("5m") == 5e6


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5M", ("dollars", 5e6)), ("$5M", ("dollars", 5e6)), (2000, ("dollars", 2000)),
        ("60 days", ("seconds", 5184000)),
        ("12h", ("seconds", 43200)), ("1e24", ("flops", 1e24)), ("1e24 FLOPs", ("flops", 1e24)),
        ("5 EFLOP", ("flops", 5e18)),
    ],
)  # fmt: skip
def test_a_budget_is_money_time_or_flops_by_its_unit(text, budget):
    assert given.budget(text) == budget


@drawn(st.floats(1e-3, 1e30))
def test_what_a_number_says_is_what_is_read(number):
    assert given.flops(repr(number)) == number
    assert given.tokens(f"{number!r}") == number
    assert given.dollars(f"${number!r}") == number
