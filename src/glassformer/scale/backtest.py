"""A law's own test: the runs of little compute forecast those of much, which are known.

At each cut the points with at most a 2nd, 4th, 8th, ... of the largest compute are fitted, and the points above are
forecast. What is kept of a cut is its `drift`: the root mean square of (error of log loss) / (e-folds of compute
beyond the fitted points), errors within the law's own noise left out. Cuts that leave fewer than 6 points, 4 sizes or
0.8 decades of compute to fit say nothing, and are not made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glassformer.scale.fit import Law
from glassformer.scale.points import Points

_CUTS = (2, 4, 8, 16, 32, 64, 128)
_POINTS, _SIZES, _DECADES = 6, 4, 0.8
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

    def row(self) -> dict[str, Any]:
        return {
            "fitted": self.fitted, "forecast": self.forecast, "beyond": self.beyond, "error": self.error,
            "a e-fold": self.drift,
        }  # fmt: skip


@dataclass(frozen=True)
class Backtest:
    """All cuts that could be made."""

    cuts: Sequence[Cut]

    def rows(self) -> list[dict[str, Any]]:
        """One row a cut."""
        return [cut.row() for cut in self.cuts]


def backtest(points: Points, make: Callable[[Points], Law]) -> Backtest:
    """Test `make` on the points' own larger runs."""
    cuts = []
    for factor in _CUTS:
        below = points.C.max() / factor * 1.0001 >= points.C
        part = points.where(below)
        if len(part) < _POINTS or len(np.unique(part.N)) < _SIZES:
            continue
        if np.log10(part.C.max() / part.C.min()) < _DECADES:
            continue
        ahead = np.log(points.C / part.C.max())
        test = ahead > _AHEAD
        if not test.any():
            continue
        law = make(part)
        off = law.log_loss(points.N[test], points.D[test])[0] - np.log(points.loss[test])
        noise = 1.4826 * float(np.median(np.abs(law.residuals)))
        beyond_noise = np.sqrt(np.maximum(0.0, off**2 - noise**2)) / ahead[test]
        drift = float(np.sqrt(np.mean(beyond_noise**2)))
        error = float(np.mean(np.expm1(off)))
        cuts.append(Cut(float(np.exp(ahead.max())), len(part), int(test.sum()), error, drift))
    return Backtest(cuts)
