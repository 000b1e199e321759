"""What failures and checkpoints cost: how often to save, and the share of time that ends up as training.

Symbols, all in seconds: delta, the stall of a save; W, its write, which may go on beside the steps; tau, the work
between two saves; M, the mean time between failures; R, the time to be back after one.

    Young (1974)                tau = sqrt(2 delta M)
    Daly (2006)                 tau = sqrt(2 delta M) (1 + sqrt(delta/2M)/3 + delta/18M) - delta, and M where delta > 2M
    most available (2410.18124) tau = delta + sqrt(2 (M + R) delta + delta^2), a period that holds the stall
    lost, to first order        delta/tau + tau/2M + (R + W)/M
    goodput, exactly            tau / (M e^((R + W)/M) (e^((tau + delta)/M) - 1))

The exact line is Daly's, for failures that strike at any time, in saves and restarts too. A write beside the steps
stalls nothing, but what was done during it has to be done again after a failure, as if R were longer by W.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError
from glassformer.plan.failures import Between, middle
from glassformer.plan.hardware import data_rows
from glassformer.plan.precision import Precision

Number = float | NDArray[np.float64]

SNAPSHOT_BYTES_PER_SECOND = 10e9
"""From an accelerator to its host. An assumption: half of what PCIe 4.0 x16 carries at best."""
SNAPSHOT_SECONDS = 1.0
"""All ranks wait for each other. An assumption."""
_HOPELESS = 300.0
"""Failures in the time of one segment or restart, above which e^x overflows and more would change nothing."""
FIRST_ORDER_HOLDS = 0.2
"""Share lost, above which the first order is no longer used."""


@dataclass(frozen=True, slots=True)
class Saving:
    """One checkpoint, in seconds."""

    stall: float
    """delta: the steps wait."""
    write: float = 0.0
    """W: until it is safe, after the stall. 0 where the steps wait for all of it."""

    @property
    def least_interval(self) -> float:
        """A save begins only when the last one is safe."""
        return max(self.write, 1e-9)


def young(stall: Number, mtbf: Number) -> Number:
    """sqrt(2 delta M)."""
    return np.sqrt(2 * np.asarray(stall) * mtbf)[()]


def daly(stall: float, mtbf: float) -> float:
    """Young's interval with the next terms of the series."""
    if stall >= 2 * mtbf:
        return mtbf
    ratio = stall / (2 * mtbf)
    return float(np.sqrt(2 * stall * mtbf) * (1 + np.sqrt(ratio) / 3 + ratio / 9) - stall)


def most_available(stall: float, mtbf: float, restart: float) -> float:
    """The period, stall included, at which the largest share of time is left for work."""
    return float(stall + np.sqrt(2 * (mtbf + restart) * stall + stall**2))


def best_interval(saving: Saving, mtbf: float, restart: float) -> float:
    """Work between two saves: the most available period without its stall, but never less than a write."""
    return max(most_available(saving.stall, mtbf, restart) - saving.stall, saving.least_interval)


def lost_share(interval: Number, saving: Saving, mtbf: Number, restart: Number) -> Number:
    """To first order: delta/tau + tau/2M + (R + W)/M."""
    return (
        saving.stall / interval
        + interval / (2 * np.asarray(mtbf))
        + (restart + saving.write) / np.asarray(mtbf)
    )


def goodput(interval: Number, saving: Saving, mtbf: Number, restart: Number) -> Number:
    """Share of time that ends up as training, exactly, where failures come as a Poisson process."""
    m = np.asarray(mtbf, dtype=float)
    back, segment = (
        np.minimum(one / m, _HOPELESS) for one in (restart + saving.write, interval + saving.stall)
    )
    spent = np.exp(back) * m * np.expm1(segment)
    share: Number = (interval / spent)[()]
    return share


def stall_table(
    mtbf_hours: float,
    restart: float,
    *,
    work_days: float,
    accelerators: int,
    stalls: Sequence[float] = (10, 30, 60, 300),
) -> list[dict[str, Any]]:
    """What checkpoints of 10 s up to 5 min cost one run: a row for each stall, at its own best interval."""
    rows = []
    for stall in stalls:
        mtbf = 3600 * mtbf_hours
        interval = best_interval(Saving(stall), mtbf, restart)
        share = float(goodput(interval, Saving(stall), mtbf, restart))
        days = work_days / share
        rows.append({
            "stall_seconds": stall, "interval_minutes": interval / 60, "goodput": share, "days": days,
            "lost_accelerator_hours": 24 * (days - work_days) * accelerators,
        })  # fmt: skip
    return rows


def checkpoint_bytes(parameters: float, precision: Precision) -> float:
    """Weights, 32-bit masters and Adam's two moments: 14 bytes a parameter in mixed precision. BLOOM's are 13."""
    return parameters * (precision.weight + precision.master + 2 * precision.moment)


def saving_synchronous(size: float, nodes: float, *, storage: float | None = None) -> Saving:
    """The steps wait until all is written."""
    return Saving(write_seconds(size, nodes, storage=storage).value)


def saving_asynchronous(
    size: float, nodes: float, accelerators: float, *, storage: float | None = None
) -> Saving:
    """The steps wait for the copy to the hosts' memory; the write goes on beside them."""
    stall = SNAPSHOT_SECONDS + size / accelerators / SNAPSHOT_BYTES_PER_SECOND
    return Saving(stall, write_seconds(size, nodes, storage=storage).value)


def write_seconds(size: float, nodes: float, *, storage: float | None = None) -> Between:
    """How long a checkpoint of so many bytes takes to write (or to read): bytes / bandwidth.

    `storage`, bytes a second, settles it. Otherwise each node writes what those of data/checkpoint_times.csv did (the
    median; 80 % of them lie between low and high). On more nodes than anyone measured, a file system may give no
    more than the fastest that was seen, or as much for each node: these are then the ends, and their geometric mean
    the value.
    """
    if size <= 0 or nodes <= 0 or (storage is not None and storage <= 0):
        raise UsageError(f"A checkpoint of {size:g} bytes from {nodes:g} nodes.", expected="More than 0.")
    if storage:
        return Between(size / storage, size / storage, size / storage, 0.8)
    seen = _node_bandwidths()
    each = middle([one / n for one, n in seen], 0.8)
    most_nodes, most = max(n for _, n in seen), max(one for one, _ in seen)
    if nodes <= most_nodes:
        return Between(
            size / (each.value * nodes), size / (each.high * nodes), size / (each.low * nodes), 0.8
        )
    long, short = size / most, size / (each.value * nodes)
    return Between(float(np.sqrt(long * short)), short, long, 0.8)


def _node_bandwidths() -> list[tuple[float, float]]:
    """Bytes a second of each published save, and nodes. Where no bytes are given: 14 for each parameter."""
    found = []
    for row in data_rows("checkpoint_times"):
        model = re.search(r"(\d+)B\b", row["system"])
        nodes = re.search(r"(\d+)(?: V100)? nodes", row["system"])
        accelerators = re.search(r"(\d+) A100", row["system"])
        if not (row["seconds"] and model and (nodes or accelerators)):
            continue
        size = float(row["bytes"]) if row["bytes"] else 14e9 * float(model[1])
        count = float(nodes[1]) if nodes else float(accelerators[1]) / 8 if accelerators else 1.0
        found.append((size / float(row["seconds"]), count))
    return found
