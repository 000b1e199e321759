"""A law some of whose numbers are held: what is left of a form when alpha is 0.35, or a is 0.5, and the rest is free.

Every number that can be held is a straight line in theta, m theta = k:

    E = 1.7                          e = log 1.7
    A = 400                          a + alpha * mean log N = log 400
    a = beta / (alpha + beta) = v    (1 - v) beta - v alpha = 0

So theta = p + Z phi, with p the shortest theta on those lines and the columns of Z an orthonormal basis of what they
leave free, and phi is fitted as any form's theta is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.linalg import null_space

from glassformer.errors import UsageError, nearest
from glassformer.scale.laws import Array, Centres, Form, Logs


@dataclass(frozen=True)
class Held:
    """`form` with its theta on the lines: theta = at + free phi; the numbers of this form are phi."""

    form: Form
    at: Array
    free: Array

    @property
    def name(self) -> str:
        return self.form.name

    @property
    def needs(self) -> str:
        return self.form.needs

    def theta(self, phi: Array) -> Array:
        """(fit, free number) -> (fit, number)."""
        return self.at + phi @ self.free.T

    def phi(self, theta: Array) -> Array:
        """The free numbers of the nearest theta that is on the lines."""
        return (theta - self.at) @ self.free

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        fitted, slopes = self.form.log_loss(self.theta(theta), logs)
        return fitted, np.matmul(self.free.T, slopes)

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        return self.phi(self.form.starts(logs, log_loss))

    def values(self, theta: Array, centres: Centres) -> dict[str, Array]:
        return self.form.values(self.theta(theta), centres)


def hold(form: Form, values: Mapping[str, float], centres: Centres) -> Held:
    """`form` with these numbers held.

    Raises UsageError for a number that the form has not, or that is no straight line in its theta.
    """
    lines = []
    for name, value in values.items():
        known = _lines(form, value, centres)
        if name not in known:
            raise UsageError(
                f"{name!r} of the law {form.name} cannot be held;",
                expected=nearest(name, known),
            )
        lines.append(known[name])
    rows, sides = np.array([line for line, _ in lines]), np.array([side for _, side in lines])
    return Held(form, np.linalg.lstsq(rows, sides, rcond=None)[0], null_space(rows))


def _lines(form: Form, v: float, centres: Centres) -> dict[str, tuple[list[float], float]]:
    """Number -> (m, k) of m theta = k where it is v."""
    log_v = float(np.log(v)) if v > 0 else -np.inf
    if form.name == "tied":
        n, d = centres["n"], centres["d"]
        return {"E": ([1.0, 0, 0, 0], log_v), "A": ([0.0, 1, n, 0], log_v), "B": ([0.0, 0, d, 1], log_v),
                "alpha": ([0.0, 0, 1, 0], v)}  # fmt: skip
    if form.name == "frontier":
        return {"E": ([1.0, 0, 0], log_v), "K": ([0.0, 1, centres["c"]], log_v), "gamma": ([0.0, 0, 1], v)}
    if form.name == "kaplan":
        return {"N_c": ([1.0, centres["n"] - log_v, 0, 0], 0.0), "D_c": ([0.0, 0, 1, 0], log_v - centres["d"]),
                "alpha_D": ([0.0, 0, 0, 1], v)}  # fmt: skip
    if form.needs == "nd":  # theta = (e, a, alpha, b, beta), and of some forms one more
        n, d, more = centres["n"], centres["d"], [0.0] * (form.name != "chinchilla")
        found = {
            "E": ([1.0, 0, 0, 0, 0], log_v), "A": ([0.0, 1, n, 0, 0], log_v), "B": ([0.0, 0, 0, 1, d], log_v),
            "alpha": ([0.0, 0, 1, 0, 0], v), "beta": ([0.0, 0, 0, 0, 1], v), "a": ([0.0, 0, -v, 0, 1 - v], 0.0),
        }  # fmt: skip
        return {name: ([*line, *more], side) for name, (line, side) in found.items()}
    x = form.needs
    return {f"{x.upper()}_c": ([1.0, centres[x] - log_v], 0.0), f"alpha_{x.upper()}": ([0.0, 1], v)}
