"""Fit a law to points: the best there is, and how far it can be believed.

    law = fit(read_points("runs.csv"))
    law.values["alpha"], law.intervals["alpha"]

The fit is the lowest of several starts that the points themselves decide (`Form.starts`), so it does not depend on a
seed, on the order of the points or on units. Its intervals come from a bootstrap: runs, not points, are drawn again
with replacement (points of one run err together), and each replicate is fitted anew from the best fit; how many of
them converged is told. The seed of the draw is fixed and part of the law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer import charts
from glassformer.errors import UsageError, nearest
from glassformer.scale.held import Held, hold
from glassformer.scale.laws import FORMS, Array, Form, centred
from glassformer.scale.points import Points
from glassformer.scale.solve import Huber, Noise, Prior, Student, solve

if TYPE_CHECKING:
    from glassformer.scale.honesty import Doubt
    from glassformer.scale.profile import NumberProfile

FEWEST = 4
"""Points below which nothing is fitted."""
_SAME = 1e-6
"""Starts whose objectives differ by less than this share found the same minimum."""


@dataclass(frozen=True)
class Law:
    """A form, its numbers, and their uncertainty."""

    form: str
    values: dict[str, float]
    objective: float
    """Sum of what the residuals count, over all points."""
    starts: int
    starts_agreed: int
    """How many starts there were, and how many came to this minimum."""
    theta: Array = field(repr=False)
    centres: dict[str, float] = field(repr=False)
    draws: Array = field(repr=False)
    """(replicate, number): theta of each bootstrap replicate that converged."""
    replicates: int = 0
    converged: int = 0
    points: Points | None = field(default=None, repr=False)
    residuals: Array = field(default_factory=lambda: np.empty(0), repr=False)
    """log of the loss less that of the fit, a point."""
    noise: Noise = field(default_factory=Huber)
    prior: Prior | None = field(default=None, repr=False)
    held: Mapping[str, float] = field(default_factory=dict)
    """Numbers that were given, not fitted."""

    @property
    def kind(self) -> Form:
        return FORMS[self.form]

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The middle `level` of the bootstrap's values of one number, `a` (the exponent of N* in C) too."""
        if not len(self.draws):
            return float("nan"), float("nan")
        drawn = with_allocation(self.kind.values(self.draws, self.centres))[name]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def log_loss(self, N: Array, D: Array, theta: Array | None = None) -> Array:  # noqa: N803 # the field's symbols
        """(fit, point) -> log loss at N and D, for this law's numbers or those of some draws."""
        columns = {"n": np.log(N), "d": np.log(D), "c": np.log(6 * N * D)}
        logs = {name: values - self.centres[name] for name, values in columns.items()}
        logs["warm"] = np.zeros_like(logs["n"])
        return self.kind.log_loss(self.theta[None] if theta is None else theta, logs)[0]

    def loss(self, N: float, D: float) -> float:  # noqa: N803
        """The loss forecast for N parameters on D tokens, in the unit of the points."""
        return float(np.exp(self.log_loss(np.array([N]), np.array([D]))[0, 0]))

    def facts(self) -> dict[str, Any]:
        """What it was fitted to, and how sure the fit itself is."""
        assert self.points is not None  # of `fit`
        p = self.points
        return {
            "law": self.form, "points": len(p), "runs": len(set(p.runs)), "sizes": len(np.unique(p.N)),
            "compute": f"{p.C.min():.3g} to {p.C.max():.3g} FLOPs", "unit": p.unit or "not said",
            "counting": p.counting,
            "objective": self.objective, "starts that agreed": f"{self.starts_agreed} of {self.starts}",
            "replicates that converged": f"{self.converged} of {self.replicates}",
            "typical residual": f"{np.median(np.abs(self.residuals)):.2%}",
        }  # fmt: skip

    def chart(self) -> charts.Spec:
        """Every run by its compute, and the least loss of the law."""
        from glassformer.scale.pictures import frontier

        return frontier(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file."""
        return {
            **self.facts(), "values": self.rows(), "off": self.off, "influential": self.influential,
            "doubts": [doubt.row() for doubt in self.doubts],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        from glassformer.scale.pictures import frontier
        from glassformer.scale.report import card
        from glassformer.scale.words import counting, of_law, title

        if self.points is None:
            return card(f"A law of loss: {self.form}", [title(self)], self.rows())
        said = [title(self), counting(self), *of_law(self)]
        warned = [str(doubt) for doubt in self.doubts]
        return card(f"A law of loss: {self.form}", said, self.rows(), warnings=warned, chart=frontier(self))

    def save(self, path: str | Path) -> Path:
        """Write it as a .json that `load` reads, with its points and draws (law_file.py)."""
        from glassformer.scale.law_file import write_law

        return write_law(path, self)

    @classmethod
    def load(cls, path: str | Path) -> Law:
        """The law in a file that `save` wrote."""
        from glassformer.scale.law_file import read_law

        return read_law(path)

    @cached_property
    def doubts(self) -> list[Doubt]:
        """What is to be said against it (scale/honesty.py)."""
        from glassformer.scale.honesty import doubts

        return doubts(self)

    @cached_property
    def off(self) -> list[dict[str, Any]]:
        """The points that lie off and the law without them; empty where none does."""
        from glassformer.scale.honesty import outliers

        return outliers(self)

    @cached_property
    def influential(self) -> list[dict[str, Any]]:
        """The runs that it hangs on most, each with its leverage and the law without it."""
        from glassformer.scale.leverage import influential

        return influential(self)

    def profile(self, number: str) -> NumberProfile:
        """How far one number can be moved when the others follow: an interval that a weak one needs."""
        from glassformer.scale.profile import profile

        return profile(self, number)

    def rows(self) -> list[dict[str, Any]]:
        """Each number with its 95 % interval."""
        rows: list[dict[str, Any]] = []
        for name, value in self.values.items():
            low, high = self.interval(name) if len(self.draws) else (None, None)
            rows.append({"number": name, "value": value, "low": low, "high": high})
        return rows


def fit_law(
    points: Points, form: str = "chinchilla", *, delta: float = 1e-3, bootstrap: int = 1000, seed: int = 0
) -> Law:
    """`fit` with Huber's noise of width `delta`."""
    return fit(points, form, noise=Huber(delta), bootstrap=bootstrap, seed=seed)


def fit(
    points: Points, form: str = "chinchilla", *, noise: Noise | None = None, prior: Prior | None = None,
    held: Mapping[str, float] | None = None, bootstrap: int = 1000, seed: int = 0,
) -> Law:  # fmt: skip
    """Fit `form` to `points`; `bootstrap` replicates for the intervals, none when 0. `held` numbers are not fitted,
    such as another study's exponents.

    Raises UsageError for an unknown form, fewer than 4 points, or points that do not say what the form reads.
    """
    whole = _form(form, points)
    noise = noise or Huber()
    logs, centres = centred({"N": points.N, "D": points.D, "C": points.C})
    logs["warm"] = np.zeros(len(points)) if points.warm is None else points.warm
    y = np.log(points.loss)
    kind = hold(whole, held, centres) if held else whole
    if held and prior is not None:
        raise UsageError("A number that is held has no prior.", do="Leave out `held` or `prior`.")
    tried = solve(kind, logs, y, kind.starts(logs, y), noise=noise, prior=prior)
    best = int(np.argmin(tried.objective))
    theta, lowest = tried.theta[best], float(tried.objective[best])
    agreed = int((tried.objective <= lowest + _SAME * abs(lowest)).sum())
    draws, converged = np.empty((0, len(theta))), 0
    if bootstrap:
        weights = resampled(points.runs, bootstrap, seed)
        again = solve(
            kind, logs, y, np.repeat(theta[None], bootstrap, axis=0), noise=noise, prior=prior, weights=weights,
            steps=200, tolerance=1e-6,
        )  # fmt: skip
        draws, converged = again.theta[again.converged], int(again.converged.sum())
    values = with_allocation(kind.values(theta[None], centres))
    residuals = y - kind.log_loss(theta[None], logs)[0][0]
    if isinstance(kind, Held):
        theta, draws = kind.theta(theta), kind.theta(draws)
    return Law(
        form, {name: float(value[0]) for name, value in values.items()}, lowest, len(tried.theta), agreed, theta,
        centres, draws, bootstrap, converged, points, residuals, noise, prior, dict(held or {}),
    )  # fmt: skip


def resampled(runs: Sequence[str], count: int, seed: int) -> Array:
    """(replicate, point): how often each point is in each replicate, when as many runs are drawn as there are."""
    names, index = np.unique(np.asarray(runs), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), count)
    weights: Array = drawn[:, index].astype(np.float64)
    return weights


def with_allocation(values: dict[str, Array]) -> dict[str, Array]:
    """With a = beta / (alpha + beta), the exponent of N* ~ C^a, where there are both."""
    if "alpha" in values and "beta" in values:
        return values | {"a": values["beta"] / (values["alpha"] + values["beta"])}
    return values


def student_for(residuals: Array, nu: float = 4.0) -> Student:
    """Student's noise as wide as these residuals: 1.4826 times their median size, at least a ten-thousandth."""
    return Student(max(1e-4, 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))), nu)


def _form(form: str, points: Points) -> Form:
    if form not in FORMS:
        raise UsageError(f"There is no law {form!r};", expected=nearest(form, FORMS))
    kind = FORMS[form]
    needs = max(FEWEST, 2)
    if len(points) < needs:
        raise UsageError(
            f"{len(points)} point{'s' * (len(points) != 1)} cannot hold a law of loss.",
            expected=f"At least {needs} runs; 5 sizes over 1.5 decades of compute make a forecast worth something.",
        )
    for symbol in kind.needs:
        column = getattr(points, symbol.upper())
        if np.ptp(np.log(column)) < 1e-9:
            raise UsageError(
                f"All points have the same {symbol.upper()} ({column[0]:.4g}), so nothing is known of how loss depends "
                "on it.",
                do="Add runs of other sizes, or fit `data` (tokens alone) or `size` (parameters alone).",
            )  # fmt: skip
    if form == "annealed" and (points.warm is None or np.ptp(points.warm) == 0):
        raise UsageError(
            "`annealed` needs points that were decayed and points that were not.",
            do="Name the column that says so: --columns warm=NAME (1: not decayed).",
        )
    return kind
