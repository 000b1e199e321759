"""Curves for the eye: smoothed, and thinned without losing a spike.

    forwards:  m_t = beta m_(t-1) + (1 - beta) x_t,  corrected for its start as Adam does: m_t / (1 - beta^t)
    smoothed:  the mean of that and of the same from the end backwards, so that a falling curve does not lag
    half-life h in rows:  beta = 2^(-1/h)

A long curve has more rows than a screen has columns. Thinning keeps of each stretch the rows with the lowest
and the highest value, in order, so a spike that lasted one step is still drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def smooth(rows: Rows, name: str, *, half_life: float | None = None) -> list[dict[str, Any]]:
    """The rows with a finite `name`, smoothed; the half-life is a hundredth of the curve unless given."""
    finite = _finite(rows, name)
    beta = 2 ** (-1 / (half_life or max(1.0, len(finite) / 100)))
    values = [row[name] for row in finite]
    both = zip(_running_mean(values, beta), reversed(_running_mean(values[::-1], beta)), strict=True)
    return [{**row, name: (one + other) / 2} for row, (one, other) in zip(finite, both, strict=True)]


def thin(rows: Rows, name: str, *, most: int = 600) -> list[Mapping[str, Any]]:
    """At most `most` of the rows with a finite `name`: first, last, and the extremes of every stretch."""
    finite = _finite(rows, name)
    if len(finite) <= most:
        return list(finite)
    num_stretches = (most - 2) // 2
    inner = range(1, len(finite) - 1)
    kept = {0, len(finite) - 1}
    for number in range(num_stretches):
        begin, end = (1 + len(inner) * part // num_stretches for part in (number, number + 1))
        kept |= {pick(range(begin, end), key=lambda index: finite[index][name]) for pick in (min, max)}
    return [finite[index] for index in sorted(kept)]


def _finite(rows: Rows, name: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]


def _running_mean(values: Sequence[float], beta: float) -> list[float]:
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean = beta * mean + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        means.append(mean / weight)
    return means
