"""The forms of scaling laws: what loss a model of N parameters reaches on D tokens.

    chinchilla   L = E + A / N^alpha + B / D^beta                      Hoffmann et al. 2022 (2203.15556), approach 3
    tied         the same with alpha = beta                            Gadre et al. 2024 (2403.08540)
    annealed     chinchilla, and a factor on the loss of points that were not decayed to their end: L * exp(warm)
    kaplan       L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D Kaplan et al. 2020 (2001.08361), eq. 1.5
    size, data, compute    L = (X_c / X)^alpha for X = N, D, C         Kaplan et al. 2020, eqs. 1.1 to 1.3
    frontier     L = E + K / C^gamma                                   best loss for compute, with a floor

Each is fitted as log L of centred logarithms n = log N - mean log N (d and c alike), in which the numbers that are
sought have sizes near 1 and hardly depend on one another's: A is A / exp(alpha * mean log N). A sum of powers is
log L = log(exp(e) + exp(a - alpha n) + exp(b - beta d)), and its derivative by each exponent is that term's share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
Logs = Mapping[str, Array]
"""`n`, `d`, `c`: centred logarithms of N, D, C, one a point; `warm`: 1 where a point was not decayed, else 0."""
Centres = Mapping[str, float]
"""What was taken from the logarithms: the logarithm of a unit of each."""


class Form(Protocol):
    """One law: its log loss, how it is begun, and what its numbers are called outside."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> str:
        """Of `n`, `d`, `c` the ones it reads."""

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        """(fit, number) -> log loss (fit, point), and its derivatives (fit, number, point)."""

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        """(start, number): where to begin, decided by the points alone."""

    def values(self, theta: Array, centres: Centres) -> dict[str, Array]:
        """(fit, number) -> the law's own numbers by name, each (fit,)."""


_GRID = ((0.1, 0.1), (0.1, 0.3), (0.1, 0.6), (0.3, 0.1), (0.3, 0.3), (0.3, 0.6), (0.5, 0.1), (0.5, 0.3), (0.5, 0.6),
         (0.8, 0.1), (0.8, 0.3), (0.8, 0.6))  # fmt: skip
"""Exponents to begin with: from each, the other three numbers follow by linear least squares (variable projection)."""


@dataclass(frozen=True)
class Chinchilla:
    """E + A / N^alpha + B / D^beta; `tied`: alpha = beta; `annealed`: a factor for points that were not decayed.

    theta = (e, a, alpha, b[, beta][, warm])
    """

    tied: bool = False
    annealed: bool = False
    needs: str = "nd"

    @property
    def name(self) -> str:
        return "tied" if self.tied else "annealed" if self.annealed else "chinchilla"

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        e, a, alpha, b = (theta[:, k, None] for k in range(4))
        beta = alpha if self.tied else theta[:, 4, None]
        n, d = logs["n"], logs["d"]
        terms = np.stack([np.broadcast_to(e, (len(theta), len(n))), a - alpha * n, b - beta * d])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        shares /= total
        by_size, by_data = -shares[1] * n, -shares[2] * d
        if self.tied:
            slopes = [shares[0], shares[1], by_size + by_data, shares[2]]
        else:
            slopes = [shares[0], shares[1], by_size, shares[2], by_data]
        fitted = top + np.log(total)
        if self.annealed:
            fitted = fitted + theta[:, 5, None] * logs["warm"]
            slopes.append(np.broadcast_to(logs["warm"], fitted.shape))
        return fitted, np.stack(slopes, axis=1)

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        n, d, loss = logs["n"], logs["d"], np.exp(log_loss)
        begun = []
        for alpha, beta in _GRID:
            if self.tied and alpha != beta:
                beta = alpha
            columns = np.stack([np.ones_like(n), np.exp(-alpha * n), np.exp(-beta * d)], axis=1)
            parts, _ = nnls(columns / loss[:, None], np.ones_like(loss))
            e, a, b = np.log(np.maximum(parts, 1e-3 * loss.min()))
            begun.append([e, a, alpha, b, *([] if self.tied else [beta]), *([0.0] if self.annealed else [])])
        return np.array(begun)

    def values(self, theta: Array, centres: Centres) -> dict[str, Array]:
        e, a, alpha, b = theta.T[:4]
        beta = alpha if self.tied else theta[:, 4]
        with np.errstate(over="ignore"):  # of draws in which nothing ends an exponent
            found = {
                "E": np.exp(e), "A": np.exp(a + alpha * centres["n"]), "B": np.exp(b + beta * centres["d"]),
                "alpha": alpha, "beta": beta,
            }  # fmt: skip
        return found | ({"warm": theta[:, 5]} if self.annealed else {})


@dataclass(frozen=True)
class Kaplan:
    """((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D; theta = (p, ratio, q, alpha_D), ratio = alpha_N / alpha_D,
    p = ratio * log N_c and q = log D_c, both of centred logarithms."""

    name: str = "kaplan"
    needs: str = "nd"

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        p, ratio, q, alpha_d = (theta[:, k, None] for k in range(4))
        n, d = logs["n"], logs["d"]
        size, data = p - ratio * n, q - d
        both = np.logaddexp(size, data)
        share = np.exp(size - both)
        slopes = [alpha_d * share, -alpha_d * share * n, alpha_d * (1 - share), both]
        return alpha_d * both, np.stack(slopes, axis=1)

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        middle = float(np.median(log_loss))
        return np.array(
            [
                [middle / alpha_d - 0.7, ratio, middle / alpha_d - 0.7, alpha_d]
                for alpha_d in (0.05, 0.1, 0.2, 0.4)
                for ratio in (0.4, 0.75, 1.2)
            ]
        )

    def values(self, theta: Array, centres: Centres) -> dict[str, Array]:
        p, ratio, q, alpha_d = theta.T
        with np.errstate(over="ignore"):
            return {
                "N_c": np.exp(p / ratio + centres["n"]), "D_c": np.exp(q + centres["d"]),
                "alpha_N": ratio * alpha_d, "alpha_D": alpha_d,
            }  # fmt: skip


@dataclass(frozen=True)
class Power:
    """(X_c / X)^alpha; theta = (k, alpha), log L = k - alpha x."""

    name: str
    needs: str

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        x = logs[self.needs]
        fitted = theta[:, :1] - theta[:, 1:] * x
        return fitted, np.stack([np.ones_like(fitted), np.broadcast_to(-x, fitted.shape)], axis=1)

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        return np.array([[float(np.median(log_loss)), alpha] for alpha in (0.02, 0.1, 0.5)])

    def values(self, theta: Array, centres: Centres) -> dict[str, Array]:
        k, alpha = theta.T
        with np.errstate(over="ignore", divide="ignore"):
            return {
                f"{self.needs.upper()}_c": np.exp(k / alpha + centres[self.needs]), f"alpha_{self.needs.upper()}": alpha
            }  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """E + K / C^gamma; theta = (e, k, gamma)."""

    name: str = "frontier"
    needs: str = "c"

    def log_loss(self, theta: Array, logs: Logs) -> tuple[Array, Array]:
        e, k, gamma = (theta[:, i, None] for i in range(3))
        c = logs["c"]
        falling = k - gamma * c
        fitted = np.logaddexp(e, falling)
        share = np.exp(falling - fitted)
        return fitted, np.stack([1 - share, share, -share * c], axis=1)

    def starts(self, logs: Logs, log_loss: Array) -> Array:
        loss, begun = np.exp(log_loss), []
        for gamma in (0.05, 0.1, 0.2, 0.4):
            columns = np.stack([np.ones_like(loss), np.exp(-gamma * logs["c"])], axis=1)
            parts, _ = nnls(columns / loss[:, None], np.ones_like(loss))
            begun.append([*np.log(np.maximum(parts, 1e-3 * loss.min())), gamma])
        return np.array(begun)

    def values(self, theta: Array, centres: Centres) -> dict[str, Array]:
        e, k, gamma = theta.T
        return {"E": np.exp(e), "K": np.exp(k + gamma * centres["c"]), "gamma": gamma}


FORMS: dict[str, Form] = {
    "chinchilla": Chinchilla(),
    "tied": Chinchilla(tied=True),
    "annealed": Chinchilla(annealed=True),
    "kaplan": Kaplan(),
    "size": Power("size", "n"),
    "data": Power("data", "d"),
    "compute": Power("compute", "c"),
    "frontier": Frontier(),
}

FORMULAS: dict[str, str] = {
    "chinchilla": "L = E + A / N^alpha + B / D^beta",
    "tied": "L = E + A / N^alpha + B / D^alpha",
    "annealed": "L = (E + A / N^alpha + B / D^beta) * exp(warm) where not decayed",
    "kaplan": "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    "size": "L = (N_c / N)^alpha_N",
    "data": "L = (D_c / D)^alpha_D",
    "compute": "L = (C_c / C)^alpha_C",
    "frontier": "L = E + K / C^gamma",
}


def centred(columns: Mapping[str, Sequence[float] | Array]) -> tuple[dict[str, Array], dict[str, float]]:
    """(centred logarithms, their centres) of `N`, `D`, `C`, named n, d, c."""
    logs = {name.lower(): np.log(np.asarray(values, np.float64)) for name, values in columns.items()}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    return {name: values - centres[name] for name, values in logs.items()}, centres
