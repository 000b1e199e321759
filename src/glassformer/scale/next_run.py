"""Which run to train next, so that a forecast becomes narrower for the least compute.

    next_runs(forecaster, forecast, cap=1e20)        rows, the most narrowing for each FLOP first

The bootstrap's replicates are guesses at the law, each as good as the points let it be. Where they differ about the
loss f of the forecast, and differ the same way about the loss g of a small run, training that run tells which of them
are right. With s^2 the noise of one run, the variance of f after having seen g + noise is (a normal posterior)

    Var f - Cov(f, g)^2 / (Var g + s^2)

and a run beyond the largest so far shortens the distance over which the law may drift (forecast.py). What is narrower
is the forecast's own interval: these two, and the noise, which no run takes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.scale.laws import Array
from glassformer.scale.words import flops
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.forecast import Forecast, Forecaster

_SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""Of the cap: what candidates cost."""
_SIZES = 2.0 ** (0.5 * np.arange(-10, 11))
"""Of the best size for that cost."""
_RATIO = (1.0, 2000.0)
"""Tokens for each parameter that anybody would train with."""
_WIDER = 4.0
"""And so many times outside of those of the runs so far."""
_LEAST = 0.01
"""Runs that narrow the interval by less are not worth a line."""


@dataclass(frozen=True)
class NextRuns:
    """Runs that would narrow one forecast, the most for each FLOP first."""

    forecast: Forecast
    cap: float
    width: float
    """Of the 80 % interval now, as a share of the loss."""
    runs: tuple[Mapping[str, float], ...]
    grid: tuple[Mapping[str, float], ...]
    """Every candidate."""

    @property
    def best(self) -> Mapping[str, float]:
        """The run that narrows most for each FLOP."""
        return self.runs[0]

    def rows(self) -> list[dict[str, Any]]:
        """For each cost the best run of that cost, the most narrowing for each FLOP first."""
        return [dict(run) for run in self.runs]

    def sentences(self) -> list[str]:
        """What to do, in words."""
        if not self.runs:
            return [
                f"No run of up to {flops(self.cap)} FLOPs narrows this forecast by a hundredth: what is left is "
                "noise and the distance. Train larger ones."
            ]  # fmt: skip
        first, most = self.runs[0], max(self.runs, key=lambda run: run["narrower"])
        said = [_told("The most for each FLOP", first)]
        if most is not first:
            said.append(_told("The most in all", most))
        return said

    def chart(self) -> charts.Spec:
        """Every candidate: how much narrower for what cost."""
        rows = [
            {"C": run["C"], "narrower": 100 * run["narrower"], "N": show_count(run["N"])} for run in self.grid
        ]
        spec = charts.points(rows, "C", "narrower", x_title="FLOPs of the run", y_title="interval narrower by (%)",
                             title="What one more run tells", size=(620, 260))  # fmt: skip
        spec["encoding"]["x"]["scale"] = {"type": "log", "nice": False}
        return spec

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file."""
        return {
            "cap": self.cap,
            "width": self.width,
            "runs": self.rows(),
            "grid": [dict(run) for run in self.grid],
        }

    def _repr_html_(self) -> str:
        from glassformer.scale.report import card

        return card("Which run next", self.sentences(), self.rows())


def next_runs(forecaster: Forecaster, forecast: Forecast, *, cap: float | None = None) -> NextRuns:
    """Candidates of up to `cap` FLOPs (four times the largest run's, when left out) at several sizes each.

    Raises UsageError where the law has no bootstrap to tell what is uncertain.
    """
    law = forecaster.law
    if len(law.draws) < 20 or law.points is None:
        raise UsageError(
            "What a run would tell is read from the bootstrap, and there is none.", do="Fit with --bootstrap."
        )
    largest = float((6 * law.points.N * law.points.D).max())
    cap = 4 * largest if cap is None else cap
    costs = np.repeat(cap * np.array(_SHARES), len(_SIZES))
    sizes = np.concatenate([forecaster.best(cap * share)[0] * _SIZES for share in _SHARES])
    tokens = costs / (6 * sizes)
    own = law.points.D / law.points.N
    least, most = max(_RATIO[0], own.min() / _WIDER), min(_RATIO[1], own.max() * _WIDER)
    sane = (tokens / sizes >= least) & (tokens / sizes <= most)
    costs, sizes, tokens = costs[sane], sizes[sane], tokens[sane]
    if not sane.any():
        raise UsageError("No run up to this cap is like those so far.", do="Give a larger cap.")
    sd = _sd_after(forecaster, forecast, sizes, tokens, largest)
    now = _sd_now(forecaster, forecast, largest)
    low, high = forecast.intervals[0.8]
    width = (high - low) / forecast.loss
    grid = [
        {"C": float(c), "N": float(n), "D": float(d), "width after": width * float(after / now),
         "narrower": 1 - float(after / now),
         "for each 1 % of the cap": (1 - float(after / now)) / (100 * float(c / cap))}
        for c, n, d, after in zip(costs, sizes, tokens, sd, strict=True)
    ]  # fmt: skip
    sets = [[run for run in grid if run["C"] == cap * share] for share in _SHARES]
    best = [max(same, key=lambda run: run["narrower"]) for same in sets if same]
    ranked = sorted(
        (run for run in best if run["narrower"] >= _LEAST), key=lambda run: -run["for each 1 % of the cap"]
    )
    return NextRuns(forecast, cap, width, tuple(ranked), tuple(grid))


def _sd_now(forecaster: Forecaster, forecast: Forecast, largest: float) -> float:
    spread = forecaster.law.log_loss(np.array([forecast.N]), np.array([forecast.D]), forecaster.law.draws)
    distance = max(0.0, float(np.log(forecast.C / largest)))
    return float(np.sqrt(spread.var() + forecaster.noise**2 + (forecaster.drift * distance) ** 2))


def _sd_after(forecaster: Forecaster, forecast: Forecast, N: Array, D: Array, largest: float) -> Array:  # noqa: N803
    """(candidate,): standard deviation of the forecast's log loss when that run has been trained."""
    draws = forecaster.law.draws
    there = forecaster.law.log_loss(np.array([forecast.N]), np.array([forecast.D]), draws)[:, 0]
    here = forecaster.law.log_loss(N, D, draws)
    there, here = there - there.mean(), here - here.mean(axis=0)
    shared = (there[:, None] * here).mean(axis=0)
    left = (there**2).mean() - shared**2 / ((here**2).mean(axis=0) + forecaster.noise**2)
    distance = np.maximum(0.0, np.log(forecast.C / np.maximum(6 * N * D, largest)))
    sd: Array = np.sqrt(left + forecaster.noise**2 + (forecaster.drift * distance) ** 2)
    return sd


def _told(what: str, run: Mapping[str, float]) -> str:
    return (
        f"{what}: {show_count(run['N'])} parameters on {show_count(run['D'])} tokens ({flops(run['C'])} FLOPs), which "
        f"narrows the interval by {run['narrower']:.1%}."
    )  # fmt: skip
