"""How far one number of a law can be moved when all others may follow: its profile, and what that leaves open.

    law.profile("alpha")        .low, .high: the 95 % interval; .rows(): value, objective, and where the others went

For each value the law is fitted with that number held (held.py). The interval holds the values whose fit is worse by
less than is allowed. Were the noise just what the objective takes it for, that were half of chi-square's 95 % point of
one degree, 1.92, in units of the log likelihood, and a bootstrap's replicates would fit the points worse by half of
chi-square of as many degrees as there are numbers. They show what the unit really is, with points that differ in
their noise and err together by runs:

    allowed = 1.92 * median(objective of the replicates - the best) / (median of chi-square / 2)

but at least what the replicates' own spread of this very number asks for: 1.96^2 times what holding it one standard
deviation away costs. (Huber's points beyond delta curve the objective less than they spread the replicates.)

Without a bootstrap, the unit is that of Student's likelihood, or of Huber's density exp(-rho(r) / tau), tau its own
best value. Unlike a bootstrap a profile finds ends that no replicate reaches, and says where there is none: an end at
the edge of what is tried is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import erf
from scipy.stats import chi2

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.scale.fit import with_allocation
from glassformer.scale.held import hold
from glassformer.scale.laws import centred
from glassformer.scale.solve import Huber, Noise, solve

if TYPE_CHECKING:
    from glassformer.scale.fit import Law

_HALF_CHI_SQUARE = 1.920729
_WEAK = 3.0
"""An interval whose ends are this many times apart says that its number is weakly identified."""
_STEPS = 40
"""To either side, at most; each is a share of the allowance, found from the last."""
_ENDS = {
    "E": (1e-3, None),
    "alpha": (1e-3, 5.0),
    "beta": (1e-3, 5.0),
    "gamma": (1e-3, 5.0),
    "a": (1e-3, 0.999),
}
"""What is tried at most; E up to the lowest loss, what has no entry a factor of 1e9 to either side."""


@dataclass(frozen=True)
class NumberProfile:
    """One number held at each of several values, and how well the law then fits."""

    number: str
    value: float
    """Where it fits best."""
    low: float
    high: float
    """Of the 95 % interval; 0 and infinity where the points do not end it."""
    limit: float
    """The objective at its ends."""
    steps: Sequence[Mapping[str, float]] = field(repr=False)

    @property
    def weakly_identified(self) -> bool:
        """No end on one side, or ends more than a factor 3 apart."""
        return not np.isfinite(self.high) or self.low <= 0 or self.high / self.low > _WEAK

    def rows(self) -> list[dict[str, Any]]:
        """Each value that was tried, with the objective and the law's other numbers."""
        return [dict(step) for step in self.steps]

    def facts(self) -> dict[str, Any]:
        """The value, its interval and the flag."""
        return {
            "number": self.number, "value": self.value, "low": self.low,
            "high": self.high if np.isfinite(self.high) else "no end", "weakly identified": self.weakly_identified,
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """What is known of it, in words."""
        low = "without a lower end" if self.low <= 0 else f"from {self.low:.4g}"
        high = "without an upper end" if np.isinf(self.high) else f"to {self.high:.4g}"
        said = [f"{self.number} is {self.value:.4g}; 95 % of the profile {low} {high}."]
        if self.weakly_identified:
            said.append(f"Weakly identified: these points fit nearly as well with another {self.number}.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file; an open end is null."""
        return {
            "number": self.number, "value": self.value, "low": self.low if self.low > 0 else None,
            "high": self.high if np.isfinite(self.high) else None, "weakly_identified": self.weakly_identified,
            "limit": self.limit, "steps": self.rows(),
        }  # fmt: skip

    def chart(self, size: tuple[int, int] = (620, 260)) -> charts.Spec:
        """How well each value fits; below the dashed line is the interval. A wide valley is a number hardly known."""
        curve = charts.line(
            self.rows(), self.number, "objective", log_x=self.number in ("A", "B", "K"),
            y_title="what the residuals count", title=f"How well each {self.number} fits", size=size,
        )  # fmt: skip
        ends = [
            {self.number: step[self.number], "objective": self.limit}
            for step in (self.steps[0], self.steps[-1])
        ]
        dashed = charts.line(ends, self.number, "objective", size=size)
        dashed["mark"] = {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1.2, "opacity": 0.7}
        return charts.layers(curve, dashed)


def profile(law: Law, number: str) -> NumberProfile:
    """The profile of one of a law's numbers, `a` too.

    Raises UsageError for a number that cannot be held, a law without points, or one with priors.
    """
    if law.points is None or law.prior is not None:
        raise UsageError(
            "This law has priors in it, or no points.",
            expected="A law that was fitted to its points alone.",
            do="Fit it: gf.fit_law(points).",
        )  # fmt: skip
    points = law.points
    logs, centres = centred({"N": points.N, "D": points.D, "C": points.C})
    logs["warm"] = np.zeros(len(points)) if points.warm is None else points.warm
    y = np.log(points.loss)
    kind = law.kind
    allowance = allowed(law.noise, law.objective / len(points))
    if len(law.draws):
        again = law.noise.rho(kind.log_loss(law.draws, logs)[0] - y).sum(axis=1) - law.objective
        free = len(law.theta) - len(law.held)
        allowance = 2 * _HALF_CHI_SQUARE * float(np.median(again)) / float(chi2.median(free))
    best = law.values.get(number)
    if best is None:
        hold(kind, {number: 1.0}, centres)  # raises, with the names
        raise UsageError(f"The law {law.form} has no {number!r}.")

    def fitted(value: float, start: Any) -> tuple[float, Any]:
        held = hold(kind, {**law.held, number: value}, centres)
        found = solve(held, logs, y, held.phi(start[None]), noise=law.noise, steps=300)
        return float(found.objective[0]), held.theta(found.theta)[0]

    if len(law.draws):
        quarters = np.quantile(with_allocation(kind.values(law.draws, centres))[number], [0.25, 0.75])
        away = [best + way * float(np.diff(quarters)[0]) / 1.349 for way in (-1, 1)]
        worse = [fitted(value, law.theta)[0] - law.objective for value in away if value > 0]
        allowance = max(allowance, 2 * _HALF_CHI_SQUARE * min(worse, default=0.0))
    limit = law.objective + allowance
    least, most = _ENDS.get(number, (best * 1e-9, best * 1e9))
    most = 0.9999 * float(points.loss.min()) if most is None else most
    steps = [_step(law, number, best, law.objective, law.theta)]
    ends = []
    for way, edge in ((-1, least), (1, most)):
        value, cost, theta, jump, end = best, law.objective, law.theta, 0.003, None
        for _ in range(_STEPS):
            far = min(value * (1 + jump), edge) if way > 0 else max(value / (1 + jump), edge)
            new_cost, new_theta = fitted(far, theta)
            step = _step(law, number, far, new_cost, new_theta)
            if not all(map(np.isfinite, step.values())):
                break  # the other numbers have gone out of every range: nothing ends this one
            steps.append(step)
            if new_cost > limit:
                share = (limit - cost) / (new_cost - cost)
                end = float(value * (far / value) ** share)
                break
            if far == edge:
                break
            jump *= 2.0 if new_cost - cost < 0.1 * allowance else 1.0
            value, cost, theta = far, new_cost, new_theta
        ends.append(end)
    low, high = ends
    steps.sort(key=lambda step: step[number])
    return NumberProfile(
        number, best, 0.0 if low is None else low, float("inf") if high is None else high, limit, steps
    )


def allowed(noise: Noise, mean_rho: float) -> float:
    """How much worse than the best a fit may be within 95 %, in units of the objective."""
    if isinstance(noise, Huber):
        return _HALF_CHI_SQUARE * _tau(mean_rho, noise.delta)
    return _HALF_CHI_SQUARE


def _step(law: Law, number: str, value: float, objective: float, theta: Any) -> dict[str, float]:
    with np.errstate(over="ignore", invalid="ignore"):
        others = {name: float(v[0]) for name, v in law.kind.values(theta[None], law.centres).items()}
    return {number: value, "objective": objective} | {k: v for k, v in others.items() if k != number}


def _tau(mean_rho: float, delta: float) -> float:
    """The tau for which exp(-rho(r) / tau), normalised, makes residuals of this mean rho likeliest."""
    mean_rho = max(mean_rho, 1e-12 * delta**2)  # residuals that are all 0 leave no width at all

    def cost(log_tau: float) -> float:
        tau = np.exp(log_tau)
        inside = np.sqrt(2 * np.pi * tau) * erf(delta / np.sqrt(2 * tau))
        outside = 2 * tau / delta * np.exp(-(delta**2) / (2 * tau))
        return float(np.log(inside + outside) + mean_rho / tau)

    low, high = sorted((np.log(delta**2), np.log(mean_rho)))
    found = minimize_scalar(cost, bounds=(low - 10, high + 10), method="bounded")
    return float(np.exp(found.x))
