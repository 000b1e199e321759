"""How far off a forecast of time may be: the middle 80 %, from what the model missed on groups left out of its fit.

    half width of log time = left x (shipped half width + FARTHER x max(0, distance - NEAR))

The distance is to the nearest measured row (`own.apart`). Within NEAR the measured misses do not grow with it; farther
there are few rows, and the width grows by what those miss more. `left` is the share of the uncertainty that rows of
one's own leave (`own.carried`).

The half width and the places of the measured rows are in data/rates.json, which `calibration` makes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from glassformer.plan.layout import Job
from glassformer.plan.own import OTHER_ACCELERATOR, carried, features
from glassformer.plan.rates import RATES, Rates

NEAR = 0.75
FARTHER = 0.07
LEAST = 0.7
"""Of the uncertainty, that stays however many rows of one's own there are: other days, other versions."""


def interval(job: Job, rates: Rates = RATES) -> tuple[float, float]:
    """Factors of the forecast between which 80 % of measured steps lie; of one job."""
    half = half_width(job, rates)
    return math.exp(-half), math.exp(half)


def half_width(job: Job, rates: Rates = RATES) -> float:
    """Of the middle 80 % of log time."""
    left = max(LEAST, float(carried(job, rates.own)[1]))
    return left * (float(_evidence()["half width"]) + FARTHER * max(0.0, distance(job) - NEAR))


def distance(job: Job) -> float:
    """To the nearest measured row."""
    here = np.array([float(np.mean(one)) for one in features(job)])
    found = _evidence()
    there, names = np.array(found["features"]), np.array(found["accelerators"])
    gaps = np.sqrt(np.sum((there - here) ** 2, axis=1)) + OTHER_ACCELERATOR * (names != job.accelerator.name)
    return float(np.min(gaps))


@cache
def _evidence() -> Mapping[str, Any]:
    text = (resources.files("glassformer.plan") / "data" / "rates.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["evidence"]
    return found
