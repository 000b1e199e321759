"""Which size is best for a given compute, without a law of the loss: Chinchilla's approaches 1 and 2.

    IsoFLOP (approach 2)   of the runs that cost the same C, a parabola of the loss in log N has its lowest point at N*
    envelope (approach 1)  of all training curves, the one that is lowest at C is of a run of size N*

and both then fit N* = G C^a, a straight line in logarithms; D* = C / (6 N*). Hoffmann et al. 2022, sections 3.1, 3.2.

A parabola is right near its lowest point alone: on a wide grid, or one whose middle is not the lowest point, it is off
where alpha and beta differ (Open-Athena 2026, 2603.22339): up to 4 % of N* with runs 16 times smaller and larger, 0.3 %
with 2 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.scale.laws import Array
from glassformer.scale.points import Points
from glassformer.units import show_count

Index = NDArray[np.intp]

_SAME_BUDGET = 1.25
"""Neighbouring C within this factor are one budget."""
_FEWEST = 4
"""Runs that hold a parabola, with one to spare."""
_DENSE = 8
"""Runs that make a budget where there are runs all around."""
_ENVELOPE = 1500
"""Values of C at which training curves are compared."""


@dataclass(frozen=True)
class Profile:
    """The runs of one budget and their parabola, loss = lowest + curvature * (log N - log N*)^2."""

    C: float
    N: float
    D: float
    loss: float
    curvature: float
    num_runs: int
    inside: bool
    """Whether the lowest point is between the runs, not beyond them."""


@dataclass(frozen=True)
class Allocation:
    """N* = G C^a, with 80 and 95 % intervals of a."""

    method: str
    a: float
    log_G: float  # noqa: N815 # the field's symbol
    profiles: Sequence[Profile]
    draws: Array = field(repr=False)
    """(replicate, 2): a and log G."""
    warnings: Sequence[str] = ()

    def best(self, C: float) -> tuple[float, float]:  # noqa: N803 # the field's symbol
        """(N*, D*) at C FLOPs."""
        N = float(np.exp(self.log_G + self.a * np.log(C)))  # noqa: N806
        return N, C / (6 * N)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of the exponent a."""
        low, high = np.quantile(self.draws[:, 0], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def facts(self) -> dict[str, Any]:
        """The exponents with their intervals, and what they say at 1e21 and 1e24 FLOPs."""
        low, high = self.interval()
        said = {f"N* at {c:.0e}": show_count(self.best(c)[0]) for c in (1e21, 1e24)}
        return {
            "method": self.method, "N* ~ C^a, a": f"{self.a:.3f} ({low:.3f} to {high:.3f})",
            "D* ~ C^b, b": f"{1 - self.a:.3f}", **said,
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """What it says, in words."""
        low, high = self.interval()
        most = max(p.C for p in self.profiles)
        said = [
            f"By {self.method}, the best size grows as C^{self.a:.3f} (95 %: {low:.3f} to {high:.3f}), tokens as "
            f"C^{1 - self.a:.3f}."
        ]  # fmt: skip
        for times in (1, 10, 100):
            n, d = self.best(times * most)
            said.append(
                f"At {times * most:.3g} FLOPs".replace("e+", "e")
                + f": {show_count(n)} parameters on {show_count(d)} tokens, {d / n:.3g} for each parameter."
            )
        return said

    def compared(self, points: Points) -> list[dict[str, Any]]:
        """What each approach says of the same points at a hundred times the largest compute."""
        return approaches(points, 100 * max(p.C for p in self.profiles))

    def chart(self) -> charts.Spec:
        """The best size by compute."""
        from glassformer.scale.pictures import sizes

        return sizes(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file."""
        low, high = self.interval()
        return {
            "method": self.method, "a": self.a, "low": low, "high": high, "log_G": self.log_G, "profiles": self.rows(),
            "warnings": list(self.warnings),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        from glassformer.scale.pictures import sizes
        from glassformer.scale.report import card

        said = [f"{name}: {value}" for name, value in self.facts().items()]
        return card("Best size by compute", said, self.rows(), warnings=self.warnings, chart=sizes(self))

    def rows(self) -> list[dict[str, Any]]:
        """One row a budget."""
        return [
            {"C": p.C, "N": p.N, "D": p.D, "tokens per parameter": p.D / p.N, "loss": p.loss, "runs": p.num_runs}
            for p in self.profiles
        ]  # fmt: skip


def allocation(
    points: Points, method: str = "isoflop", *, bootstrap: int = 1000, seed: int = 0
) -> Allocation:
    """The best size for a compute, by `isoflop` (approach 2) or `envelope` (approach 1)."""
    return (isoflop if method == "isoflop" else envelope)(points, bootstrap=bootstrap, seed=seed)


def approaches(points: Points, flops: float, *, bootstrap: int = 200) -> list[dict[str, Any]]:
    """What each approach that the points allow says of the best size at `flops`: they need not agree."""
    from glassformer.scale.fit import fit
    from glassformer.scale.optimum import lowest, lowest_of

    rows: list[dict[str, Any]] = []
    for number, method in ((1, "envelope"), (2, "isoflop")):
        try:
            found = allocation(points, method, bootstrap=bootstrap)
        except UsageError:
            continue
        low, high = np.quantile(np.exp(found.draws[:, 1] + found.draws[:, 0] * np.log(flops)), [0.1, 0.9])
        rows.append(
            _approach(
                f"{number}: {method}", found.a, found.interval(), flops, found.best(flops)[0], low, high
            )
        )
    try:
        law = fit(points, bootstrap=bootstrap)
    except UsageError:
        return rows
    low, high = np.quantile(lowest_of(law.log_loss, flops, 0.0, law.draws), [0.1, 0.9])
    rows.append(
        _approach("3: chinchilla", law.values["a"], law.interval("a"), flops, lowest(law, flops), low, high)
    )
    return rows


def isoflop(
    points: Points, *, window: float | None = None, bootstrap: int = 1000, seed: int = 0
) -> Allocation:
    """Approach 2. `window`: only runs within this factor of the lowest one's N, when given.

    Raises UsageError where fewer than two budgets have a lowest point.
    """
    budgets = _budgets(points.C)
    sets = [_near_lowest(points, index, window) for index in budgets if len(index) >= _FEWEST]
    profiles = [_profile(points, index) for index in sets]
    whole = [(p, index) for p, index in zip(profiles, sets, strict=True) if p is not None]
    warnings = [
        f"{len(sets) - len(whole)} of {len(sets)} budgets have no lowest point: their losses bend the other way"
    ] * (len(whole) < len(sets))
    kept = [(p, index) for p, index in whole if p.inside]
    if len(kept) < len(whole):
        warnings.append(
            f"of {len(whole) - len(kept)} budgets the lowest point is beyond their runs; they are left out: add larger "
            "or smaller runs there"
        )
    if len(kept) < 2:
        raise UsageError(
            f"{len(kept)} budget{'s' * (len(kept) != 1)} with a lowest point, of {len(budgets)} values of C.",
            expected="At least 2 budgets of 4 runs each that cost the same C (within 25 %).",
            do="Approach 3 (`chinchilla`) needs no equal budgets.",
        )
    a, log_g = _line([p for p, _ in kept])
    rng = np.random.default_rng(seed)
    draws = _line_draws(points, [index for _, index in kept], bootstrap, rng)
    return Allocation("isoflop", a, log_g, [p for p, _ in kept], draws, warnings)


def envelope(points: Points, *, bootstrap: int = 200, seed: int = 0) -> Allocation:
    """Approach 1: each run's points, in order of C, are its curve; between them it is straight in logarithms.

    The lowest of many noisy curves is too low, and of a run that was lucky: the exponent hardly suffers from it, the
    loss does. Raises UsageError where fewer than two runs have curves of two points.
    """
    names = sorted(set(points.runs))
    runs = np.asarray(points.runs)
    curves = []
    for name in names:
        index = np.flatnonzero(runs == name)
        if len(index) >= 2:
            order = index[np.argsort(points.C[index])]
            curves.append(
                (np.log(points.C[order]), np.log(points.loss[order]), float(np.log(points.N[order[0]])))
            )
    if len(curves) < 3:
        raise UsageError(
            f"{len(curves)} runs have a curve of two points or more.",
            expected="The envelope compares the training curves of at least 3 runs, several points each.",
            do="Name the column that says which run a point is of: --columns run=NAME.",
        )
    low = min(c[0] for c, _, _ in curves)
    high = max(c[-1] for c, _, _ in curves)
    grid = np.linspace(low, high, _ENVELOPE)
    losses = np.stack([np.interp(grid, c, y, left=np.inf, right=np.inf) for c, y, _ in curves])
    sizes = np.array([n for _, _, n in curves])

    def line(chosen: NDArray[np.intp]) -> tuple[float, float, Array]:
        among = losses[chosen]
        covered = np.isfinite(among).any(axis=0)
        best = sizes[chosen][np.argmin(among[:, covered], axis=0)]
        a, b = np.polyfit(grid[covered], best, 1)
        return float(a), float(b), best

    everyone = np.arange(len(curves))
    a, log_g, best = line(everyone)
    rng = np.random.default_rng(seed)
    draws = np.array([line(rng.choice(everyone, len(everyone)))[:2] for _ in range(bootstrap)])
    shown = slice(0, len(best), _ENVELOPE // 10)
    lowest = np.exp(losses.min(axis=0))
    profiles = [
        Profile(float(np.exp(c)), float(np.exp(n)), float(np.exp(c - n) / 6), float(loss), 0.0, 0, True)
        for c, n, loss in zip(grid[shown], best[shown], lowest[shown], strict=False)
    ]
    ends = int((best == sizes.max()).sum() + (best == sizes.min()).sum())
    warnings = [
        f"at {ends / len(best):.0%} of all C the lowest curve is of the largest or the smallest run there is: the best "
        "may lie beyond them"
    ] * (ends > 0.4 * len(best))
    return Allocation("envelope", a, log_g, profiles, draws, warnings)


def _approach(
    name: str, a: float, interval: tuple[float, float], flops: float, N: float, low: float, high: float  # noqa: N803
) -> dict[str, Any]:  # fmt: skip
    return {
        "approach": name, "a": a, "a from": interval[0], "a to": interval[1], "N*": N, "N* from (80 %)": float(low),
        "N* to": float(high), "D*": flops / (6 * N), "tokens per parameter": flops / (6 * N * N),
    }  # fmt: skip


def _budgets(C: Array) -> list[Index]:  # noqa: N803 # the field's symbol
    """Indices of the points of each budget, the smallest first. Where the gaps between budgets are filled with other
    runs, a budget is a stretch of C, no wider than `_SAME_BUDGET`, in which runs are dense."""
    order = np.argsort(C)
    cuts = np.flatnonzero(np.diff(np.log(C[order])) > np.log(_SAME_BUDGET)) + 1
    found = []
    for group in np.split(order, cuts):
        if C[group].max() <= _SAME_BUDGET**2 * C[group].min():
            found.append(group)
            continue
        left = group
        while len(left):
            ends = np.searchsorted(C[left], _SAME_BUDGET * C[left], side="right")
            counts = ends - np.arange(len(left))
            start = int(np.argmax(counts))
            if counts[start] < _DENSE:
                break
            found.append(left[start : ends[start]])
            left = np.concatenate([left[:start], left[ends[start] :]])
    return sorted(found, key=lambda group: float(C[group[0]]))


def _near_lowest(points: Points, index: Index, window: float | None) -> Index:
    if window is None:
        return index
    lowest = points.N[index[np.argmin(points.loss[index])]]
    near: Index = index[np.abs(np.log(points.N[index] / lowest)) <= np.log(window)]
    return near if len(near) >= _FEWEST else index


def _profile(points: Points, index: Index) -> Profile | None:
    """None where the points bend downwards or hold no parabola."""
    n, loss, budget = (
        np.log(points.N[index]),
        points.loss[index],
        float(np.exp(np.log(points.C[index]).mean())),
    )
    if len(np.unique(n)) < 3:
        return None
    middle = n.mean()
    curvature, slope, height = np.polyfit(n - middle, loss, 2)
    if curvature <= 0:
        return None
    at = -slope / (2 * curvature)
    N = float(np.exp(middle + at))  # noqa: N806
    inside = bool(n.min() <= middle + at <= n.max())
    return Profile(
        budget, N, budget / (6 * N), float(height - curvature * at**2), float(curvature), len(index), inside
    )


def _line_draws(points: Points, sets: Sequence[Index], count: int, rng: np.random.Generator) -> Array:
    """(replicate, 2): a and log G when the runs of each budget are drawn again. Replicates in which fewer than two
    budgets have a lowest point between their runs are left out."""
    log_c = np.array([np.log(points.C[index]).mean() for index in sets])
    log_n = np.full((count, len(sets)), np.nan)
    for k, index in enumerate(sets):
        weights = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), count).astype(np.float64)
        x = np.log(points.N[index])
        middle, powers = x.mean(), np.stack([np.ones_like(x), x - x.mean(), (x - x.mean()) ** 2])
        gram = np.einsum("rp,ip,jp->rij", weights, powers, powers) + 1e-12 * np.eye(3)
        sums = np.einsum("rp,ip,p->ri", weights, powers, points.loss[index])
        _, slope, curvature = np.linalg.solve(gram, sums[..., None])[..., 0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.where(curvature > 0, middle - slope / (2 * curvature), np.nan)
        log_n[:, k] = np.where((at >= x.min()) & (at <= x.max()), at, np.nan)
    held = np.isfinite(log_n)
    log_n, held = log_n[held.sum(axis=1) >= 2], held[held.sum(axis=1) >= 2]
    number = held.sum(axis=1)
    c = np.where(held, log_c, 0.0)
    mean_c, mean_n = c.sum(axis=1) / number, np.nansum(log_n, axis=1) / number
    off_c = np.where(held, log_c - mean_c[:, None], 0.0)
    a = (off_c * np.where(held, log_n, 0.0)).sum(axis=1) / (off_c**2).sum(axis=1)
    return np.stack([a, mean_n - a * mean_c], axis=1)


def _line(profiles: Sequence[Profile]) -> tuple[float, float]:
    """(a, log G) of log N* = log G + a log C, by least squares."""
    a, log_g = np.polyfit(np.log([p.C for p in profiles]), np.log([p.N for p in profiles]), 1)
    return float(a), float(log_g)
