"""Fitting the rates of the time model to measured steps, and how far off it is where it has not measured.

    minimise  sum over rows  w rho((log t(row; rates) - log seconds) / SCALE)
            + sum over rates  ((log rate - log prior) / sd)^2

rho is the soft L1 of least squares (a few wrong rows do not matter); w makes groups of rows count alike, whatever
their number; the prior keeps a rate that no row speaks about at a sensible value.

What the rates then still miss carries over to jobs of the same kinds (`known`). `calibrate` keeps all that and adds
what it missed on a few rows of one's own cluster (`own`).

    python -m glassformer.plan.calibration      # fits anew and writes data/rates.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError
from glassformer.plan.known import NOTHING, learn
from glassformer.plan.own import Own, features
from glassformer.plan.rates import PRIOR, RATES, Rates
from glassformer.plan.rows import Row, measured_rows
from glassformer.plan.steptime import spent
from glassformer.plan.work import Work, stack

Floats = NDArray[np.float64]

SCALE = 0.06
"""Residuals of log time much larger than this count less."""
SURE = {
    "products": 0.1, "products_8": 0.15, "products_4": 0.3, "bandwidth": 0.1, "score": 0.2, "scale_up": 0.13,
    "scale_out": 0.17, "hidden": 0.13, "exchange": 0.27, "stall": 0.2, "throttle": 0.4, "deepspeed": 0.07,
    "crowded": 0.07,
}  # fmt: skip
"""Standard deviations of the logarithm of what one would guess; 0.33 for the others."""
FREE = tuple(field.name for field in fields(Rates) if field.name not in ("known", "own"))


def timed(rows: Sequence[Row]) -> list[Row]:
    """Those that have both a job and a time."""
    return [row for row in rows if row.job is not None and row.seconds]


def fit(rows: Sequence[Row], start: Rates = PRIOR) -> Rates:
    """The rates that explain these rows' times best, with what they still miss on them."""
    rows = timed(rows)
    todo, taken = stack([row.job for row in rows if row.job]), np.log([row.seconds or 1.0 for row in rows])
    sizes = Counter(row.group for row in rows)
    weight = np.array([max(sizes[row.group], 2) ** -0.5 for row in rows])
    weight /= np.sqrt(np.mean(weight**2))
    plain = replace(start, known=NOTHING, own=())
    rates = _fit(todo, taken, weight, FREE, plain, PRIOR, np.array([SURE.get(name, 0.33) for name in FREE]))
    missed = taken - np.log(spent(todo, rates).total)
    known = learn([row.job for row in rows if row.job], [row.group for row in rows], missed.tolist())
    return replace(rates, known=known)


def _fit(
    todo: Work, taken: Floats, weight: Floats, names: Sequence[str], start: Rates, prior: Rates, sure: Floats
) -> Rates:
    from scipy.optimize import least_squares  # only a fit needs it, and it takes long to import

    expected = np.log([getattr(prior, name) for name in names])

    def rates(logs: Floats) -> Rates:
        found: dict[str, Any] = {name: float(np.exp(x)) for name, x in zip(names, logs, strict=True)}
        return replace(start, **found)

    def residuals(logs: Floats) -> Floats:
        off = (np.log(spent(todo, rates(logs)).total) - taken) / SCALE
        soft = np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
        return np.concatenate([weight * soft, (logs - expected) / sure])

    begin = np.log([getattr(start, name) for name in names])
    return rates(least_squares(residuals, begin, max_nfev=60).x)


def calibrate(rows: Sequence[Row], rates: Rates = RATES) -> Rates:
    """The rates with what they missed on a few measured rows of one's own cluster (`own`)."""
    rows = timed(rows)
    if not rows:
        raise UsageError(
            "There is no row to calibrate with.", expected="Rows with a shape, a layout and a time."
        )
    found = [
        Own(tuple(float(one) for one in features(row.job)), row.job.accelerator.name, -float(miss))
        for row, miss in zip(rows, misses(rows, replace(rates, own=())), strict=True)
        if row.job
    ]
    return replace(rates, own=(*rates.own, *found))


def left_out(
    rows: Sequence[Row], rates: Rates = RATES, by: Literal["group", "source"] = "group"
) -> dict[str, Rates]:
    """For each group (or source), the rates fitted to all others, from these on."""
    rows = timed(rows)
    names = dict.fromkeys(getattr(row, by) for row in rows)
    return {name: fit([row for row in rows if getattr(row, by) != name], rates) for name in names}


def misses(rows: Sequence[Row], rates: Rates) -> Floats:
    """log (forecast / measured) of each row."""
    rows = timed(rows)
    totals = spent(stack([row.job for row in rows if row.job]), rates).total
    missed = [float(rates.miss(row.job)) for row in rows if row.job]
    measured = np.array([row.seconds or 1.0 for row in rows])
    return np.asarray(np.log(totals / measured) + np.array(missed))


def calibrated_misses(rows: Sequence[Row], rates: Rates, draws: int = 5, many: int = 3) -> Floats:
    """The same for one group's rows, after calibrating with `many` of them, of those not drawn; over several draws."""
    rows = timed(rows)
    if len(rows) <= many:
        return np.zeros(0)
    found = []
    for seed in range(draws):
        drawn = set(np.random.default_rng(seed).permutation(len(rows))[:many].tolist())
        own = calibrate([row for i, row in enumerate(rows) if i in drawn], rates)
        found.append(misses([row for i, row in enumerate(rows) if i not in drawn], own))
    return np.concatenate(found)


def main(path: Path | None = None) -> None:
    """Fits the shipped rates to the shipped rows, and how far off they are to groups that are left out."""
    rows = timed(measured_rows())
    rates = fit(rows)
    apart = [
        misses([row for row in rows if getattr(row, by) == name], others)
        for by in ("group", "source")
        for name, others in left_out(rows, rates, by).items()
    ]
    jobs = [row.job for row in rows if row.job]
    points = {(tuple(round(float(x), 2) for x in features(job)), job.accelerator.name) for job in jobs}
    found = {
        "made by": "python -m glassformer.plan.calibration",
        "rates": {name: round(getattr(rates, name), 6) for name in FREE},
        "known": asdict(rates.known),
        "evidence": {
            "half width": _half(apart), "features": [list(numbers) for numbers, _ in sorted(points)],
            "accelerators": [name for _, name in sorted(points)],
        },
    }  # fmt: skip
    target = path or Path(__file__).parent / "data" / "rates.json"
    target.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _half(apart: Sequence[Floats]) -> float:
    """Between what holds 80 % of the rows and what holds 80 % where each group counts alike."""
    every = np.concatenate(apart)
    alike = np.concatenate([np.full(one.size, 1.0 / one.size) for one in apart])
    order = np.argsort(np.abs(every))
    weighted = np.abs(every)[order][np.searchsorted(np.cumsum(alike[order]) / alike.sum(), 0.8)]
    return round(float((np.quantile(np.abs(every), 0.8) + weighted) / 2), 4)


if __name__ == "__main__":
    main()
