"""How uncertainty is carried from number to number: every quantity is log-normal, and independent of its neighbours.

    spread      down = ln(value / low) / z, up = ln(high / value) / z           z = 1.2816, the middle 80 %
    product     y = c prod x_i^p_i       up^2 = sum (p_i up_i)^2, with down_i in its place where p_i < 0; down likewise

Both halves are carried apart, since some intervals are lopsided (a price's quotes). Factors that are one quantity must
be written as one factor with their powers added: two of them would be taken for independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from glassformer.plan.quantity import Quantity

Z = 1.2815515655446004
"""The middle 80 % of a normal distribution lies within so many standard deviations."""


def spread(quantity: Quantity) -> tuple[float, float]:
    """(down, up): sigma of ln of the quantity below and above its value; 0 where it is exact or 0."""
    if quantity.value <= 0:
        return 0.0, 0.0
    low, high = max(quantity.low, 1e-300), quantity.high
    return max(0.0, math.log(quantity.value / low)) / Z, max(0.0, math.log(high / quantity.value)) / Z


def within(name: str, value: float, sigma: float | tuple[float, float], unit: str = "", *, formula: str = "",
           source: str = "", inputs: Sequence[Quantity] = ()) -> Quantity:  # fmt: skip
    """A quantity known to a factor of exp(sigma), or of exp(down) and exp(up)."""
    down, up = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    low, high = value * math.exp(-Z * down), value * math.exp(Z * up)
    return Quantity(name, value, low, high, unit, formula, tuple(inputs), source)


def product(name: str, factors: Sequence[tuple[Quantity, float]], unit: str = "", *, constant: float = 1.0,
            formula: str = "", source: str = "") -> Quantity:  # fmt: skip
    """c prod x^p of independent factors, each with its power."""
    value, down, up = constant, 0.0, 0.0
    for one, power in factors:
        value *= one.value**power
        below, above = spread(one) if power > 0 else spread(one)[::-1]
        down, up = math.hypot(down, power * below), math.hypot(up, power * above)
    inputs = [one for one, _ in factors]
    return within(name, value, (down, up), unit, formula=formula, source=source, inputs=inputs)
