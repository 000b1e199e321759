"""Arithmetic with the numbers put in: `z = 0.8120 × 1.204 + (-0.5510) × 0.9101 + (the other 62 terms: 0.1003)`.

A line keeps its numbers as numbers, at full precision; what is printed is made from them, at four digits. So a line
can be computed again, by a reader from the print or by a test from the numbers. Signs in a line:

    + - × / ( )     as in school                  √( )  e^( )  ln( )  sin( )  cos( )  tanh( )  erf( )  max( , )
    ²  ³  ^( )      powers                        (the other 62 terms: 0.1003)   what they come to together

A sum shows its largest terms; the others are added up by themselves, not taken as what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from jaxtyping import Float
from torch import Tensor

from glassformer.model.config import Activation
from glassformer.model.network import NetworkActivation

Piece = str | float
"""A number (an int is printed as it is) or what stands between numbers."""
Pieces = tuple[Piece, ...]

_SHOWN = 3
_ENTRIES = 6


class Precise(float):
    """A number that is printed with twelve decimals, for a difference far smaller than it."""


class Given(float):
    """A number somebody wrote down, an epsilon or a rate: printed as it was written."""


@dataclass(frozen=True, slots=True)
class Line:
    """`left = right = value`."""

    left: str
    right: Pieces
    value: float
    note: str = ""
    """What to know about it: which entries the terms are."""

    @property
    def numbers(self) -> str:
        """The right side as it is printed."""
        text = ""
        for at, piece in enumerate(self.right):
            if isinstance(piece, str):
                text += piece
                continue
            after = self.right[at + 1] if at + 1 < len(self.right) else ""
            operand = text.endswith(("+ ", "- ", "× ", "/ ")) or str(after).startswith(("²", "³", "^"))
            text += f"({digits(piece)})" if piece < 0 and operand else digits(piece)
        return text

    @property
    def right_text(self) -> str:
        """What stands after the first `=`."""
        shown = digits(self.value)
        return shown if self.numbers == shown else f"{self.numbers} = {shown}"

    def to_dict(self) -> dict[str, Any]:
        note = {"note": self.note} if self.note else {}
        return {
            "name": self.left,
            "numbers": self.numbers,
            "value": self.value,
            "pieces": list(self.right),
        } | note


@dataclass(frozen=True, slots=True)
class Vector:
    """The first entries of a vector, and how many it has."""

    left: str
    entries: tuple[float, ...]
    count: int
    note: str = ""

    @classmethod
    def of(cls, left: str, x: Float[Tensor, " entry"], note: str = "") -> Vector:
        return cls(left, tuple(x[:_ENTRIES].tolist()), len(x), note)

    @property
    def numbers(self) -> str:
        entries = ", ".join(digits(entry) for entry in self.entries)
        return f"({entries}{', ...' if self.count > len(self.entries) else ''})"

    @property
    def right_text(self) -> str:
        return f"{self.numbers}, {self.count:,} entries"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.left, "entries": list(self.entries), "count": self.count}


def digits(number: float) -> str:
    """Four digits that count: 0.01235, 12.35, 1.235e-07; whole numbers as they are."""
    if isinstance(number, int):
        return str(number)
    if isinstance(number, Precise):
        return f"{number:.12f}"
    if isinstance(number, Given):
        return f"{Decimal(repr(float(number))).normalize():f}"
    if number == 0 or not math.isfinite(number):
        return "0" if number == 0 else str(number).replace("inf", "∞")
    size = math.floor(math.log10(abs(number)))
    return f"{number:.{max(0, 3 - size)}f}" if -5 <= size < 7 else f"{number:.3e}"


def sum_of_products(
    left: str,
    a: Float[Tensor, " term"],
    b: Float[Tensor, " term"],
    value: float,
    *,
    plus: float | None = None,
    shown: int = _SHOWN,
    names: Callable[[int], str] | None = None,
) -> Line:
    """left = Σ a_i × b_i [+ plus], by the largest terms."""
    products = a.double() * b.double()
    order = _largest(products, shown)
    right: list[Piece] = []
    for i in order:
        right += [" + " if right else "", float(a[i]), " × ", float(b[i])]
    return Line(
        left, (*right, *_rest(products, order), *_plus(plus)), value, _which(order, len(products), names)
    )


def plain_sum(
    left: str,
    terms: Float[Tensor, " term"],
    value: float,
    *,
    plus: float | None = None,
    shown: int = _SHOWN,
    names: Callable[[int], str] | None = None,
) -> Line:
    """left = Σ terms [+ plus], by the largest."""
    order = _largest(terms, shown)
    right: list[Piece] = []
    for i in order:
        right += [" + " if right else "", float(terms[i])]
    return Line(left, (*right, *_rest(terms, order), *_plus(plus)), value, _which(order, len(terms), names))


def mean_of(left: str, x: Float[Tensor, " term"], value: float, *, squares: bool = False) -> Line:
    """left = (Σ x_i or x_i²) / n."""
    summands = x.double().square() if squares else x
    order = _largest(summands, _SHOWN)
    right: list[Piece] = ["("]
    for i in order:
        right += [*([" + "] if len(right) > 1 else []), float(x[i]), *(["²"] if squares else [])]
    right += [*_rest(summands, order), ") / ", len(x)]
    return Line(left, tuple(right), value, _which(order, len(x), None))


def softmax_lines(
    names: Callable[[int], str],
    scores: Float[Tensor, " score"],
    shares: Float[Tensor, " score"],
    *,
    shown: int = 4,
    also: Sequence[int] = (),
) -> list[Line]:
    """S = Σ e^(score - largest) and, for the largest shares and `also`, share = e^(score - largest) / S."""
    wide, most = scores.double(), float(scores.max())
    powers = (wide - most).exp()
    order = _largest(powers, shown)
    total: list[Piece] = []
    for i in order:
        total += [" + " if total else "", "e^(", float(scores[i]), " - ", most, ")"]
    s = float(powers.sum())
    lines = [Line("S", (*total, *_rest(powers, order)), s)]
    for i in [*order, *(i for i in also if i not in order)]:
        lines.append(Line(names(i), ("e^(", float(scores[i]), " - ", most, ") / ", s), float(shares[i])))
    return lines


def activated(name: Activation | NetworkActivation, x: float) -> Pieces:
    """The activation of x, in numbers."""
    match name:
        case "relu":
            return "max(0, ", x, ")"
        case "relu_squared":
            return "max(0, ", x, ")²"
        case "gelu":
            return x, " / 2 × (1 + erf(", x, " / √(2)))"
        case "gelu_tanh":
            return x, " / 2 × (1 + tanh(√(2 / π) × (", x, " + 0.044715 × ", x, "³)))"
        case "silu":
            return x, " / (1 + e^(", -x, "))"
        case "sigmoid":
            return "1 / (1 + e^(", -x, "))"
        case "tanh":
            return "tanh(", x, ")"
        case "step":
            return "1 where ", x, " > 0, else 0"
        case "none":
            return (x,)


FORMULAS: dict[str, str] = {
    "relu": "max(0, x)",
    "relu_squared": "max(0, x)²",
    "gelu": "x / 2 × (1 + erf(x / √(2)))",
    "gelu_tanh": "x / 2 × (1 + tanh(√(2 / π) × (x + 0.044715 × x³)))",
    "silu": "x / (1 + e^(-x))",
    "sigmoid": "1 / (1 + e^(-x))",
    "tanh": "tanh(x)",
    "step": "1 where x > 0, else 0",
    "none": "x",
}
"""Each activation in symbols."""


def _largest(terms: Tensor, shown: int) -> list[int]:
    """The largest terms by size; one more where it would be the only one left over."""
    count = len(terms) if len(terms) <= shown + 1 else shown
    found: list[int] = terms.abs().double().sort(descending=True, stable=True).indices[:count].tolist()
    return found


def _rest(terms: Tensor, shown: Sequence[int]) -> Pieces:
    if len(shown) == len(terms):
        return ()
    left = terms.double().clone()
    left[list(shown)] = 0.0
    return f" + (the other {len(terms) - len(shown):,} terms: ", float(left.sum()), ")"


def _plus(number: float | None) -> Pieces:
    return () if number is None else (" + ", number)


def _which(order: Sequence[int], count: int, names: Callable[[int], str] | None) -> str:
    if names is not None:
        return "of " + ", ".join(names(i) for i in order)
    return f"entries {', '.join(map(str, order))} of {count:,}"
