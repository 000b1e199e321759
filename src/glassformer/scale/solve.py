"""Robust fits, many at once: Levenberg and Marquardt's method on weighted residuals of log loss.

A residual r = log L_fitted - log L counts rho(r):

    Huber      r^2 / 2 up to delta, delta (|r| - delta / 2) beyond      delta = 1e-3: Hoffmann et al. 2022
    Student    (nu + 1) / 2 * log(1 + r^2 / (nu s^2))                   the negative log likelihood of Student's t;
               skewed, s is `skew` times as large for losses above the law and as much smaller for those below it

With slopes J, psi = rho' and curvatures h >= rho'', a step solves (J h J^T + lambda diag) x = -J psi. It is taken where
the objective falls, and lambda then falls; where not, lambda rises. Beyond delta, Huber's curvature is 0 and that of
iterated least squares delta / |r|: a tenth of that converges in some ten steps where the latter takes a hundred.

Fits that differ in their start or in the weights of their points (a bootstrap's replicates) are rows of one array, and
leave it as they converge. Nothing is random, and the objective is compared with itself alone: neither its scale (a sum,
a mean) nor the units of N and D play a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from glassformer.scale.laws import Array, Form, Logs

_CHUNK = 100
"""Fits in one array, so that it stays in the processor's cache."""
_BEYOND = 0.1
"""Of iterated least squares' curvature, what is used of points beyond delta."""


class Noise(Protocol):
    """How much a residual counts."""

    def rho(self, r: Array) -> Array: ...
    def psi_and_curvature(self, r: Array) -> tuple[Array, Array]: ...


@dataclass(frozen=True)
class Huber:
    delta: float = 1e-3

    def rho(self, r: Array) -> Array:
        size = np.abs(r)
        return np.where(size < self.delta, 0.5 * r * r, self.delta * (size - 0.5 * self.delta))

    def psi_and_curvature(self, r: Array) -> tuple[Array, Array]:
        size = np.abs(r)
        beyond = _BEYOND * self.delta / np.maximum(size, self.delta)
        return np.clip(r, -self.delta, self.delta), np.where(size < self.delta, 1.0, beyond)


@dataclass(frozen=True)
class Student:
    scale: float
    nu: float = 4.0
    skew: float = 1.0

    def unit(self, r: Array) -> Array:
        """s on the side of each residual."""
        if self.skew == 1.0:
            return np.full_like(r, self.scale)
        return np.where(r < 0, self.scale * self.skew, self.scale / self.skew)

    def rho(self, r: Array) -> Array:
        return 0.5 * (self.nu + 1) * np.log1p((r / self.unit(r)) ** 2 / self.nu)

    def psi_and_curvature(self, r: Array) -> tuple[Array, Array]:
        weight = (self.nu + 1) / (self.nu * self.unit(r) ** 2 + r * r)
        return weight * r, weight


@dataclass(frozen=True)
class Prior:
    """Normal, on theta: (theta - mean)^2 / (2 sd^2), and infinite sd where nothing is known. (number,) each."""

    mean: Array
    sd: Array

    @property
    def precision(self) -> Array:
        return 1 / self.sd**2

    def cost(self, theta: Array) -> Array:
        cost: Array = 0.5 * ((theta - self.mean) ** 2 * self.precision).sum(axis=-1)
        return cost


@dataclass(frozen=True)
class Solved:
    """One fit a row."""

    theta: Array
    objective: Array
    converged: Array
    """Whether a further step would change the objective by less than a part in 1e9."""


def solve(
    form: Form, logs: Logs, log_loss: Array, starts: Array, *, noise: Noise, weights: Array | None = None,
    prior: Prior | None = None, fixed: tuple[int, ...] = (), steps: int = 200, tolerance: float = 1e-13,
) -> Solved:  # fmt: skip
    """Each row of `starts` (fit, number) brought to where its objective is least.

    `weights` (fit, point): how often each point counts, 1 when left out. `fixed` numbers stay as they start.
    `tolerance`: the share of the objective that a last step may still gain.
    """
    weights = np.ones((len(starts), len(log_loss))) if weights is None else weights
    chunks = [slice(i, i + _CHUNK) for i in range(0, len(starts), _CHUNK)]
    parts = [
        _solve(form, logs, log_loss, starts[part], noise, weights[part], prior, fixed, steps, tolerance)
        for part in chunks
    ]
    return Solved(
        np.concatenate([part.theta for part in parts]), np.concatenate([part.objective for part in parts]),
        np.concatenate([part.converged for part in parts]),
    )  # fmt: skip


def _solve(
    form: Form, logs: Logs, log_loss: Array, starts: Array, noise: Noise, weights: Array,
    prior: Prior | None, fixed: tuple[int, ...], steps: int, tolerance: float,
) -> Solved:  # fmt: skip
    count, size = starts.shape
    free = np.ones(size)
    free[list(fixed)] = 0.0

    def measure(theta: Array, weights: Array) -> tuple[Array, Array, Array]:
        fitted, slopes = form.log_loss(theta, logs)
        residual = fitted - log_loss
        cost = (weights * noise.rho(residual)).sum(axis=1)
        return residual, slopes * free[:, None], cost if prior is None else cost + prior.cost(theta)

    theta, damping = starts.astype(np.float64), np.full(count, 1e-3)
    residual, slopes, cost = measure(theta, weights)
    end, end_cost, converged = theta.copy(), cost.copy(), np.zeros(count, bool)
    active = np.arange(count)
    for _ in range(steps):
        psi, curvature = noise.psi_and_curvature(residual)
        downhill = np.matmul(slopes, (weights * psi)[..., None])[..., 0]
        hessian = np.matmul(slopes * (weights * curvature)[:, None], slopes.transpose(0, 2, 1))
        if prior is not None:
            downhill += (theta - prior.mean) * prior.precision * free
            hessian += np.diag(prior.precision * free)
        diagonal = np.einsum("fkk->fk", hessian)
        ridge = damping[:, None] * diagonal + 1e-14 + (1 - free)
        step = -np.linalg.solve(hessian + ridge[:, :, None] * np.eye(size), downhill[..., None])[..., 0]
        tried = theta + step
        new_residual, new_slopes, new_cost = measure(tried, weights)
        better = new_cost < cost
        gain = np.where(better, (cost - new_cost) / np.maximum(cost, 1e-300), np.inf)
        theta[better], residual[better], slopes[better] = (
            tried[better],
            new_residual[better],
            new_slopes[better],
        )
        cost[better] = new_cost[better]
        damping = np.where(better, np.maximum(damping / 5, 1e-9), damping * 4)
        end[active], end_cost[active] = theta, cost
        settled = (gain < tolerance) | (damping > 1e7) | (cost < 1e-28)
        converged[active[settled]] = True
        if settled.all():
            break
        if settled.mean() > 0.3:
            left = ~settled
            active, theta, residual, slopes = active[left], theta[left], residual[left], slopes[left]
            cost, damping, weights = cost[left], damping[left], weights[left]
    return Solved(end, end_cost, converged)
