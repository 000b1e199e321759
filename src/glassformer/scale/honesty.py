"""What should make one doubt a law: each warning has a name, what was seen, and what it does to the answer.

The limits are those of reference studies where there are any: fewer than 5 sizes (Choshen et al. 2024, 2410.11840),
1.5 decades of compute, and D / N that hardly varies, which leaves A and B unidentifiable (2605.08541).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from glassformer.scale.fit import Law, fit
from glassformer.scale.laws import Array
from glassformer.scale.points import Points

_FEW_SIZES, _FEW_DECADES, _ONE_RATIO = 5, 1.5, 2.0
_OUTLIER = 6.0
"""Robust standard deviations of the residual."""
_TREND = 0.001
"""Chance of a trend of the residuals as strong as this in noise."""


@dataclass(frozen=True)
class Doubt:
    """One warning."""

    name: str
    message: str

    def row(self) -> dict[str, Any]:
        return asdict(self)


def doubts(law: Law) -> list[Doubt]:
    """Everything to be said against a law and its points."""
    assert law.points is not None  # of `fit`
    points = law.points
    found = [*_of_design(points), *_of_counting(points), *_of_fit(law, points), *_of_rates(points)]
    if points.dropped:
        reasons: dict[str, int] = {}
        for line in points.dropped:
            reasons[line["reason"]] = reasons.get(line["reason"], 0) + 1
        told = ", ".join(f"{count} because {reason}" for reason, count in reasons.items())
        found.append(Doubt("dropped", f"{len(points.dropped)} lines were left out: {told}"))
    return found


def outliers(law: Law) -> list[dict[str, Any]]:
    """The points that lie off, and the law without them: a row `with`, a row `without`, a row a point (at most 10)."""
    assert law.points is not None
    off = np.abs(law.residuals) > _OUTLIER * _spread(law.residuals)
    if not off.any() or (~off).sum() < 4:
        return []
    rest = fit(law.points.where(~off), law.form, noise=law.noise, prior=law.prior, bootstrap=0)
    worst = [i for i in np.argsort(-np.abs(law.residuals)) if off[i]][:10]
    return [
        {"what": "with all points", **law.values},
        {"what": f"without {int(off.sum())}", **rest.values},
        *(
            {"what": f"run {law.points.runs[i]}", "N": float(law.points.N[i]), "D": float(law.points.D[i]),
             "loss": float(law.points.loss[i]), "off": float(np.expm1(law.residuals[i]))}
            for i in worst
        ),
    ]  # fmt: skip


def _of_design(points: Points) -> Iterator[Doubt]:
    sizes = len(np.unique(points.N))
    decades = float(np.log10(points.C.max() / points.C.min()))
    if sizes < _FEW_SIZES:
        yield Doubt(
            "few sizes",
            f"{sizes} sizes of model; below {_FEW_SIZES} the exponent of N is little more than a guess",
        )
    if decades < _FEW_DECADES:
        yield Doubt(
            "narrow",
            f"compute spans {decades:.1f} decades; below {_FEW_DECADES} a forecast far beyond is a guess",
        )
    ratio = points.D / points.N
    if np.quantile(ratio, 0.95) / np.quantile(ratio, 0.05) < _ONE_RATIO:
        yield Doubt(
            "one ratio",
            f"D / N is near {np.median(ratio):.3g} everywhere, so the parts of N and of D cannot be told apart: "
            "neither the exponents nor the best allocation can be believed; add runs with 4 times as many and "
            "with a quarter of the tokens",
        )
    if len(points) > 5 and (rise := spearmanr(points.C, points.loss).statistic) > 0:
        yield Doubt("rising", f"loss rises with compute (rank correlation {rise:+.2f}): are these losses?")


def _of_counting(points: Points) -> Iterator[Doubt]:
    if points.unit is None:
        yield Doubt(
            "unit", "nobody says what unit the loss has; E, A and B mean nothing in another: give --unit"
        )
    ratio = points.C / (6 * points.N * points.D)
    low, high = np.quantile(ratio, [0.05, 0.95])
    if high / low > 1.1:
        yield Doubt(
            "counting",
            f"C / (6 N D) goes from {low:.2f} to {high:.2f}: runs are counted in more than one way, or embeddings and "
            "attention matter; the exponents of C shift with it",
        )
    elif not 0.9 < np.median(ratio) < 1.1:
        yield Doubt(
            "counting",
            f"C is {np.median(ratio):.2f} times 6 N D everywhere: another convention (1/3: the forward pass alone), or "
            "N without embeddings; compare with laws of the same one only",
        )
    if points.warm is not None and points.warm.any():
        share = points.warm.mean()
        yield Doubt(
            "undecayed",
            f"{share:.0%} of the points are from before the learning rate had decayed; their losses are higher by some "
            "percent: leave them out, or fit `annealed`",
        )
    if points.U is not None and (repeated := int((points.D / points.U > 1.01).sum())):
        yield Doubt("repeated", f"{repeated} runs saw their text more than once; see `scale repeats`")


def _of_fit(law: Law, points: Points) -> Iterator[Doubt]:
    floor, lowest = law.values.get("E"), float(points.loss.min())
    if floor is not None and floor < 1e-3 * lowest:
        yield Doubt("floor", "the fitted floor E is 0: the points do not show where loss flattens")
    if floor is not None and floor > 0.98 * lowest:
        yield Doubt(
            "floor",
            f"the fitted floor E = {floor:.4g} is the lowest loss there is: nothing is left to gain by it",
        )
    if law.starts_agreed == 1 and law.starts > 1:
        yield Doubt("starts", f"of {law.starts} starts one alone came to this fit")
    if law.replicates and law.converged < law.replicates:
        yield Doubt(
            "bootstrap", f"{law.replicates - law.converged} of {law.replicates} replicates did not converge"
        )
    for name in ("alpha", "beta", "gamma"):
        if name in law.values and law.replicates:
            low, high = law.interval(name)
            if low <= 0 or high / low > 3:
                yield Doubt(
                    "weak", f"{name} is weakly identified: 95 % of the bootstrap from {low:.3g} to {high:.3g}"
                )
    for symbol, column in (("N", points.N), ("C", points.C)):
        if len(points) > 10 and len(np.unique(column)) > 2:
            trend = spearmanr(column, law.residuals)
            if trend.pvalue < _TREND:
                way = "above" if trend.statistic > 0 else "below"
                yield Doubt(
                    "trend",
                    f"runs with a larger {symbol} lie {way} the fit (rank correlation {trend.statistic:+.2f}): the "
                    "form is off, and a forecast is off the same way",
                )


def _of_rates(points: Points) -> Iterator[Doubt]:
    if points.lr is None:
        return
    tried = edge = 0
    for key in {(n, d) for n, d in zip(points.N, points.D, strict=True)}:
        same = (key[0] == points.N) & (key[1] == points.D)
        rates = np.unique(points.lr[same])
        if len(rates) < 3:
            continue
        tried += 1
        best = points.lr[same][np.argmin(points.loss[same])]
        edge += int(best in (rates[0], rates[-1]))
    if tried and edge / tried > 1 / 3:
        yield Doubt(
            "learning rate",
            f"in {edge} of {tried} sweeps the best learning rate is the first or last one tried: those runs are "
            "under-tuned, by some percent of loss",
        )
    elif not tried and len(np.unique(points.lr)) > 1:
        yield Doubt(
            "learning rate", "no size was tried with three learning rates, so nobody knows whether they fit"
        )


def _spread(residuals: Array) -> float:
    return max(1e-9, 1.4826 * float(np.median(np.abs(residuals - np.median(residuals)))))


def best_of(points: Points) -> Points:
    """Of the runs with one N and one D, the one with the lowest loss: a sweep's winner."""
    best: dict[tuple[float, float], int] = {}
    for i, key in enumerate(zip(points.N, points.D, strict=True)):
        if key not in best or points.loss[i] < points.loss[best[key]]:
            best[key] = i
    mask = np.zeros(len(points), bool)
    mask[list(best.values())] = True
    return replace(points.where(mask), dropped=points.dropped)
