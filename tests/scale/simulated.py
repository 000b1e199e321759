"""A ladder of runs of a known law."""

from __future__ import annotations

import numpy as np

from glassformer.scale.laws import Array

TRUTH = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.37}


def grid(budgets: int = 5, sizes: int = 9) -> tuple[Array, Array]:
    """N and D of an IsoFLOP design: sizes a factor 8 to either side of the middle, at budgets 4 apart."""
    C = np.repeat(1e18 * 4.0 ** np.arange(budgets), sizes)  # noqa: N806 # the field's symbols
    N = 0.1 * np.sqrt(C) * np.tile(8.0 ** np.linspace(-1, 1, sizes), budgets)  # noqa: N806
    return N, C / (6 * N)


def losses(N: Array, D: Array, law: dict[str, float] = TRUTH) -> Array:  # noqa: N803
    return law["E"] + law["A"] / N ** law["alpha"] + law["B"] / D ** law["beta"]
