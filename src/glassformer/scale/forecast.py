"""From a law to a forecast: what loss, give or take how much, and how far beyond the runs that is.

    forecaster = Forecaster.of(points)
    forecaster.forecast(flops=1e24)              at the best N and D for that compute
    forecaster.forecast(N=7e9, D=2e12)

**The middle.** The law `chinchilla`, fitted with Student's noise (4 degrees of freedom, as wide as the residuals) and
weak priors: alpha and beta normal around 0.33, the floor E log-normal around 0.65 of the lowest loss (`PRIOR`).
Where runs end, exponents and floor trade places freely, and a forecast far beyond hangs on what ends that trade.

**The interval.** The variance of log L is the sum of three:

    fit      of the bootstrap's replicates at that very N and D
    noise    of one run about the law: the residuals'
    drift    (k x)^2, x = log(C / largest C fitted), k the law's error for each e-fold of compute beyond its runs

k is what the tool's own backtest finds (scale/backtest.py): the points of the lowest compute forecast those above,
at several cuts. A ladder has few cuts, so k is a mean with `DRIFT`, which the published studies have, counted as
`_CUTS` cuts. The interval is Student's with 6 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student_t

from glassformer.errors import UsageError
from glassformer.scale.backtest import Backtest, backtest
from glassformer.scale.fit import Law, fit, student_for
from glassformer.scale.laws import Array
from glassformer.scale.points import Points
from glassformer.scale.solve import Prior
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.honesty import Doubt

PRIOR = {"alpha": (0.33, 0.03), "beta": (0.33, 0.03), "floor": (0.65, 0.1)}
"""Mean and standard deviation of the exponents, and of the floor as a share of the lowest loss (of its logarithm)."""
DRIFT = 0.012
"""Error of log loss for each e-fold of compute beyond the runs, over the published studies of docs/scale.md."""
LEVELS = (0.5, 0.8, 0.9)
_CUTS = 2.0
_DEGREES = 6
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
    """k: for each e-fold of compute beyond the runs."""
    tested: Backtest = field(repr=False)

    def to_dict(self, forecast: Forecast, gain: float) -> dict[str, Any]:
        """A forecast and all that belongs to it, for a file."""
        flat, low, high = self.flattens(gain)
        return {
            "N": forecast.N, "D": forecast.D, "C": forecast.C, "loss": forecast.loss, "unit": forecast.unit,
            "counting": self.law.points.counting if self.law.points else None,
            "tokenizer": self.law.points.tokenizer if self.law.points else None,
            "intervals": forecast.rows(), "beyond": dict(forecast.beyond), "noise": self.noise, "drift": self.drift,
            "law": self.law.rows(), "backtest": self.tested.rows(), "allocation": self.allocation(forecast.C),
            "flattens": {"gain": gain, "C": flat, "low": low, "high": high}, "warnings": list(forecast.warnings),
            "doubts": [doubt.row() for doubt in self.doubts],
        }  # fmt: skip

    @classmethod
    def of(cls, points: Points, *, bootstrap: int = 400, seed: int = 0) -> Forecaster:
        """Fit `points` for forecasts, and test that on them."""
        law = _robust(points, bootstrap=bootstrap, seed=seed)
        tested = backtest(points, lambda part: _robust(part, bootstrap=0))
        seen = sum(cut.drift**2 for cut in tested.cuts)
        drift = float(np.sqrt((seen + _CUTS * DRIFT**2) / (len(tested.cuts) + _CUTS)))
        return cls(
            law, max(1e-3, float(np.sqrt(np.mean(np.clip(law.residuals, -0.05, 0.05) ** 2)))), drift, tested
        )

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
        drawn = (
            self.law.log_loss(*at, theta=self.law.draws)[:, 0] if len(self.law.draws) else np.array([middle])
        )
        low, high = np.quantile(drawn, [0.16, 0.84])
        C = 6 * N * D  # noqa: N806
        scale = float(np.median(points.C / (6 * points.N * points.D)))
        ratio = {"C": C * scale / points.C.max(), "N": N / points.N.max(), "D": D / points.D.max()}
        distance = max(0.0, float(np.log(ratio["C"])))
        sd = float(np.sqrt(((high - low) / 2) ** 2 + self.noise**2 + (self.drift * distance) ** 2))
        intervals = {}
        for level in LEVELS:
            half = (
                sd
                * float(student_t.ppf(0.5 + level / 2, _DEGREES))
                / float(np.sqrt(_DEGREES / (_DEGREES - 2)))
            )
            intervals[level] = (float(np.exp(middle - half)), float(np.exp(middle + half)))
        return Forecast(
            N,
            D,
            C,
            float(np.exp(middle)),
            intervals,
            ratio,
            points.unit,
            tuple(_warnings(ratio, N, D, points)),
        )

    def best(self, flops: float) -> tuple[float, float]:
        """(N*, D*): the lowest loss for 6 N D = flops, N* = G (C / 6)^a."""
        v = self.law.values
        g = (v["alpha"] * v["A"] / (v["beta"] * v["B"])) ** (1 / (v["alpha"] + v["beta"]))
        N = g * (flops / 6) ** v["a"]  # noqa: N806
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
        """(C, low, high): the compute at which doubling it lowers the best loss by less than `gain`; 80 % interval.

        On the frontier L = E + K C^-gamma, gamma = alpha beta / (alpha + beta): K C^-gamma (1 - 2^-gamma) = gain.
        """

        def at(values: Mapping[str, Array | float]) -> Array:
            alpha, beta = np.asarray(values["alpha"]), np.asarray(values["beta"])
            A, B = np.asarray(values["A"]), np.asarray(values["B"])  # noqa: N806
            g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
            gamma = alpha * beta / (alpha + beta)
            height = A * g**-alpha * 6**gamma + B * g**beta * 6**gamma
            C: Array = (height * (1 - 2**-gamma) / gain) ** (1 / gamma)  # noqa: N806
            return C

        middle = float(at(self.law.values))
        if not len(self.law.draws):
            return middle, middle, middle
        drawn = at(self.law.kind.values(self.law.draws, self.law.centres))
        low, high = np.quantile(drawn, [0.1, 0.9])
        return middle, float(low), float(high)


def _robust(points: Points, *, bootstrap: int, seed: int = 0) -> Law:
    law = fit(points, bootstrap=0)
    floor, sd = PRIOR["floor"]
    mean = np.array([np.log(floor * points.loss.min()), 0.0, PRIOR["alpha"][0], 0.0, PRIOR["beta"][0]])
    spread = np.array([sd, np.inf, PRIOR["alpha"][1], np.inf, PRIOR["beta"][1]])
    prior = Prior(mean, spread)
    for _ in range(3):  # the noise is as wide as the residuals, which hang on the noise a little
        law = fit(points, noise=student_for(law.residuals), prior=prior, bootstrap=0)
    return fit(points, noise=student_for(law.residuals), prior=prior, bootstrap=bootstrap, seed=seed)


def _warnings(ratio: Mapping[str, float], N: float, D: float, points: Points) -> list[str]:  # noqa: N803
    said = []
    if ratio["C"] > _FAR:
        said.append(
            f"{show_count(ratio['C'])} times the compute of the largest run: beyond {_FAR:.0f} times nobody has tested "
            "such intervals"
        )
    own = points.D / points.N
    if not own.min() / 2 <= D / N <= own.max() * 2:
        said.append(
            f"{D / N:.3g} tokens per parameter, where the runs have {own.min():.3g} to {own.max():.3g}: the balance "
            "of N and D is extrapolated as well"
        )
    return said
