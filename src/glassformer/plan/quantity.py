"""A number of the plan that can be opened: its value and interval, its formula, what went into it, and from where.

    steps = Quantity("steps", 1.2e6, unit="steps", formula="D / (B s)", inputs=(tokens, batch))

The interval is the middle 80 %. `inputs` are quantities themselves, so a number opens down to what was given or read
from a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    unit: str = ""
    formula: str = ""
    inputs: tuple[Quantity, ...] = field(default=(), repr=False)
    source: str = ""
    """Where a number that is not computed comes from: what the user gave, or a table and its source."""

    def __post_init__(self) -> None:
        if math.isnan(self.low):
            object.__setattr__(self, "low", self.value)
        if math.isnan(self.high):
            object.__setattr__(self, "high", self.value)

    def to_dict(self) -> dict[str, Any]:
        """`value, low, high, unit, source`; the source of a computed number is its formula."""
        return {
            "value": self.value, "low": self.low, "high": self.high, "unit": self.unit,
            "source": self.source or self.formula,
        }  # fmt: skip

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Quantity]]:
        """It and all that went into it, with their depth."""
        yield depth, self
        for one in self.inputs:
            yield from one.walk(depth + 1)
