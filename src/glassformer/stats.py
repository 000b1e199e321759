"""The few statistics that several rooms share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache


def median(values: Sequence[float]) -> float:
    """The middle value (mean of the two middle ones); NaN when there are none."""
    if not values:
        return math.nan
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss in nats over `num_bytes` of text, as bits per byte: nats / (ln 2 * bytes)."""
    return nats / (math.log(2) * num_bytes) if num_bytes else math.nan


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95% interval, mean -+ t s / sqrt(n), with Student's t of n - 1 degrees of freedom and s the
    values' standard deviation. It takes the values for independent. NaN where there are too few."""
    n = len(values)
    if n < 2:
        return (values[0] if n else math.nan), math.nan, math.nan
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_t(n - 1) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


@cache
def student_t(degrees: int) -> float:
    """The t that 95% of Student's distribution lies within, by bisection; 1.96 for many degrees."""
    low, high = 1.95, 12.8
    if degrees > 1000:
        return 1.959964 + 2.372271 / degrees  # Cornish and Fisher: z + (z^3 + z) / 4 degrees
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within_t(middle, degrees) < 0.95 else (low, middle)
    return high


def _within_t(t: float, degrees: int) -> float:
    """P(|T| < t): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
