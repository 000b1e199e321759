"""Nobody waits for the dead: each rank tells that it lives, and what it died of, in the store where they met.

A rank that waits for another in an exchange cannot tell a slow one from a dead one. So beside the work, a thread

    - adds to this rank's count of heartbeats, and looks whether the next rank's goes on (each has one neighbour,
      so that N ranks cost N looks). A process that is stopped, or whose interpreter is locked, has no heartbeat;
    - looks whether the main thread's own part of a step comes to an end. One that never returns from a call, or
      turns in a loop, has a heartbeat all the same;
    - looks whether some rank has said why it ends. The first to say so is the cause; the others end with it.

When the cause is that a rank hangs, every rank keeps its stacks (stacks.py). Of the one that hangs another on its
machine asks for them, and then kills it, since it will not end by itself.

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
from dataclasses import astuple, replace
from pathlib import Path
from typing import Protocol

from glassformer.errors import Stopped
from glassformer.train import attempt, stacks
from glassformer.train.attempt import Cause
from glassformer.train.stacks import Place, Stacks

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
    """Over one rank. `silence` is how many seconds without a heartbeat, or in one step, make a rank a dead one."""

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        silence: float,
        *,
        run: Path | None = None,
        before_the_end: Callable[[Cause], None] = lambda cause: None,
    ) -> None:
        self._store, self._rank, self._next = store, rank, (rank + 1) % count
        self._silence, self._run, self._before_the_end = silence, run, before_the_end
        self._at: tuple[str, int, float] | None = None
        self._found: Cause | None = None
        self._ended = threading.Event()
        self._seen = threading.Event()
        self._stacks = Stacks()
        self._first: Place | None = None
        """Rank 0's, which may keep the store: when it hangs, nobody can ask there for its place."""
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def start(self) -> None:
        self._store.set(f"place/{self._rank}", self._stacks.place.told())
        self._thread.start()

    def stop(self) -> None:
        """Leave in good order: the neighbour is told, and misses no heartbeat."""
        self._ended.set()
        self._thread.join(2 * INTERVAL)
        with contextlib.suppress(RuntimeError):  # the store went first; nobody looks any more
            self._store.set(f"beat/{self._rank}", _LEFT)
        self._stacks.close()

    def at(self, part: str, step: int, patience: float = 1.0) -> None:
        """The main thread begins a part of a step, which is to take no longer than `patience` times the silence."""
        self._at = (part, step, patience)

    def at_rest(self) -> None:
        """What comes now may take any time: a checkpoint, a sample, a look."""
        self._at = None

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
        beat, silent, at, busy = "", 0, self._at, 0
        while not self._ended.wait(INTERVAL):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                now = self._read(f"beat/{self._next}")
                silent = 0 if now != beat or now == _LEFT else silent + 1
                busy = busy + 1 if at is self._at else 0
                beat, at = now, self._at
                if silent * INTERVAL > self._silence:
                    self._hangs(self._next, f"nothing was heard of it for {self._silence:.0f} s")
                elif at and busy * INTERVAL > self._silence * at[2]:
                    told = f"{at[0]} of step {at[1] + 1} has not come to an end for {self._silence * at[2]:.0f} s"
                    self._hangs(self._rank if at[2] == 1 else -1, told)
                if self._first is None and (place := self._read("place/0")):
                    self._first = Place.heard(place)
                if not (said := self._read(_CAUSE)):
                    continue
                found = Cause(*json.loads(said))
                found = self._keep_stacks(found) if found.hangs else found
            except RuntimeError:
                found = self._without_a_store()
            self._found = found
            self._seen.set()
            if not self._ended.wait(GRACE):
                self._before_the_end(found)
                _end(found)
            return

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _hangs(self, rank: int, why: str) -> None:
        self.tell(
            Cause(rank, f"it hangs: {why}" if rank >= 0 else f"All wait for each other: {why}", 1, True, True)
        )

    def _without_a_store(self) -> Cause:
        """It was kept by rank 0, or by the launcher, whose silence this is."""
        if self._first is None or attempt.is_launched() or not self._first.is_near():
            return Cause(0, "it or the launcher is no longer there", 1, True)
        cause = Cause(0, f"it hangs: nothing was heard of it for {self._silence:.0f} s", 1, True, True)
        stacks.keep(self._stacks.now(), self._rank, self._run)
        return self._ask(cause, self._first)

    def _keep_stacks(self, cause: Cause) -> Cause:
        """This rank's, and, where nobody else on its machine does so, those of the one that hangs."""
        mine = self._stacks.now()
        stacks.keep(mine, self._rank, self._run)
        if cause.rank == self._rank:
            return _where(cause, mine)
        with contextlib.suppress(RuntimeError):
            place = self._read(f"place/{cause.rank}")
            if not place or not Place.heard(place).is_near():
                return cause
            me = str(self._rank)
            if self._store.compare_set(f"asks/{cause.rank}", "", me).decode() == me:
                return self._ask(cause, Place.heard(place))
        return cause

    def _ask(self, cause: Cause, place: Place) -> Cause:
        """Have a rank that hangs say where, and kill it; the cause with what it said."""
        theirs = place.ask()
        stacks.keep(theirs or "It did not say where it is.\n", cause.rank, self._run)
        place.kill()
        return _where(cause, theirs)


def _where(cause: Cause, text: str) -> Cause:
    place = stacks.innermost(text)
    return replace(cause, what=f"{cause.what}, in {place}") if place else cause


def _end(cause: Cause) -> None:
    stopped = cause.exit_code == Stopped.exit_code
    print(f"{'stopped' if stopped else 'error'}: {cause.error()}", file=sys.stderr, flush=True)
    os._exit(cause.exit_code)
