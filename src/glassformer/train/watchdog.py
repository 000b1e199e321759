"""Nobody waits for the dead: each rank tells that it lives, and what it died of, in the store where they met.

A rank that waits for another in an exchange cannot tell a slow one from a dead one. So beside the work, a thread

    - adds to this rank's count of heartbeats, and looks whether the next rank's goes on (each has one neighbour,
      so that N ranks cost N looks);
    - looks whether some rank has said why it ends. The first to say so is the cause; the others end with it.

The main thread gets `GRACE` seconds to find out by itself and leave in good order; one that is stuck in an exchange is
ended. A stopped clock does not count as silence: what is counted is this thread's own looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import astuple
from typing import Protocol

from glassformer.errors import Stopped
from glassformer.train.attempt import Cause

INTERVAL, GRACE = 0.5, 5.0
"""Seconds between looks; seconds in which a rank may end by itself once the cause is known."""
_CAUSE, _LEFT = "cause", "left"


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, value: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes: ...


class Watchdog:
    """Over one rank. `silence` is how many seconds without a heartbeat make a rank a dead one."""

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        silence: float,
        before_the_end: Callable[[Cause], None] = lambda cause: None,
    ) -> None:
        self._store, self._rank, self._next = store, rank, (rank + 1) % count
        self._silence, self._before_the_end = silence, before_the_end
        self._found: Cause | None = None
        self._ended = threading.Event()
        self._seen = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Leave in good order: the neighbour is told, and misses no heartbeat."""
        self._ended.set()
        self._thread.join(2 * INTERVAL)
        with contextlib.suppress(RuntimeError):  # the store went first; nobody looks any more
            self._store.set(f"beat/{self._rank}", _LEFT)

    def tell(self, cause: Cause) -> None:
        """Say why this rank ends, unless another said so before."""
        text = json.dumps(astuple(cause))
        with contextlib.suppress(RuntimeError):  # the store is gone, which the others notice themselves
            self._store.compare_set(_CAUSE, "", text)

    def cause(self, wait: float) -> Cause | None:
        """Which rank ended first, and why; waits for it to be said."""
        self._seen.wait(wait)
        return self._found

    def _look(self) -> None:
        beat, silent = "", 0
        while not self._ended.wait(INTERVAL):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                name = f"beat/{self._next}"
                now = self._store.get(name).decode() if self._store.check([name]) else ""
                silent = 0 if now != beat or now == _LEFT else silent + 1
                beat = now
                if silent * INTERVAL > self._silence:
                    what = f"nothing was heard of it for {self._silence:.0f} s"
                    self.tell(Cause(self._next, what, 1, True))
                if not self._store.check([_CAUSE]):
                    continue
                found = Cause(*json.loads(self._store.get(_CAUSE)))
            except RuntimeError:
                found = Cause(0, "it or the launcher is no longer there", 1, True)
            self._found = found
            self._seen.set()
            if not self._ended.wait(GRACE):
                self._before_the_end(found)
                _end(found)
            return


def _end(cause: Cause) -> None:
    stopped = cause.exit_code == Stopped.exit_code
    print(f"{'stopped' if stopped else 'error'}: {cause.error()}", file=sys.stderr, flush=True)
    os._exit(cause.exit_code)
