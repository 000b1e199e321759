"""Fault 45: a tracker that is down, slow or full never holds a run up, and what it missed is counted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from glassformer.errors import UsageError
from glassformer.run.sinks import Send, Sink, open_sink

Rows = list[tuple[int, dict[str, float]]]


def step(number: int) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": 1.0 / number, "tokens": 10 * number, "time": "now"}


def collecting(rows: Rows) -> Send:
    def send(number: int, numbers: Mapping[str, float]) -> None:
        rows.append((number, dict(numbers)))

    return send


def test_curves_arrive_in_order_and_other_events_do_not() -> None:
    rows: Rows = []
    sink = Sink("list", lambda: collecting(rows))
    for number in (1, 2):
        sink(step(number))
    sink({"event": "sample", "step": 2, "text": "hello"})
    sink({"event": "validation", "step": 2, "loss": float("nan"), "bits_per_byte": 2.0})
    assert sink.close() is None
    assert rows == [
        (1, {"train/loss": 1.0, "train/tokens": 10.0}),
        (2, {"train/loss": 0.5, "train/tokens": 20.0}),
        (2, {"validation/bits_per_byte": 2.0}),
    ]


def test_a_tracker_that_is_down_is_tried_again_and_its_losses_counted() -> None:
    rows: Rows = []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    tries = 0

    def connect() -> Send:
        nonlocal tries
        tries += 1
        if tries < 3:
            socket.create_connection(("127.0.0.1", port), timeout=1)
        return collecting(rows)

    sink = Sink("far away", connect)
    for number in range(1, 6):
        sink(step(number))
    said = sink.close()
    assert said is not None and "did not take 2 rows" in said and "refused" in said
    assert [number for number, _ in rows] == [3, 4, 5]


def test_a_tracker_that_hangs_blocks_nothing_and_drops_with_a_count() -> None:
    never = threading.Event()

    def hang(number: int, numbers: Mapping[str, float]) -> None:
        never.wait()

    sink = Sink("slow", lambda: hang, most_waiting=5)
    began = time.perf_counter()
    for number in range(1, 1001):
        sink(step(number))
    assert time.perf_counter() - began < 1.0
    assert sink.num_lost >= 994
    said = sink.close(patience=0.1)
    assert said is not None and "did not answer in time" in said
    never.set()


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"):
        open_sink("tensorbord", tmp_path)
    with pytest.raises(UsageError, match="pip install wandb"):
        open_sink("wandb", tmp_path)
