"""A law's own test: the runs of little compute forecast those of much, which are known.

At each cut the points with at most a 2nd, 4th, 8th, ... of the largest compute are fitted, and the points above are
forecast: how far off they are on average, and how far off the forecast said they might be. The interval of the real
forecast is made so many times as wide:

    widened^2 = (16 + J z^2) / (16 + J)      z^2: median of (error / what was said)^2 over the cuts, at most 4

The published studies where such intervals were right count as 16 trials, and all cuts of one law as at most J = 2, for
they share most of their runs; on those studies z^2 told nothing of how far off the forecast of the largest runs was.
Cuts that leave fewer than 6 points, 4 sizes or 0.8 decades of compute to fit say nothing, and are not made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer.scale.points import Points

if TYPE_CHECKING:
    from glassformer.scale.forecast import Forecaster

_CUTS = (2, 4, 8, 16, 32, 64, 128)
_POINTS, _SIZES, _DECADES = 6, 4, 0.8
_BEFORE, _TRIALS, _MOST = 16, 2, 4.0
_AHEAD = 0.5
"""e-folds beyond the cut from which on an error counts: nearer, noise is all there is."""


@dataclass(frozen=True)
class Cut:
    """One forecast of known runs."""

    beyond: float
    """The largest compute forecast, as so many times the largest fitted."""
    fitted: int
    forecast: int
    error: float
    """Mean of forecast / loss - 1 over the points that are forecast."""
    drift: float
    """Root mean square error of log loss for each e-fold of compute beyond the fitted points, noise left out."""
    expected: float
    """The standard deviation that the forecast gave, on average."""

    def row(self) -> dict[str, Any]:
        return {
            "fitted": self.fitted, "forecast": self.forecast, "beyond": self.beyond, "error": self.error,
            "expected": self.expected, "a e-fold": self.drift,
        }  # fmt: skip


@dataclass(frozen=True)
class Backtest:
    """All cuts that could be made."""

    cuts: Sequence[Cut]

    @property
    def widened(self) -> float:
        """What intervals have to be multiplied by; a little less than 1 where the cuts went well."""
        if not self.cuts:
            return 1.0
        off = min(_MOST, float(np.median([(cut.error / cut.expected) ** 2 for cut in self.cuts])))
        trials = min(_TRIALS, len(self.cuts))
        return math.sqrt((_BEFORE + trials * off) / (_BEFORE + trials))

    def rows(self) -> list[dict[str, Any]]:
        """One row a cut."""
        return [cut.row() for cut in self.cuts]


def backtest(points: Points, make: Callable[[Points], Forecaster]) -> Backtest:
    """Test forecasters of `make` on the points' own larger runs."""
    cuts = []
    for factor in _CUTS:
        part = points.where(points.C.max() / factor * 1.0001 >= points.C)
        if len(part) < _POINTS or len(np.unique(part.N)) < _SIZES:
            continue
        if np.log10(part.C.max() / part.C.min()) < _DECADES:
            continue
        ahead = np.log(points.C / part.C.max())
        test = ahead > _AHEAD
        if not test.any():
            continue
        made = make(part)
        sizes, tokens = points.N[test], points.D[test]
        off = made.law.log_loss(sizes, tokens)[0] - np.log(points.loss[test])
        drift = np.sqrt(np.maximum(0.0, off**2 - made.noise**2)) / ahead[test]
        cuts.append(
            Cut(
                float(np.exp(ahead.max())), len(part), int(test.sum()), float(np.mean(np.expm1(off))),
                float(np.sqrt(np.mean(drift**2))), float(np.mean(made.sd(sizes, tokens))),
            )
        )  # fmt: skip
    return Backtest(cuts)
