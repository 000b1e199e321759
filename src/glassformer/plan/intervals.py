"""How uncertainty is carried from number to number: every quantity is log-normal, and independent of its neighbours.

    spread      sigma = ln(high / low) / (2 z)                                  z = 1.2816, the middle 80 %
    product     y = c prod x_i^p_i       ln y = ln c + sum p_i ln x_i           sigma^2 = sum (p_i sigma_i)^2
    sum         y = sum x_i              sigma^2 = sum (x_i sigma_i / y)^2      (first order: each moves y by its share)

Factors that are one quantity must be written as one factor with their powers added: two of them would be taken for
independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from glassformer.plan.quantity import Quantity

Z = 1.2815515655446004
"""The middle 80 % of a normal distribution lies within so many standard deviations."""


def spread(quantity: Quantity) -> float:
    """sigma of ln of the quantity; 0 where it is exact or 0."""
    if quantity.low <= 0 or quantity.high <= quantity.low:
        return 0.0
    return math.log(quantity.high / quantity.low) / (2 * Z)


def within(name: str, value: float, sigma: float, unit: str = "", *, formula: str = "", source: str = "",
           inputs: Sequence[Quantity] = ()) -> Quantity:  # fmt: skip
    """A quantity known to a factor of exp(sigma)."""
    reach = math.exp(Z * sigma)
    return Quantity(name, value, value / reach, value * reach, unit, formula, tuple(inputs), source)


def product(name: str, factors: Sequence[tuple[Quantity, float]], unit: str = "", *, constant: float = 1.0,
            formula: str = "", source: str = "") -> Quantity:  # fmt: skip
    """c prod x^p of independent factors, each with its power."""
    value, variance = constant, 0.0
    for one, power in factors:
        value *= one.value**power
        variance += (power * spread(one)) ** 2
    inputs = [one for one, _ in factors]
    return within(name, value, math.sqrt(variance), unit, formula=formula, source=source, inputs=inputs)


def total(name: str, parts: Sequence[Quantity], unit: str = "", *, formula: str = "") -> Quantity:
    """The sum of independent parts."""
    value = sum(one.value for one in parts)
    if value <= 0:
        return Quantity(name, value, unit=unit, formula=formula, inputs=tuple(parts))
    sigma = math.sqrt(sum((one.value / value * spread(one)) ** 2 for one in parts))
    return within(name, value, sigma, unit, formula=formula, inputs=parts)
