"""How far off a forecast of time may be: the middle 80 %, from what the time model missed on groups left out of its fit.

    half width of log time = shipped half width + FARTHER x max(0, distance - NEAR)

The distance of a job is to the nearest measured row, in features: a factor of ten in active parameters or accelerators
is 1, in tokens of a row 1.5, another accelerator 0.5, experts, another precision or an encoder-decoder 1. Within NEAR the
measured misses do not grow with it; farther there are few rows, and the width grows by what those miss more.

The half widths (of all rows, and of those calibrated with three rows of their group) and the features of the measured
rows are in data/rates.json, which `calibration` makes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.layout import Job
from glassformer.plan.rates import RATES, Rates

NEAR = 0.75
FARTHER = 0.07
ENOUGH = 3
"""Own rows with which the calibrated width holds."""


def interval(job: Job, rates: Rates = RATES) -> tuple[float, float]:
    """Factors of the forecast between which 80 % of measured steps lie; of one job."""
    half = half_width(job, rates)
    return math.exp(-half), math.exp(half)


def half_width(job: Job, rates: Rates = RATES) -> float:
    """Of the middle 80 % of log time."""
    found = _evidence()
    known = min(rates.own_rows / ENOUGH, 1.0)
    base = found["half width"] * (1.0 - known) + found["half width calibrated"] * known
    far = max(0.0, distance(job) - NEAR) * (1.0 if rates.own_rows < ENOUGH else 0.5)
    return float(base + FARTHER * far)


def distance(job: Job) -> float:
    """To the nearest measured row."""
    here, name = features(job)
    found = _evidence()
    there, names = np.array(found["features"]), np.array(found["accelerators"])
    apart = np.sqrt(np.sum((there - here) ** 2, axis=1)) + 0.5 * (names != name)
    return float(np.min(apart))


def features(job: Job) -> tuple[NDArray[np.float64], str]:
    """Where a job lies among others, and its accelerator."""
    a = job.architecture
    ranks = float(np.mean(job.layout.accelerators))
    numbers = [
        math.log10(max(1, a.active_parameters)), math.log10(max(1.0, ranks)), 1.5 * math.log10(max(1, job.length)),
        float(a.experts > 0), {"fp8": 1.0, "fp4": 2.0}.get(job.precision.peak, 0.0), float(a.encoder_layers > 0),
        0.5 * float(job.trained is not None),
    ]  # fmt: skip
    return np.array(numbers), job.accelerator.name


@cache
def _evidence() -> Mapping[str, Any]:
    text = (resources.files("glassformer.plan") / "data" / "rates.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["evidence"]
    return found
