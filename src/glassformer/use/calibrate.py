"""When it says 70%, is it right 70% of the time? And what to do about it when it is not.

Rows are put into bins by confidence, the probability of the class that was predicted. In bin m of n_m rows

    acc(m) = the fraction that is right,    conf(m) = mean confidence
    ECE    = sum_m n_m / n |acc(m) - conf(m)|             expected calibration error

(Naeini et al. 2015; Guo et al. 2017). A bin of few rows says little, so each accuracy has its 95% interval
(Wilson 1927). The ECE of a finite sample is above 0 even when every probability is right; how far is simulated,
by drawing each answer right with just its confidence (consistency resampling: Broecker and Smith 2007). An ECE
within that range is no evidence against the model.

Temperature scaling (Guo et al. 2017) divides all scores by one T > 0, fitted on rows held out from training:

    p = softmax(s / T),    T minimises -mean log p_y

Predictions stay; T > 1 makes them less certain. In b = 1 / T the loss is convex, for a row with scores s

    slope = E_p[s] - s_y,    curvature = Var_p[s]         p = softmax(b s)

so Newton's method, kept inside a bracket, finds the one minimum; its curvature gives the standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glassformer.errors import ModelError, UsageError
from glassformer.seeds import generator

Floats = NDArray[np.float64]
Binning = Literal["width", "rows"]

_Z = 1.959963984540054  # the normal distribution's 97.5% point
_WILKS = 3.841458820694124  # chi-squared with one degree of freedom, 95% point
_FEW_WRONG = 10
_MOST_STEPS = 200
_DRAWS_AT_ONCE = 2**22
_HOTTEST = 1e4
"""A temperature beyond this, or below its inverse, is none: the loss has no minimum in between."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of similar confidence."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean; NaN in an empty bin, as are those below."""
    accuracy: float
    accuracy_low: float
    """The 95% interval of the accuracy (Wilson)."""
    accuracy_high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far probabilities can be taken at their word."""

    bins: tuple[Bin, ...]
    num_rows: int
    accuracy: float
    confidence: float
    """Mean."""
    ece: float
    ece_by_chance: float
    """The mean ECE of a perfectly calibrated model with these confidences on as many rows."""
    ece_by_chance_high: float
    """Only 1 in 20 such models would have a larger one."""

    @property
    def looks_calibrated(self) -> bool:
        """Whether the error is no larger than chance explains."""
        return self.ece <= self.ece_by_chance_high

    def rows(self) -> list[dict[str, Any]]:
        """One row a bin that holds any, as `charts.reliability` draws them."""
        return [asdict(found) for found in self.bins if found.rows]


def calibration(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    bins: int = 10,
    binning: Binning = "width",
    draws: int = 1000,
    seed: int = 0,
) -> Calibration:
    """The reliability of `probabilities` (row, class) against the true class of each row.

    For yes and no answers, (row,) or (row, output) probabilities with targets 0 and 1 of the same shape: then
    confidence is the probability of yes, and accuracy the fraction of yes.
    """
    p, y = _checked(probabilities, targets)
    if p.shape == y.shape:
        confidence, right = p.ravel(), y.ravel().astype(bool)
    else:
        chosen = p.argmax(axis=1)
        confidence, right = p[np.arange(len(p)), chosen], chosen == y
    return reliability(confidence, right, bins=bins, binning=binning, draws=draws, seed=seed)


def reliability(
    confidence: ArrayLike,
    right: ArrayLike,
    *,
    bins: int = 10,
    binning: Binning = "width",
    draws: int = 1000,
    seed: int = 0,
) -> Calibration:
    """The same from each answer's confidence and whether it was right. Bins are equally wide, or, with
    `binning="rows"`, hold equally many rows."""
    if bins < 1:
        raise UsageError(f"There cannot be {bins} bins.", expected="At least 1.")
    c, r = np.asarray(confidence, np.float64), np.asarray(right, bool)
    edges = np.linspace(0, 1, bins + 1)
    if binning == "rows":
        edges = np.quantile(c, edges)
        edges[0], edges[-1] = 0.0, 1.0
    place = np.clip(np.searchsorted(edges, c, side="left") - 1, 0, bins - 1)  # (low, high], as Guo et al.
    count = np.bincount(place, minlength=bins)
    hits = np.bincount(place, weights=r, minlength=bins)
    sure = np.bincount(place, weights=c, minlength=bins).astype(np.float64)
    table = []
    for m in range(bins):
        n = int(count[m])
        accuracy, mean = (hits[m] / n, sure[m] / n) if n else (math.nan, math.nan)
        low, high = wilson(int(hits[m]), n)
        table.append(Bin(float(edges[m]), float(edges[m + 1]), n, float(mean), float(accuracy), low, high))
    by_chance = _by_chance(c, place, sure, draws, seed)
    return Calibration(
        bins=tuple(table), num_rows=len(c), accuracy=float(r.mean()), confidence=float(c.mean()),
        ece=float(np.abs(hits - sure).sum() / len(c)),
        ece_by_chance=float(by_chance.mean()), ece_by_chance_high=float(np.quantile(by_chance, 0.95)),
    )  # fmt: skip


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """The 95% interval of a fraction, `hits` of `rows`: (p + z^2/2n +- z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n)."""
    if rows == 0:
        return math.nan, math.nan
    p, z2 = hits / rows, _Z**2 / rows
    half = _Z * math.sqrt(p * (1 - p) / rows + z2 / (4 * rows))
    low, high = (p + z2 / 2 - half) / (1 + z2), (p + z2 / 2 + half) / (1 + z2)
    return (0.0 if hits == 0 else low), (1.0 if hits == rows else high)


@dataclass(frozen=True, slots=True)
class Temperature:
    """The one number that scores are divided by."""

    value: float
    standard_error: float
    loss_before: float
    """Mean nats a row on the rows it was fitted on, with T = 1."""
    loss: float
    """The same with `value`."""
    num_rows: int
    num_wrong: int
    """Of them: how often being wrong is what the temperature is learnt from."""

    @property
    def matters(self) -> bool:
        """Whether the loss falls by more than chance would let it with T = 1, once in 20 times: twice the
        difference of the summed losses is above 3.84 (Wilks 1938)."""
        return 2 * self.num_rows * (self.loss_before - self.loss) > _WILKS

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why it may be better not to use it."""
        found = []
        if self.num_wrong < _FEW_WRONG:
            found.append(
                f"Only {self.num_wrong} of {self.num_rows:,} rows are wrong: the temperature hangs on them. "
                "Hold out more rows before using it."
            )
        if not self.matters:
            found.append(
                f"The temperature {self.value:.2f} +- {self.standard_error:.2f} is no better than 1 by more than "
                "chance: the probabilities may be left as they are."
            )
        return tuple(found)


def fit_temperature(scores: ArrayLike, targets: ArrayLike) -> Temperature:
    """T for `scores` (row, class) and the true class of each row, or, for yes and no answers, scores and
    targets 0 and 1 of the same shape. The rows must not be those that were trained on."""
    s, y = _checked(scores, targets)
    if s.shape == y.shape:  # sigmoid(s) is the softmax of 0 and s
        s, y = np.stack([np.zeros(s.size), s.ravel()], axis=1), y.ravel()
    y = y.astype(np.int64)
    s = s - s.max(axis=1, keepdims=True)  # softmax does not change, and exp never overflows

    def at(b: float) -> tuple[float, float, float]:
        """(loss, slope, curvature) in b = 1 / T, means over the rows."""
        e = np.exp(b * s)
        total = e.sum(axis=1)
        p = e / total[:, None]
        mean = (p * s).sum(axis=1)
        of_y = s[np.arange(len(s)), y]
        loss = np.log(total) - b * of_y
        spread = (p * s**2).sum(axis=1) - mean**2
        return float(loss.mean()), float((mean - of_y).mean()), float(spread.mean())

    b = _minimise(at)
    loss, _, curvature = at(b)
    error_of_b = 1 / math.sqrt(len(s) * curvature) if curvature > 0 else math.inf
    wrong = int((s.argmax(axis=1) != y).sum())
    return Temperature(1 / b, error_of_b / b**2, at(1.0)[0], loss, len(s), wrong)


def scaled(scores: ArrayLike, temperature: float, *, yes_or_no: bool = False) -> Floats:
    """The probabilities softmax(s / T), or sigmoid(s / T) for yes and no answers."""
    s = np.asarray(scores, np.float64) / temperature
    if yes_or_no:
        found: Floats = np.exp(-np.logaddexp(0.0, -s))
        return found
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    share: Floats = e / e.sum(axis=-1, keepdims=True)
    return share


def _minimise(at: Callable[[float], tuple[float, float, float]]) -> float:
    """Where the slope, which only rises, is 0: Newton's step, or the middle of the bracket where it leaves it."""
    low, high = 1 / _HOTTEST, _HOTTEST
    if at(low)[1] >= 0:
        raise ModelError(
            "No temperature helps: the scores say nothing about the right classes.",
            expected="Scores that are higher, on average, for the right class.",
            do="Train longer, and check that rows and targets belong together.",
        )
    if at(high)[1] <= 0:
        raise ModelError(
            "No temperature fits: every row is right, so any smaller one looks still better.",
            expected="Some rows that are wrong, to learn from how often it is.",
            do="Hold out more rows, with data.validation.",
        )
    b = 1.0
    for _ in range(_MOST_STEPS):
        _, slope, curvature = at(b)
        low, high = (b, high) if slope < 0 else (low, b)
        newton = b - slope / curvature if curvature > 0 else math.inf
        following = newton if low < newton < high else math.sqrt(low * high)
        if abs(following - b) <= 1e-12 * b:
            return following
        b = following
    return b


def _by_chance(confidence: Floats, place: NDArray[np.intp], sure: Floats, draws: int, seed: int) -> Floats:
    """The ECE of each of `draws` samples in which every answer is right with its confidence."""
    rng = generator(seed, "calibration")
    order = np.argsort(place, kind="stable")
    sorted_confidence, sorted_place = confidence[order], place[order]
    starts = np.flatnonzero(np.diff(sorted_place, prepend=-1))
    expected = sure[sorted_place[starts]]
    found = []
    at_once = max(1, _DRAWS_AT_ONCE // len(confidence))
    for first in range(0, draws, at_once):
        right = rng.random((min(at_once, draws - first), len(confidence))) < sorted_confidence
        hits = np.add.reduceat(right, starts, axis=1, dtype=np.int64)
        found.append(np.abs(hits - expected).sum(axis=1) / len(confidence))
    return np.concatenate(found)


def _checked(values: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[Any]]:
    v, y = np.asarray(values, np.float64), np.asarray(targets)
    if v.shape != y.shape and (v.ndim != 2 or y.shape != v.shape[:1]):
        raise ModelError(
            f"{list(v.shape)} numbers and {list(y.shape)} targets do not belong together.",
            expected="A row of numbers for each target class, or a number for each yes or no.",
        )
    if len(y) == 0:
        raise ModelError("There are no rows to calibrate on.", do="Hold out some, with data.validation.")
    top = 2 if v.shape == y.shape else v.shape[1]
    if y.min() < 0 or y.max() >= top or (y != y.astype(np.int64)).any():
        raise ModelError(
            f"The targets go from {y.min()} to {y.max()}.", expected=f"Whole numbers from 0 to {top - 1}."
        )
    if not np.isfinite(v).all():
        raise ModelError("Some of the numbers are not finite.", do="Use weights from before they overflowed.")
    return v, y
