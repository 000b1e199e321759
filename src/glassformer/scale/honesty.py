"""What should make one doubt a law: each warning has a name, what was seen, and what it does to the answer.

The limits are those of reference studies where there are any: fewer than 5 sizes (Choshen et al. 2024, 2410.11840),
1.5 decades of compute, and D / N that hardly varies, which leaves A and B unidentifiable (2605.08541). Where points can
be left out, the law is fitted without them, and the effect is what changes: the exponent a of the best size, and the
loss at ten times the largest compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from glassformer.errors import UsageError
from glassformer.scale.columns import named_budget
from glassformer.scale.fit import Law, fit
from glassformer.scale.laws import Array
from glassformer.scale.points import Points

_FEW_RUNS, _FEW_SIZES, _FEW_DECADES, _ONE_RATIO = 4, 5, 1.5, 2.0
_OUTLIER = 6.0
"""Robust standard deviations of the residual."""
_FAR_UP = 0.1
"""A run that lies so far above the law, and is an outlier, has diverged, or was stopped."""
_TREND = 0.001
"""Chance of a trend of the residuals as strong as this in noise."""
_NAMED = 1.6
"""Budgets in names are rounded to one digit; those that differ by more are counted another way."""
_SPREAD = 1.1
"""C / (6 N D) that varies by more than this factor is more than rounding."""


@dataclass(frozen=True)
class Doubt:
    """One warning."""

    name: str
    message: str
    effect: str
    """What it does to the answer."""

    def row(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}. Effect: {self.effect}."


def doubts(law: Law) -> list[Doubt]:
    """Everything to be said against a law and its points."""
    assert law.points is not None  # of `fit`
    points = law.points
    return [
        *_of_design(law, points), *_of_counting(law, points), *_of_lines(law, points), *_of_fit(law, points),
        *_of_rates(law, points),
    ]  # fmt: skip


def refit(law: Law, points: Points) -> Law:
    """The same law, of other points, fitted the same way."""
    return fit(points, law.form, noise=law.noise, prior=law.prior, held=law.held, bootstrap=0)


def without(law: Law, kept: NDArray[np.bool_]) -> str:
    """In words: what the law would say of the points that are kept."""
    assert law.points is not None
    try:
        other = refit(law, law.points.where(kept))
    except UsageError:
        return "without them there is no law at all"
    said = [f"without them {name} is {other.values[name]:.3g} instead of {law.values[name]:.3g}"
            for name in ("a",) if name in law.values]  # fmt: skip
    top = int(np.argmax(law.points.C))
    at = [float(column[top]) * np.sqrt(10) for column in (law.points.N, law.points.D)]
    said.append(
        f"{'' if said else 'without them '}the loss at ten times the largest compute is {other.loss(*at):.4g} instead "
        f"of {law.loss(*at):.4g}"
    )  # fmt: skip
    return " and ".join(said)


def outliers(law: Law) -> list[dict[str, Any]]:
    """The points that lie off, and the law without them: a row `with`, a row `without`, a row a point (at most 10)."""
    assert law.points is not None
    off = np.abs(law.residuals) > _OUTLIER * _spread(law.residuals)
    if not off.any() or (~off).sum() < 4:
        return []
    rest = refit(law, law.points.where(~off))
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


def _of_design(law: Law, points: Points) -> Iterator[Doubt]:
    sizes, runs = len(np.unique(points.N)), len(set(points.runs))
    decades = float(np.log10(points.C.max() / points.C.min()))
    if runs < _FEW_RUNS:
        yield Doubt(
            "few runs", f"{runs} run{'s' * (runs != 1)}, though with {len(points)} points",
            "points of one run err together, so the intervals are too narrow and the bootstrap has nothing to draw",
        )  # fmt: skip
    if sizes < _FEW_SIZES:
        yield Doubt(
            "few sizes", f"{sizes} sizes of model, and {_FEW_SIZES} are the least",
            f"the exponent of N is little more than a guess{_open(law, 'alpha')}",
        )  # fmt: skip
    if decades < _FEW_DECADES:
        yield Doubt(
            "narrow", f"compute spans {decades:.1f} decades, and {_FEW_DECADES} are the least",
            "floor and exponents trade places, and a forecast far beyond is a guess",
        )  # fmt: skip
    ratio = points.D / points.N
    if np.quantile(ratio, 0.95) / np.quantile(ratio, 0.05) < _ONE_RATIO:
        yield Doubt(
            "one ratio",
            f"D / N is near {np.median(ratio):.3g} everywhere, so the parts of N and of D cannot be told apart",
            f"neither the exponents nor the best division of compute can be believed{_open(law, 'a')}; add runs with 4 "
            "times as many and with a quarter of the tokens",
        )  # fmt: skip
    if len(points) > 5 and (rise := spearmanr(points.C, points.loss).statistic) > 0:
        yield Doubt(
            "rising", f"loss rises with compute (rank correlation {rise:+.2f}): are these losses?",
            "the law says that compute harms, or nothing; every forecast of it is void",
        )  # fmt: skip


def _of_counting(law: Law, points: Points) -> Iterator[Doubt]:
    if points.unit is None:
        yield Doubt(
            "unit", "nobody says what unit the loss has: give --unit",
            "E, A and B mean nothing in another, so the law cannot be compared and its losses cannot be used",
        )  # fmt: skip
    ratio = points.C / (6 * points.N * points.D)
    low, high = np.quantile(ratio, [0.05, 0.95])
    if high / low > _SPREAD:
        yield Doubt(
            "counting",
            f"C / (6 N D) goes from {low:.2f} to {high:.2f}: runs are counted in more than one way, or embeddings and "
            "attention matter",
            f"a run may pass for one of {high / low:.1f} times its compute, and exponents of C shift; fits of N and D "
            "(chinchilla) are not touched",
        )  # fmt: skip
    elif not 0.9 < np.median(ratio) < 1.1:
        yield Doubt(
            "counting",
            f"C is {np.median(ratio):.2f} times 6 N D everywhere: another convention (1/3: the forward pass alone), or "
            "N without embeddings",
            "compare with laws of the same convention only; N without embeddings alone moves a from 0.5 to 0.7 "
            "(Porian et al. 2024)",
        )  # fmt: skip
    named = [(named_budget(run), k) for run, k in zip(points.runs, 6 * points.N * points.D, strict=True)]
    shares = np.array([budget / k for budget, k in named if budget])
    if len(shares) and (shares.max() / shares.min() > _NAMED or not 1 / _NAMED < np.median(shares) < _NAMED):
        yield Doubt(
            "named budgets",
            f"the runs' names give budgets of {shares.min():.2f} to {shares.max():.2f} times 6 N D: they count "
            "another way than the table, or in more than one",
            "take C from the table, not from the names; budgets that are not equal make no parabola",
        )  # fmt: skip
    if points.warm is not None and points.warm.any():
        effect = (
            "the factor `warm` takes it up" if law.form == "annealed" else without(law, points.warm == 0)
            + "; or fit `annealed`"
        )  # fmt: skip
        yield Doubt(
            "undecayed",
            f"{points.warm.mean():.0%} of the points are from before the learning rate had decayed, with losses higher "
            "by some percent",
            effect,
        )  # fmt: skip
    if points.U is not None and (repeated := points.D / points.U > 1.01).any():
        yield Doubt(
            "repeated", f"{int(repeated.sum())} runs saw their text more than once; see --approach repeated",
            f"repeated tokens pass for fresh ones: {without(law, ~repeated)}",
        )  # fmt: skip


def _of_lines(law: Law, points: Points) -> Iterator[Doubt]:
    if points.dropped:
        reasons = Counter(str(line["reason"]) for line in points.dropped)
        told = ", ".join(f"{count} because {reason}" for reason, count in reasons.items())
        yield Doubt(
            "dropped", f"{len(points.dropped)} lines were left out: {told}",
            f"the law is of the other {len(points)}; if large runs failed more often, it is too optimistic",
        )  # fmt: skip
    same = Counter(zip(points.N, points.D, points.loss, strict=True))
    if twice := sum(count - 1 for count in same.values()):
        yield Doubt(
            "duplicates", f"{twice} points repeat another's N, D and loss to the last digit",
            "they count twice in the fit, and as independent runs in its intervals, which are too narrow",
        )  # fmt: skip
    above = (law.residuals > _OUTLIER * _spread(law.residuals)) & (law.residuals > np.log1p(_FAR_UP))
    if above.any():
        yield Doubt(
            "diverged",
            f"{int(above.sum())} runs lie more than {_FAR_UP:.0%} above the law (run "
            f"{_some(points, above)}): diverged, or stopped early",
            without(law, ~above),
        )  # fmt: skip
    off = np.abs(law.residuals) > _OUTLIER * _spread(law.residuals)
    if off.any():
        yield Doubt(
            "outliers", f"{int(off.sum())} points lie more than {_OUTLIER:.0f} robust deviations off "
            f"(run {_some(points, off)})", without(law, ~off),
        )  # fmt: skip


def _of_fit(law: Law, points: Points) -> Iterator[Doubt]:
    floor, lowest = law.values.get("E"), float(points.loss.min())
    if floor is not None and floor < 1e-3 * lowest:
        yield Doubt(
            "floor", "the fitted floor E is 0: the points do not show where loss flattens",
            "far beyond, the forecast falls without an end and is too low",
        )  # fmt: skip
    if floor is not None and floor > 0.98 * lowest:
        yield Doubt(
            "floor", f"the fitted floor E = {floor:.4g} is the lowest loss there is",
            "the forecast says that more compute gains nothing",
        )  # fmt: skip
    if law.starts_agreed == 1 and law.starts > 1:
        yield Doubt(
            "starts", f"of {law.starts} starts one alone came to this fit",
            "there may be a better one, with other exponents",
        )  # fmt: skip
    if law.replicates and law.converged < law.replicates:
        yield Doubt(
            "bootstrap", f"{law.replicates - law.converged} of {law.replicates} replicates did not converge",
            "they are left out, so the intervals are too narrow",
        )  # fmt: skip
    for name in ("alpha", "beta", "gamma"):
        if name in law.values and law.replicates and name not in law.held:
            low, high = law.interval(name)
            if low <= 0 or high / low > 3:
                yield Doubt(
                    "weak", f"{name} is weakly identified: 95 % of the bootstrap from {low:.3g} to {high:.3g}",
                    f"its value is one of many; see --profile {name}, and do not print it alone",
                )  # fmt: skip
    for symbol, column in (("N", points.N), ("C", points.C)):
        if len(points) > 10 and len(np.unique(column)) > 2:
            trend = spearmanr(column, law.residuals)
            if trend.pvalue < _TREND:
                way = "above" if trend.statistic > 0 else "below"
                yield Doubt(
                    "trend", f"runs with a larger {symbol} lie {way} the fit (rank correlation "
                    f"{trend.statistic:+.2f}): the form is off",
                    f"a forecast of a larger run is too {'low' if trend.statistic > 0 else 'high'}",
                )  # fmt: skip


def _of_rates(law: Law, points: Points) -> Iterator[Doubt]:
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
            "learning rate", f"in {edge} of {tried} sweeps the best learning rate is the first or last one tried",
            "those runs are under-tuned by some percent of loss (3.7 % between the best and the worst rate of a sweep, "
            "Li et al. 2025); where small ones are, the forecast is too high",
        )  # fmt: skip
    elif not tried and len(np.unique(points.lr)) > 1:
        yield Doubt(
            "learning rate", "no size was tried with three learning rates, so nobody knows whether they fit",
            "under-tuned runs lie some percent too high, and pull the law after them",
        )  # fmt: skip


def _open(law: Law, name: str) -> str:
    if name not in law.values or not len(law.draws):
        return ""
    low, high = law.interval(name)
    return f" ({name}: {low:.2g} to {high:.2g})"


def _some(points: Points, mask: NDArray[np.bool_]) -> str:
    names = list(dict.fromkeys(run for run, on in zip(points.runs, mask, strict=True) if on))
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


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
