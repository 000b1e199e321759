"""Bytes on the wire and seconds of collectives, against their closed forms and measured bandwidths."""

from __future__ import annotations

import numpy as np
import pytest

from glassformer.plan.collectives import (
    all_gather_bytes,
    all_reduce_bytes,
    exchange_seconds,
    fitted_curve,
    ring_bandwidth,
    seconds,
)
from glassformer.plan.hardware import accelerator, data_rows

H100 = accelerator("H100-SXM-80GB")


@pytest.mark.parametrize("ranks", [1, 2, 8, 1000])
def test_a_ring_all_reduce_sends_what_counting_its_steps_gives(ranks: int) -> None:
    chunk = 6000.0 / ranks
    assert all_reduce_bytes(6000.0, ranks) == pytest.approx(2 * (ranks - 1) * chunk)
    assert all_gather_bytes(6000.0, ranks) == pytest.approx((ranks - 1) * chunk)


def test_an_all_reduce_is_a_scatter_and_a_gather() -> None:
    ranks = np.array([2, 16, 384])
    assert np.allclose(all_reduce_bytes(1e9, ranks), 2 * np.asarray(all_gather_bytes(1e9, ranks)))


def test_nothing_is_sent_in_no_time() -> None:
    assert seconds(0.0, 1e9, 3) == 0


def test_the_fitted_curve_is_within_a_third_of_every_measured_bandwidth_and_a_tenth_of_most() -> None:
    curve = fitted_curve()
    rows = [row for row in data_rows("collectives") if row["cluster"].startswith("ml-engineering")]
    payload = np.array([float(row["payload_bytes"]) for row in rows])
    measured = np.array([float(row["busbw_GBps"]) for row in rows]) * 1e9
    off = np.abs(np.asarray(all_reduce_bytes(payload, 32)) / curve.seconds(payload, 32) / measured - 1)
    assert len(rows) == 20
    assert off.max() < 0.36
    assert np.median(off) < 0.1


def test_a_ring_leaves_the_domain_over_as_many_links_as_it_has_members_there() -> None:
    assert ring_bandwidth(H100, 8, 1) == H100.scale_up
    assert ring_bandwidth(H100, 64, 1) == 8 * H100.scale_out
    assert ring_bandwidth(H100, 64, 8) == H100.scale_out  # one of each node
    assert ring_bandwidth(H100, 6, 1) < H100.scale_up  # groups of six straddle nodes of eight
    assert ring_bandwidth(H100, 6, 1, total=6) == H100.scale_up


def test_a_token_goes_once_to_each_other_domain() -> None:
    copies, many = 8, 4096
    generator = np.random.default_rng(0)
    domains = generator.integers(
        0, 4, size=(many, copies)
    )  # where each copy's expert lies, of 32 ranks in 4 domains
    reached = np.mean([len(set(row[row != 0])) for row in domains])
    _, outer = exchange_seconds(H100, 1.0, copies, 32)
    assert float(outer) * H100.scale_out == pytest.approx(reached, rel=0.02)
