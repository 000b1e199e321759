"""Curves for the eye keep what matters."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from glassformer.run.curves import smooth, thin

VALUES = st.lists(
    st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([math.nan, math.inf, None]), max_size=300
)


def rows(values: list[float | None]) -> list[dict[str, float | int | None]]:
    return [{"step": step, "loss": value} for step, value in enumerate(values)]


@given(values=VALUES, most=st.integers(4, 60))
def test_a_thinned_curve_is_short_and_in_order_and_keeps_both_ends_and_the_extremes(
    values: list[float | None], most: int
) -> None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    kept = thin(rows(values), "loss", most=most)
    assert len(kept) <= max(most, 0)
    assert [row["step"] for row in kept] == sorted(row["step"] for row in kept)
    if finite:
        shown = [row["loss"] for row in kept]
        assert (shown[0], shown[-1]) == (finite[0], finite[-1])
        assert min(shown) == min(finite) and max(shown) == max(finite)


@given(values=VALUES)
def test_smoothing_stays_between_the_extremes_and_keeps_the_steps(values: list[float | None]) -> None:
    finite = [row for row in rows(values) if row["loss"] is not None and math.isfinite(row["loss"])]
    smoothed = smooth(rows(values), "loss")
    assert [row["step"] for row in smoothed] == [row["step"] for row in finite]
    for row in smoothed:
        low, high = min(r["loss"] for r in finite), max(r["loss"] for r in finite)
        assert low - 1e-6 * abs(low) <= row["loss"] <= high + 1e-6 * abs(high)


def test_smoothing_leaves_a_straight_line_straight_in_the_middle() -> None:
    smoothed = smooth(rows([float(step) for step in range(400)]), "loss", half_life=5)
    assert abs(smoothed[200]["loss"] - 200) < 1e-6


def test_a_constant_curve_is_left_as_it_is() -> None:
    assert all(abs(row["loss"] - 3) < 1e-12 for row in smooth(rows([3.0] * 50), "loss"))
