"""Which runs a law hangs on: how much each could move it, and where the law would be without it.

    h_i = w_i s_i (S' W S)^-1 s_i        s_i: derivatives of log loss i by the law's numbers; w_i = psi(r_i) / r_i

The leverages of all points sum to the number of parameters of the law, and one near 1 means that the law passes
through its point whatever it says (Hoaglin and Welsch 1978). Points of a run err together, so theirs are added up.
What a run really moves is told by fitting without it; that is done for those of the most influence, leverage times
the size of the residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer.errors import UsageError
from glassformer.scale.laws import Array

if TYPE_CHECKING:
    from glassformer.scale.fit import Law


_TOLD = ("E", "alpha", "beta", "a")


def leverage(law: Law) -> Array:
    """(point,): h of each point, in 0 to 1; their sum is the number of the law's parameters."""
    points = law.points
    assert points is not None  # of a fit
    logs = {"n": np.log(points.N), "d": np.log(points.D), "c": np.log(points.C)}
    logs = {name: values - law.centres.get(name, 0.0) for name, values in logs.items()}
    logs["warm"] = np.zeros(len(points)) if points.warm is None else points.warm
    slopes = law.kind.log_loss(law.theta[None], logs)[1][0]
    psi, curvature = law.noise.psi_and_curvature(law.residuals)
    exact = law.residuals == 0
    weights = np.where(exact, curvature, psi / np.where(exact, 1.0, law.residuals))
    scaled = slopes * np.sqrt(weights)
    return np.asarray((np.linalg.qr(scaled.T)[0] ** 2).sum(axis=1))


def influential(law: Law, most: int = 5) -> list[dict[str, Any]]:
    """The runs that the law hangs on most: leverage, how far off each is, and the law without it."""
    from glassformer.scale.honesty import refit

    points = law.points
    assert points is not None
    runs = np.array(points.runs)
    each = leverage(law)
    names = list(dict.fromkeys(points.runs))
    weighs = {name: float(each[runs == name].sum()) for name in names}
    moves = {name: float((each * np.abs(law.residuals))[runs == name].sum()) for name in names}
    rows = []
    for name in sorted(names, key=lambda name: -moves[name])[:most]:
        own = int(np.flatnonzero(runs == name)[-1])
        row = {
            "run": name, "N": float(points.N[own]), "D": float(points.D[own]), "leverage": weighs[name],
            "off": float(np.expm1(law.residuals[own])),
        }  # fmt: skip
        try:
            rest = refit(law, points.where(runs != name))
        except UsageError:
            continue  # too few are left
        told = [number for number in _TOLD if number in rest.values]
        rows.append(row | {f"{number} without": rest.values[number] for number in told})
    return rows
