"""Repeated data: how much a second, fourth, fortieth pass over the same text is worth.

Muennighoff et al. 2023 (2305.16264): D tokens of which U are unique count as

    D' = U + U R_D* (1 - exp(-R_D / R_D*))        R_D = D / U - 1, the repetitions
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*))    R_N = N / U_N - 1, U_N = min(N, the best N for U tokens)

in a law E + A / N'^alpha + B / D'^beta whose five numbers are those of fresh data. R_D* is the number of repetitions
after which a further one is worth 1/e of a fresh token. It is weakly identified by the published runs (their own
subsets give 4.4 to 2,083), so what is fitted here comes with a profile: for each R_D* the best R_N*, and how much worse
it fits. An interval holds the R_D* whose fit is worse by less than profile.py allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.scale.laws import Array, Logs
from glassformer.scale.points import Points
from glassformer.scale.profile import allowed
from glassformer.scale.solve import Huber, solve

C4: Mapping[str, float] = {
    "E": float(np.exp(0.6254804)), "A": float(np.exp(6.255414)), "B": float(np.exp(7.3049974)),
    "alpha": 0.3526596, "beta": 0.3526596,
}  # fmt: skip
"""The law of fresh data behind the published R_D* = 15.387756, R_N* = 5.309743: C4, GPT-2's tokenizer (2305.16264)."""
_PROFILE = np.geomspace(0.5, 5000.0, 121)
_RANGE = (-7.0, 16.0)
"""Of log R_D* and log R_N*: beyond, one more repetition is worth nothing, or all."""
_WEAK = 10.0
"""An interval whose ends are this many times apart says that R_D* is weakly identified."""


@dataclass(frozen=True)
class Repeats:
    """The fitted R_D* and R_N*, and the profile over R_D*."""

    R_D: float
    R_N: float
    objective: float
    base: Mapping[str, float]
    profile: Sequence[Mapping[str, float]] = field(repr=False)
    """For each R_D* the best R_N* and the objective."""
    low: float = 0.0
    high: float = float("inf")
    """The 95 % profile interval of R_D*; infinite where the data do not end it."""

    @property
    def weakly_identified(self) -> bool:
        return not np.isfinite(self.high) or self.high / self.low > _WEAK

    def worth(self, epochs: float, R_D: float | None = None) -> float:  # noqa: N803 # the field's symbols
        """Share of the value of as many fresh tokens that `epochs` passes over the same ones have."""
        r = self.R_D if R_D is None else R_D
        return float((1 + _saturated(epochs - 1, r)) / epochs)

    def facts(self) -> dict[str, Any]:
        """The two numbers, and what is known of R_D*."""
        return {
            "R_D*": f"{self.R_D:.3g} ({self.low:.3g} to {'any' if np.isinf(self.high) else f'{self.high:.3g}'})",
            "R_N*": f"{self.R_N:.3g}", "objective": self.objective, "weakly identified": self.weakly_identified,
        }  # fmt: skip

    def chart(self, size: tuple[int, int] = (620, 260)) -> charts.Spec:
        """How well each R_D* fits."""
        return charts.line(
            list(self.profile), "R_D", "objective", log_x=True, x_title="R_D*", y_title="what the residuals count",
            title="How well each R_D* fits", size=size,
        )  # fmt: skip

    def sentences(self) -> list[str]:
        """What it says, in words."""
        end = "without an end" if np.isinf(self.high) else f"to {self.high:.3g}"
        low, high = self.worth(4, self.low), self.worth(4, self.high)
        said = [
            f"R_D* is {self.R_D:.3g} (95 % profile: {self.low:.3g} {end}): after so many repetitions one more is worth "
            "1/e of fresh text.",
            f"Four passes over a text are worth {self.worth(4):.0%} of as much fresh text ({low:.0%} to {high:.0%}).",
        ]
        if self.weakly_identified:
            said.append(
                "Weakly identified: these runs fit nearly as well with an R_D* many times as large, so the value alone "
                "says little. Which runs are left out decides it."
            )
        return said

    def _repr_html_(self) -> str:
        from glassformer.scale.pictures import epochs
        from glassformer.scale.report import card

        return card("What repeating is worth", self.sentences(), self.rows(), chart=epochs(self))

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file; an open end of the interval is null."""
        high = None if np.isinf(self.high) else self.high
        return {
            "R_D": self.R_D, "R_N": self.R_N, "objective": self.objective, "low": self.low, "high": high,
            "weakly_identified": self.weakly_identified, "base": dict(self.base), "worth": self.rows(),
            "profile": list(self.profile),
        }  # fmt: skip

    def rows(self, epochs: Sequence[float] = (2, 4, 8, 16, 40, 100)) -> list[dict[str, Any]]:
        """What so many epochs are worth, with the interval that R_D* leaves."""
        return [
            {
                "epochs": e,
                "worth": self.worth(e),
                "low": self.worth(e, self.low),
                "high": self.worth(e, self.high),
            }
            for e in epochs
        ]


def fit_repeats(points: Points, base: Mapping[str, float] = C4, *, delta: float = 1e-3) -> Repeats:
    """Fit R_D* and R_N* on runs of which some saw their text more than once. `base` is the law of fresh data.

    Raises UsageError where unique tokens are not known or nothing was repeated.
    """
    if points.U is None:
        raise UsageError("Nothing says how many tokens were unique.", do="Name the column: --columns U=NAME.")
    repeated = points.D / points.U > 1.01
    if repeated.sum() < 4:
        raise UsageError(
            f"{int(repeated.sum())} runs saw their text more than once.",
            expected="At least 4, of various epochs.",
        )
    form, y, noise = Repeated(points, base), np.log(points.loss), Huber(delta)
    starts = np.log([[r_d, r_n] for r_d in (1.5, 5.0, 15.0, 60.0, 200.0) for r_n in (0.5, 2.0, 6.0, 20.0)])
    tried = solve(form, {}, y, starts, noise=noise)
    best = int(np.argmin(tried.objective))
    lines = np.repeat(np.log(_PROFILE), 3)
    sizes = np.tile(np.log([1.0, 5.0, 20.0]), len(_PROFILE))
    held = solve(form, {}, y, np.stack([lines, sizes], axis=1), noise=noise, fixed=(0,))
    costs, ratios = held.objective.reshape(-1, 3), held.theta[:, 1].reshape(-1, 3)
    at = costs.argmin(axis=1)
    rows = np.arange(len(_PROFILE))
    least, most_n = costs[rows, at], np.exp(np.clip(ratios[rows, at], *_RANGE))
    lowest = float(min(tried.objective[best], least.min()))
    limit = lowest + allowed(noise, lowest / len(points))
    inside = np.flatnonzero(least <= limit)
    low = float(_PROFILE[inside[0]]) if len(inside) else float(np.exp(tried.theta[best, 0]))
    open_end = len(inside) == 0 or inside[-1] == len(_PROFILE) - 1
    high = float("inf") if open_end else float(_PROFILE[inside[-1]])
    r_d, r_n = np.exp(tried.theta[best])
    profile = [
        {"R_D": float(r), "R_N": float(n), "objective": float(c)}
        for r, n, c in zip(_PROFILE, most_n, least, strict=True)
    ]
    return Repeats(float(r_d), float(r_n), lowest, dict(base), profile, low, high)


@dataclass(frozen=True)
class Repeated:
    """The law of repeated data as a form: theta = (log R_D*, log R_N*); its points and base are its own."""

    points: Points
    base: Mapping[str, float]
    name: str = "repeated"
    needs: str = "nd"

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        points, base = self.points, self.base
        assert points.U is not None  # fit_repeats
        unique = np.minimum(points.U, points.D)
        best_n = (base["alpha"] * base["A"] / (base["beta"] * base["B"])) ** (1 / base["alpha"]) * unique ** (
            base["beta"] / base["alpha"]
        )
        unique_n = np.minimum(points.N, best_n)
        r_d, r_n = np.exp(np.clip(theta, *_RANGE)).T[:, :, None]
        again, larger = points.D / unique - 1, points.N / unique_n - 1
        data, size = unique * (1 + _saturated(again, r_d)), unique_n * (1 + _saturated(larger, r_n))
        of_size, of_data = base["A"] / size ** base["alpha"], base["B"] / data ** base["beta"]
        loss = base["E"] + of_size + of_data
        by_data = -base["beta"] * of_data / data * unique * _saturated_slope(again, r_d) * r_d
        by_size = -base["alpha"] * of_size / size * unique_n * _saturated_slope(larger, r_n) * r_n
        return np.log(loss), np.stack([by_data / loss, by_size / loss], axis=1)

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        return np.log([[15.0, 5.0]])

    def values(self, theta: Array, centres: Mapping[str, float]) -> dict[str, Array]:
        return {"R_D": np.exp(theta[:, 0]), "R_N": np.exp(theta[:, 1])}


def loss_of_repeated(
    N: float, D: float, U: float, r_d: float, r_n: float, base: Mapping[str, float] = C4  # noqa: N803
) -> float:  # fmt: skip
    """The loss of N parameters on D tokens of which U are unique."""
    points = Points.of([N], [D], [1.0], U=np.array([U]))
    return float(np.exp(Repeated(points, base).log_loss(np.log([[r_d, r_n]]), {})[0][0, 0]))


def _saturated(repetitions: Any, limit: Any) -> Any:
    """limit * (1 - exp(-repetitions / limit)), which is the repetitions themselves where the limit is infinite."""
    return repetitions if np.isscalar(limit) and np.isinf(limit) else -limit * np.expm1(-repetitions / limit)


def _saturated_slope(repetitions: Array, limit: Array) -> Array:
    """d saturated / d limit."""
    ratio = repetitions / limit
    slope: Array = -np.expm1(-ratio) - ratio * np.exp(-ratio)
    return slope
