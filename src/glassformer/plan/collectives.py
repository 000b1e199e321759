"""How long accelerators talk: seconds of a collective from the bytes it moves and the links they move over.

    seconds = latency x hops + bytes on the wire / (share x link)

Bytes on the wire of a buffer of S bytes among n ranks, in rings (Patarasu and Yuan 2009; NCCL counts alike):

    all-reduce        2 (n - 1) / n  S          hops 2 log2 n
    all-gather          (n - 1) / n  S          hops   log2 n      S is the whole, gathered buffer
    reduce-scatter      (n - 1) / n  S          hops   log2 n
    all-to-all          (n - 1) / n  S          hops   1           S is what one rank sends, its own part with it
    point to point                   S          hops   1

A small buffer does not reach the link's bandwidth because of the latency: half of it where bytes = latency x hops x
link. `fitted_curve` finds both numbers from measured all-reduces (data/collectives.csv).

Where a group reaches over several domains (NVLink, ICI), every member in a domain drives its own link to the outside,
so a ring has `members in a domain x scale_out`, and never more than the inner links carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from glassformer.plan.hardware import Accelerator, data_rows
from glassformer.plan.layout import Number

LATENCY = 8.3e-6
"""Seconds a hop; `fitted_curve` of data/collectives.csv gives this for 32 ranks on 4 nodes."""


def all_reduce_bytes(buffer: Number, ranks: Number) -> Number:
    """On the wire, for each rank."""
    return 2.0 * buffer * (ranks - 1) / ranks


def all_gather_bytes(buffer: Number, ranks: Number) -> Number:
    """On the wire, for each rank; a reduce-scatter and an all-to-all are the same."""
    return 1.0 * buffer * (ranks - 1) / ranks


def hops(ranks: Number) -> Number:
    """Steps of a tree over the ranks."""
    return np.log2(np.maximum(ranks, 1))


def seconds(wire: Number, bandwidth: Number, num_hops: Number = 1.0, latency: float = LATENCY) -> Number:
    """Of one collective that puts `wire` bytes on each rank's link; nothing where it sends nothing."""
    return np.where(np.asarray(wire) > 0, latency * num_hops + wire / bandwidth, 0.0)


def ring_bandwidth(
    accelerator: Accelerator, ranks: Number, inner: Number = 1, total: Number = np.inf
) -> Number:
    """Bytes a second for each rank of a ring of `ranks`, whose neighbours are `inner` accelerators apart.

    `inner` is how many accelerators of other groups lie between two members (the tensor ranks, for replicas). A group
    stays in its domain where groups of its size fill the domain, or where the domain holds all `total` accelerators.
    """
    domain, ranks = accelerator.domain, np.asarray(ranks, float)
    inside = np.maximum(1, np.minimum(ranks, domain // np.maximum(1, np.asarray(inner))))
    outside = np.minimum(inside * accelerator.scale_out, accelerator.scale_up)
    span = ranks * inner
    stays = (span <= domain) & ((np.mod(domain, span) == 0) | (np.asarray(total) <= domain))
    return np.where(stays | (accelerator.scale_out == 0), accelerator.scale_up, outside)


def exchange_seconds(
    accelerator: Accelerator, token: Number, copies: int, ranks: Number
) -> tuple[Number, Number]:
    """Of sending one token's numbers (`token` bytes) to `copies` experts that are spread over `ranks`: inside the
    domain, and out of it.

    To each other domain that holds any of its experts a token is sent once, and copied there: with k copies and g
    domains, (g - 1) (1 - (1 - 1/g)^k) times on average.
    """
    ranks = np.maximum(1.0, np.asarray(ranks, float))
    domains = np.maximum(1.0, ranks / accelerator.domain)
    within = copies * (1.0 - 1.0 / np.minimum(ranks, accelerator.domain))
    leaving = (domains - 1.0) * (1.0 - (1.0 - 1.0 / domains) ** copies)
    outer = accelerator.scale_out or accelerator.scale_up
    return token * within / accelerator.scale_up, token * leaving / outer


@dataclass(frozen=True, slots=True)
class Curve:
    """What a fit of measured collectives found."""

    latency: float
    """Seconds a hop."""
    bandwidth: float
    """Bytes a second, of large buffers."""

    def seconds(self, buffer: Number, ranks: int) -> Number:
        """Of an all-reduce."""
        return seconds(all_reduce_bytes(buffer, ranks), self.bandwidth, 2 * hops(ranks), self.latency)


@cache
def fitted_curve(cluster: str = "ml-engineering") -> Curve:
    """Least squares of relative errors over one cluster's measured all-reduces."""
    rows = [row for row in data_rows("collectives") if row["cluster"].startswith(cluster)]
    ranks = np.array([float(row["n_accel"]) for row in rows])
    wire = all_reduce_bytes(np.array([float(row["payload_bytes"]) for row in rows]), ranks)
    taken = wire / np.array([float(row["busbw_GBps"]) * 1e9 for row in rows])
    terms = np.stack([2 * hops(ranks), wire], axis=1) / taken[:, None]
    latency, inverse = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)[0]
    return Curve(float(latency), float(1 / inverse))
