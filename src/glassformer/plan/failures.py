"""How often a run is interrupted, and how long it takes to be back.

    interruptions a day = nodes r / 1000           r: failures for each 1000 node-days
    mean time between interruptions of a job = 24 h / (nodes r / 1000)

Systems differ (r from 3 to 15 in data/failures.csv), so r of a new system is itself uncertain: each system's r is drawn
from a gamma distribution of mean m and shape a, its failures are Poisson with that rate, and m and a are as unsure as
few records leave them. Of every pair (m, a) on a grid the likelihood of the records is the negative binomial's;
what a new system would show is the mixture over the grid: a hierarchical gamma-Poisson. Priors are flat in log m and in
the spread between systems, a^(-1/2), from 0.1 to 1.4 (Gelman 2006, Bayesian Analysis 1: with few groups a flat prior on
their spread does not talk it small; 1.4 is a = 1/2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError
from glassformer.plan.hardware import data_rows

Array = NDArray[np.float64]

DRAWS = 4000
_MEANS = np.geomspace(0.3, 100.0, 80)
_SPREADS = np.linspace(0.1, 1.4, 40)


@dataclass(frozen=True, slots=True)
class Record:
    """What one system has shown."""

    system: str
    node_days: float
    failures: float
    """Interruptions that nobody planned."""
    source: str
    planned: float = 0.0
    """Stops that somebody planned, in the same time."""

    @property
    def rate(self) -> float:
        """r, for each 1000 node-days."""
        return 1000 * self.failures / self.node_days


@dataclass(frozen=True, slots=True)
class Between:
    """A number with the ends of an interval of stated share."""

    value: float
    low: float
    high: float
    share: float = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Rate:
    """r of a system, as draws of what it may be: of one that nobody has watched, or of one with records."""

    draws: Array
    source: str

    @property
    def value(self) -> float:
        """The median."""
        return self.within().value

    def within(self, share: float = 0.9) -> Between:
        """r with its interval."""
        return middle(self.draws, share)

    def mtbf(self, nodes: float) -> float:
        """Hours between interruptions of a job on so many nodes, at the median rate."""
        return mtbf(nodes, self.value)

    def interruptions(self, nodes: float, days: float, share: float = 0.9, seed: int = 0) -> Between:
        """How many a run of so many days meets. The interval holds what the next system may show: r is drawn, and
        with it a Poisson count; the value is the mean at the median rate."""
        mean = nodes * days / 1000 * self.draws
        counts = np.random.default_rng(seed).poisson(mean)
        found = middle(counts.astype(float), share)
        return Between(nodes * days / 1000 * self.value, found.low, found.high, share)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from a failure to the first new step, part by part."""

    detect: float
    reschedule: float
    init: float
    """Processes start and find each other."""
    restore: float
    warm_up: float

    @property
    def seconds(self) -> float:
        return self.detect + self.reschedule + self.init + self.restore + self.warm_up


def mtbf(nodes: float, rate: float) -> float:
    """24 h / (nodes r / 1000)."""
    if nodes <= 0 or rate <= 0:
        raise UsageError(
            f"There are {nodes:g} nodes that fail {rate:g} times a 1000 node-days.", expected="More than 0."
        )
    return 24 / (nodes * rate / 1000)


def records(path: Path | None = None) -> list[Record]:
    """The published systems whose rate is known: counted, or printed with its node-days. Or those of another table."""
    found = []
    for row in data_rows("failures", path):
        if not (row["failures_per_1000_node_days"] and row["nodes"] and row["days"]):
            continue
        node_days = float(row["nodes"]) * float(row["days"])
        counted = re.search(r"\d+", row["unexpected_interruptions"])
        failures = (
            float(counted[0]) if counted else float(row["failures_per_1000_node_days"]) * node_days / 1000
        )
        planned = float(row["planned_interruptions"] or 0)
        found.append(Record(row["system"], node_days, failures, row["source"], planned))
    return found


def rate_of_next(given: Sequence[Record] | None = None) -> Rate:
    """r of a system that nobody has watched yet, from records of others; by default the published ones."""
    return _published() if given is None else _fit(tuple(given))


def rate_known(failures: float, node_days: float) -> Rate:
    """r of a system that has failed so often: gamma of shape failures + 1/2 (Jeffreys' prior of a Poisson rate)."""
    if node_days <= 0 or failures < 0:
        raise UsageError(f"{failures:g} failures in {node_days:g} node-days.", expected="Node-days above 0.")
    draws = np.random.default_rng(0).gamma(failures + 0.5, 1000 / node_days, DRAWS)
    return Rate(draws, "the user's own records")


def planned_share() -> float:
    """Planned stops for each unplanned interruption, where both were counted (Llama 3: 47 to 419)."""
    counted = [one for one in records() if one.planned]
    return sum(one.planned for one in counted) / sum(one.failures for one in counted)


def init_seconds(accelerators: float) -> float:
    """Starting the collectives' library: 200 s on 16 thousand accelerators and 900 s on 98 thousand (2510.20171),
    a power law through both, and never less than 5 s."""
    power = math.log(900 / 200) / math.log(98_000 / 16_384)
    return max(5.0, float(200 * (accelerators / 16_384) ** power))


def recovery(
    accelerators: float,
    *,
    restore: float,
    detect: float = 134.0,
    reschedule: float = 60.0,
    warm_up: float = 60.0,
) -> Recovery:
    """A restart without hands.

    `detect` lies between the 30 s of a watched network card and the 10 min after which a collective gives up
    (2509.16293), by default their geometric mean; `reschedule` and `warm_up` are assumptions of a minute each."""
    return Recovery(detect, reschedule, init_seconds(accelerators), restore, warm_up)


RSC1_JOBS = Record(
    "Meta RSC-1, its jobs of 1,024 GPUs", 128 * 330, 128 * 330 * 24 / (128 * 7.9), "arXiv 2410.21680"
)
"""A mean of 7.9 h to a failure, over the 330 days of its fleet: seen from the jobs, r is 24 and not the fleet's 6.5.
No record of its own, since it is the same machine; what is predicted is held against it."""


def left_out(share: float = 0.9) -> list[tuple[Record, Between]]:
    """Each record with the interval that all the others give for its failures; last `RSC1_JOBS`, from all."""
    known = records()
    found = []
    for one in (*known, RSC1_JOBS):
        others = _fit(tuple(other for other in known if other is not one))
        found.append((one, others.interruptions(one.node_days, 1, share)))
    return found


@cache
def _published() -> Rate:
    return _fit(tuple(records()))


def _fit(given: tuple[Record, ...]) -> Rate:
    if not given:
        raise UsageError("There is no record to take a failure rate from.", expected="At least one.")
    mean, shape = (grid.ravel() for grid in np.meshgrid(_MEANS, _SPREADS**-2.0))
    likelihood = np.zeros_like(mean)
    for one in given:
        likelihood += _negative_binomial(one.failures, one.node_days / 1000 * mean, shape)
    weights = np.exp(likelihood - likelihood.max())
    chance = np.random.default_rng(0)
    cell = chance.choice(len(mean), DRAWS, p=weights / weights.sum())
    draws = chance.gamma(shape[cell], mean[cell] / shape[cell])
    return Rate(draws, "gamma-Poisson over " + ", ".join(one.system for one in given))


def _negative_binomial(count: float, mean: Array, shape: Array) -> Array:
    """log P(count) of a Poisson whose rate is gamma of this mean and shape."""
    together = np.log(mean + shape)
    ways = _log_gamma(count + shape) - _log_gamma(shape) - math.lgamma(count + 1)
    return np.asarray(ways + shape * (np.log(shape) - together) + count * (np.log(mean) - together))


def _log_gamma(values: Array) -> Array:
    each, place = np.unique(values, return_inverse=True)
    return np.array([math.lgamma(one) for one in each])[place]


def middle(draws: Array | Sequence[float], share: float) -> Between:
    """The median, and what the middle share lies between: as np.quantile has it, which would import numpy.ma."""
    wanted = np.array([(1 - share) / 2, 0.5, (1 + share) / 2]) * (len(draws) - 1)
    low, value, high = np.interp(wanted, np.arange(len(draws)), np.sort(draws))
    return Between(float(value), float(low), float(high), share)
