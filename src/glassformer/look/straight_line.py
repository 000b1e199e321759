"""The integral of a gradient along a straight line, divided until it closes.

    P_i = (end_i - start_i) * integral over a from 0 to 1 of dF/dx_i (start + a (end - start)) da
    sum_i P_i = F(end) - F(start)                                     the gradient theorem

Each piece of the line is Gauss-Legendre quadrature. What it misses is known exactly, since the same theorem holds on
the piece: its parts must sum to F at its end less F at its beginning. While the gaps of all pieces exceed the
tolerance together, the worst one is halved. They are added without their signs: errors cannot hide each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = Mapping[str, Tensor]
"""Place -> what stands there, rows first."""
Scores = Callable[[Vectors], Tensor]
"""F of each row."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the line from 0 (start) to 1 (end), and what is known of it."""

    low: float
    high: float
    low_value: float
    high_value: float
    parts: Mapping[str, Tensor]
    """Place -> P on this piece, in float64."""

    @property
    def gap(self) -> float:
        """|sum P - (F(high) - F(low))|; infinite where it is no number."""
        gap = abs(sum(float(each.sum()) for each in self.parts.values()) - (self.high_value - self.low_value))
        return gap if math.isfinite(gap) else math.inf


class Line:
    """The line between two points, one row each; `at_once` of its points are computed in one pass."""

    def __init__(self, scores: Scores, start: Vectors, end: Vectors, *, at_once: int) -> None:
        self.scores, self.start, self.at_once = scores, start, at_once
        self.way = {place: end[place] - start[place] for place in start}

    def pieces(
        self, steps: int, most: int, low_value: float, high_value: float, tolerance: float
    ) -> tuple[list[Piece], int]:
        """Pieces whose gaps sum to at most `tolerance`, or as many as `most` points allow; and the points visited."""
        found, used, each = [self.piece(0.0, 1.0, steps, low_value, high_value)], steps, max(4, steps // 4)
        while sum(piece.gap for piece in found) > tolerance and used + 2 * each <= most:
            worst = max(range(len(found)), key=lambda at: found[at].gap)
            piece = found.pop(worst)
            middle = (piece.low + piece.high) / 2
            value = self.value(middle)
            found.append(self.piece(piece.low, middle, each, piece.low_value, value))
            found.append(self.piece(middle, piece.high, each, value, piece.high_value))
            used += 2 * each
        return found, used

    def value(self, at: float) -> float:
        """F there."""
        with torch.no_grad():
            return float(
                self.scores({place: self.start[place] + at * way for place, way in self.way.items()})[0]
            )

    def piece(self, low: float, high: float, steps: int, low_value: float, high_value: float) -> Piece:
        """Quadrature between two points of the line."""
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        half = (high - low) / 2
        at, weights = low + half * (nodes + 1), half * weights
        parts = {place: torch.zeros_like(way[0], dtype=torch.float64) for place, way in self.way.items()}
        for first in range(0, steps, self.at_once):
            chosen = slice(first, first + self.at_once)
            for place, gradient in self._gradients(at[chosen], weights[chosen]).items():
                parts[place] += gradient * self.way[place][0].double()
        return Piece(low, high, low_value, high_value, parts)

    def _gradients(self, at: NDArray[Any], weights: NDArray[Any]) -> dict[str, Tensor]:
        """Place -> the weighted sum of dF/dx over some points."""
        a, w = (torch.from_numpy(each).to(next(iter(self.way.values()))) for each in (at, weights))
        there = {
            place: (self.start[place] + a.view(-1, *[1] * (way.ndim - 1)) * way).detach().requires_grad_()
            for place, way in self.way.items()
        }
        with torch.enable_grad():
            found = torch.autograd.grad(self.scores(there).sum(), list(there.values()))
        return {
            place: torch.einsum("s,s...->...", w.double(), gradient.double())
            for place, gradient in zip(there, found, strict=True)
        }
