"""The few statistics that several rooms share."""

from __future__ import annotations

import math
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle value (mean of the two middle ones); NaN when there are none."""
    if not values:
        return math.nan
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss in nats over `num_bytes` of text, as bits per byte: nats / (ln 2 * bytes)."""
    return nats / (math.log(2) * num_bytes) if num_bytes else math.nan
