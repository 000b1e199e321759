"""From a law to a forecast: what loss, give or take how much, and how far beyond the runs that is.

    forecaster = Forecaster.of(points)
    forecaster.forecast(flops=1e24)              at the best N and D for that compute
    forecaster.forecast(N=7e9, D=2e12)

**The middle.** The law `coupled` with priors, weights and skewed noise, all of which scale/forecast_law.py states.

**The interval.** The variance of log L is the sum of three. The width is 0.96 times that, with which intervals of 90 %
hold 92 % of published runs instead of 94 %, and then what the law's own backtest asks for:

    fit      of the draws of what the fit leaves open, at that very N and D
    noise    of one run about the law
    drift    (0.002 x)^2, x = log(C / largest C fitted), for the law itself being a little wrong
    widened  by the tool's own backtest: runs of little compute forecast those of much (scale/backtest.py)

The interval is Student's with 6 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student_t

from glassformer.errors import UsageError
from glassformer.scale.backtest import Backtest, backtest
from glassformer.scale.fit import Law, fit
from glassformer.scale.forecast_law import SETTINGS, Settings, forecast_law
from glassformer.scale.laws import Array
from glassformer.scale.points import Points
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.honesty import Doubt

LEVELS = (0.5, 0.8, 0.9)
_DEGREES = 6
_USUAL = 0.96
_FEW = 200
"""Draws where a rough quantile will do."""
_REACH, _SECTIONS, _GOLDEN = 40.0, 42, (5**0.5 - 1) / 2
"""e-folds of N to either side where the best is sought, in so many steps."""
_DOUBLINGS = (-30, 160)
"""Of the runs' middle compute: where `flattens` looks."""
_FAR = 100.0
"""From this factor of compute beyond the largest run on, a forecast warns."""


@dataclass(frozen=True)
class Forecast:
    """One forecast of loss."""

    N: float
    D: float
    C: float
    loss: float
    intervals: Mapping[float, tuple[float, float]]
    beyond: Mapping[str, float]
    """How many times the largest C, N and D that were fitted; below 1 inside them."""
    unit: str | None
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What is forecast, and how far beyond the runs it is."""
        return {
            "parameters": show_count(self.N), "tokens": show_count(self.D), "FLOPs": f"{self.C:.3g}",
            "loss": f"{self.loss:.4g} {self.unit or '(unit not said)'}",
            **{f"{name} beyond the largest run": f"{ratio:.3g} x" for name, ratio in self.beyond.items()},
        }  # fmt: skip

    def _repr_html_(self) -> str:
        from glassformer.scale.report import card

        said = [f"{name}: {value}" for name, value in self.facts().items()]
        return card("A forecast of loss", said, self.rows(), warnings=self.warnings)

    def rows(self) -> list[dict[str, Any]]:
        """The interval at each level."""
        return [
            {"level": f"{level:.0%}", "low": low, "high": high}
            for level, (low, high) in self.intervals.items()
        ]


@dataclass(frozen=True)
class Forecaster:
    """A law made for forecasts, with what its own backtest says of it."""

    law: Law
    noise: float
    """Standard deviation of one run's log loss about the law."""
    drift: float
    """Of log loss, for each e-fold of compute beyond the runs."""
    tested: Backtest = field(repr=False)

    @property
    def widened(self) -> float:
        """How many times as wide the backtest makes every interval."""
        return self.tested.widened

    def to_dict(self, forecast: Forecast, gain: float) -> dict[str, Any]:
        """A forecast and all that belongs to it, for a file."""
        flat, low, high = self.flattens(gain)
        return {
            "N": forecast.N, "D": forecast.D, "C": forecast.C, "loss": forecast.loss, "unit": forecast.unit,
            "counting": self.law.points.counting if self.law.points else None,
            "tokenizer": self.law.points.tokenizer if self.law.points else None,
            "intervals": forecast.rows(), "beyond": dict(forecast.beyond), "noise": self.noise, "drift": self.drift,
            "widened": self.widened, "law": self.law.rows(), "backtest": self.tested.rows(),
            "allocation": self.allocation(forecast.C),
            "flattens": {"gain": gain, "C": flat, "low": low, "high": high}, "warnings": list(forecast.warnings),
            "doubts": [doubt.row() for doubt in self.doubts],
        }  # fmt: skip

    @classmethod
    def of(
        cls, points: Points, *, settings: Settings = SETTINGS, bootstrap: int = 1000, seed: int = 0
    ) -> Forecaster:
        """Fit `points` for forecasts, and test that on them; `bootstrap`: draws of what the fit leaves open."""
        tested = backtest(
            points, lambda part: cls.untested(part, settings=settings, bootstrap=_FEW, seed=seed)
        )
        return replace(cls.untested(points, settings=settings, bootstrap=bootstrap, seed=seed), tested=tested)

    @classmethod
    def untested(
        cls, points: Points, *, settings: Settings = SETTINGS, bootstrap: int = 1000, seed: int = 0
    ) -> Forecaster:
        """`of` without the test, and so with intervals that nothing has widened."""
        law, noise = forecast_law(points, settings=settings, draws=bootstrap, seed=seed)
        return cls(law, noise, settings.drift, Backtest(()))

    def sd(self, N: Array, D: Array) -> Array:  # noqa: N803
        """(point,): the standard deviation of the forecast's log loss at each N and D."""
        points = self.law.points
        assert points is not None
        draws = self.law.draws if len(self.law.draws) else self.law.theta[None]
        low, high = np.quantile(self.law.log_loss(N, D, theta=draws), [0.16, 0.84], axis=0)
        distance = np.log(np.maximum(1.0, N * D / (points.N * points.D).max()))
        sd: Array = np.sqrt(((high - low) / 2) ** 2 + self.noise**2 + (self.drift * distance) ** 2)
        return _USUAL * self.widened * sd

    @cached_property
    def doubts(self) -> list[Doubt]:
        """What is to be said against the runs, by the plain law of them (scale/honesty.py)."""
        assert self.law.points is not None
        return fit(self.law.points, bootstrap=200).doubts

    def save(self, path: str | Path) -> Path:
        """Write it as a .json that `load` reads without fitting again."""
        from glassformer.scale.law_file import write_law

        return write_law(path, self.law, self)

    @classmethod
    def load(cls, path: str | Path) -> Forecaster:
        """The forecaster in a file; where the file holds a law alone, one is made of its points."""
        from glassformer.scale.law_file import read_forecaster

        return read_forecaster(path)

    def forecast(
        self, *, flops: float | None = None, N: float | None = None, D: float | None = None  # noqa: N803
    ) -> Forecast:  # fmt: skip
        """The loss of a run: of given N and D, or the best N and D for `flops`.

        Raises UsageError where neither is given, or both.
        """
        if (flops is None) == (N is None or D is None):
            raise UsageError(
                "A forecast is of --flops, or of --params and --tokens.", do="Give one of the two."
            )
        if flops is not None:
            N, D = self.best(flops)  # noqa: N806
        assert N is not None and D is not None
        points = self.law.points
        assert points is not None
        at = np.array([N]), np.array([D])
        middle = float(self.law.log_loss(*at)[0, 0])
        C = 6 * N * D  # noqa: N806
        scale = float(np.median(points.C / (6 * points.N * points.D)))
        ratio = {"C": C * scale / points.C.max(), "N": N / points.N.max(), "D": D / points.D.max()}
        unit = float(self.sd(*at)[0]) * np.sqrt((_DEGREES - 2) / _DEGREES)
        intervals = {}
        for level in LEVELS:
            half = unit * float(student_t.ppf(0.5 + level / 2, _DEGREES))
            intervals[level] = (float(np.exp(middle - half)), float(np.exp(middle + half)))
        warnings = tuple(_warnings(ratio, N, D, points))
        return Forecast(N, D, C, float(np.exp(middle)), intervals, ratio, points.unit, warnings)

    def best(self, flops: float) -> tuple[float, float]:
        """(N*, D*): the lowest loss for 6 N D = flops."""
        N = float(_best(self.law, self.law.theta[None], np.array([flops]))[0][0, 0])  # noqa: N806
        return N, flops / (6 * N)

    def allocation(self, flops: float) -> list[dict[str, Any]]:
        """Loss for the same compute with smaller and larger models: how flat the best is."""
        best_n, _ = self.best(flops)
        lowest = self.law.loss(*self.best(flops))
        rows = []
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            N = best_n * factor  # noqa: N806
            D = flops / (6 * N)  # noqa: N806
            loss = self.law.loss(N, D)
            rows.append(
                {"N": N, "D": D, "tokens per parameter": D / N, "loss": loss, "more loss": loss / lowest - 1}
            )
        return rows

    def flat_facts(self, gain: float) -> dict[str, Any]:
        """Where doubling the compute buys less than `gain`."""
        middle, low, high = self.flattens(gain)
        return {
            f"doubling buys less than {gain:g} from": f"{middle:.2g} FLOPs (80 %: {low:.2g} to {high:.2g})"
        }

    def flattens(self, gain: float) -> tuple[float, float, float]:
        """(C, low, high): the compute at which doubling it lowers the best loss by less than `gain`; 80 % interval."""
        middle = float(_flat(self.law, self.law.theta[None], gain)[0])
        drawn = _flat(self.law, self.law.draws[: _FEW // 2], gain)
        low, high = np.quantile(drawn, [0.1, 0.9]) if len(drawn) else (middle, middle)
        return middle, float(low), float(high)


def _best(law: Law, theta: Array, flops: Array) -> tuple[Array, Array]:
    """(N of the lowest loss, that loss), each (fit, budget), for `flops` (budget,) or (fit, budget): golden section."""
    centre = law.centres["n"], law.centres["d"]
    budget = np.log(np.broadcast_to(flops, (len(theta), np.shape(flops)[-1])) / 6) - sum(centre)

    def loss(n: Array) -> Array:
        return np.exp(law.kind.log_loss(theta, {"n": n, "d": budget - n})[0])

    low, high = budget / 2 - _REACH, budget / 2 + _REACH
    for _ in range(_SECTIONS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        falls = loss(right) < loss(left)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    n = (low + high) / 2
    return np.exp(n + centre[0]), loss(n)


def _flat(law: Law, theta: Array, gain: float) -> Array:
    """(fit,): where doubling the compute lowers the best loss by `gain`; between doublings, along a power of C."""
    budgets = law.centres["n"] + law.centres["d"] + np.log(2) * np.arange(*_DOUBLINGS)
    best = _best(law, theta, np.exp(budgets))[1]
    buys = np.log(np.maximum(best[:, :-1] - best[:, 1:], 1e-300))
    C: Array = np.exp([np.interp(-np.log(gain), -each, budgets[:-1]) for each in buys])  # noqa: N806
    return C


def _warnings(ratio: Mapping[str, float], N: float, D: float, points: Points) -> list[str]:  # noqa: N803
    said = []
    if ratio["C"] > _FAR:
        said.append(
            f"{show_count(ratio['C'])} times the compute of the largest run: beyond {_FAR:.0f} times few studies have "
            "tested such intervals"
        )
    own = points.D / points.N
    if not own.min() / 2 <= D / N <= own.max() * 2:
        said.append(
            f"{D / N:.3g} tokens per parameter, where the runs have {own.min():.3g} to {own.max():.3g}: the balance "
            "of N and D is extrapolated as well"
        )
    return said
