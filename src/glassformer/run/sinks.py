"""Trackers: other programs that draw a run's curves. None of them can slow, stop or change a run.

Events go into a bounded queue and a thread of its own hands them on. A tracker that is down, slow or out of
quota loses what does not fit, and the loss is counted; `events.jsonl` always has everything.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import UsageError, nearest

MOST_WAITING = 10_000
_CURVES = {"step": "train", "validation": "validation"}

Send = Callable[[int, Mapping[str, float]], None]
"""`send(step, numbers)` hands one row of a curve to a tracker."""


class Sink:
    """A listener for events: `sink(event)` returns at once, whatever the tracker does."""

    def __init__(self, name: str, connect: Callable[[], Send], *, most_waiting: int = MOST_WAITING) -> None:
        self.name = name
        self.num_lost = 0
        """Rows that the tracker did not take."""
        self.error: str | None = None
        """What went wrong last."""
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._work, args=(connect,), daemon=True, name=f"sink {name}")
        self._thread.start()

    def __call__(self, event: Mapping[str, Any]) -> None:
        group = _CURVES.get(event["event"])
        if group is None:
            return
        numbers = {
            f"{group}/{key}": float(value)
            for key, value in event.items()
            if key != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        try:
            self._waiting.put_nowait((event["step"], numbers))
        except queue.Full:
            self.num_lost += 1

    def close(self, patience: float = 10.0) -> str | None:
        """Let the tracker catch up for `patience` seconds; a sentence about what it did not take, if anything."""
        try:
            self._waiting.put(None, timeout=patience)
            self._thread.join(patience)
        except queue.Full:
            pass
        lost = self.num_lost + max(0, self._waiting.qsize() - 1 if self._thread.is_alive() else 0)
        if not lost and not self._thread.is_alive() and not self.error:
            return None
        reason = self.error or "it did not answer in time"
        return f"{self.name} did not take {lost or 'some'} rows of the curves ({reason}); events.jsonl has them all"

    def _work(self, connect: Callable[[], Send]) -> None:
        send: Send | None = None
        while (row := self._waiting.get()) is not None:
            try:
                send = send or connect()
                send(*row)
            except Exception as error:  # whatever a tracker raises is its own affair
                self.num_lost += 1
                self.error = f"{type(error).__name__}: {error}"[:200]


def open_sink(kind: str, run: Path) -> Sink:
    """`tensorboard`, or `trackio` or `wandb`, which share their way of being called."""
    kinds = {"tensorboard": _tensorboard, "trackio": _logger, "wandb": _logger}
    if kind not in kinds:
        raise UsageError(f"There is no tracker {kind!r};", expected=nearest(kind, kinds))
    if importlib.util.find_spec(kind) is None:
        raise UsageError(f"The tracker {kind} is not installed.", do=f"pip install {kind}")
    return Sink(kind, lambda: kinds[kind](kind, run))


def _tensorboard(kind: str, run: Path) -> Send:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(run / "tensorboard")

    def send(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send


def _logger(kind: str, run: Path) -> Send:
    tracker = importlib.import_module(kind)
    session = tracker.init(project="glassformer", name=run.name)

    def send(step: int, numbers: Mapping[str, float]) -> None:
        (session or tracker).log(dict(numbers), step=step)

    return send
