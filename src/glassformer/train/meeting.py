"""Ranks find each other: all at one store, each once, or a sentence says who is missing.

Rank 0 keeps the store, unless torch's launcher does. A rank that waits says so after `PATIENCE` seconds, because a
wrong WORLD_SIZE or address looks just like a machine that takes long to start.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from glassformer.errors import UsageError
from glassformer.train.watchdog import Store
from glassformer.train.world import World

S = TypeVar("S", bound=Store)

PATIENCE = 5.0
_LISTENED = 100
"""Most ranks whose absence is told one by one."""


def meet(
    world: World, timeout: float, say: Callable[[str], None], open_store: Callable[[float], S]
) -> tuple[S, int]:
    """(the store, how many times these ranks have met there); UsageError where they do not within `timeout` seconds.

    `open_store(seconds)` makes or reaches the store, and raises RuntimeError after so long.
    """
    end = time.monotonic() + timeout
    store = _reach(world, end, timeout, say, open_store)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    who = store.compare_set(f"who/{world.rank}", "", me).decode()
    if who != me:
        raise UsageError(
            f"There are two ranks {world.rank} at {_address(world)}: {who}, and this one.",
            do="Give each process a RANK of its own, or this run a MASTER_PORT of its own.",
        )
    times = store.add(f"times/{world.rank}", 1)
    here, said = store.add(f"here/{times}", 1), time.monotonic() + PATIENCE
    while here < world.count:
        if time.monotonic() > end:
            raise UsageError(
                f"After {timeout:.0f} s {_missing(world, store)}.",
                expected=f"Expected {world.count} ranks (WORLD_SIZE) at {_address(world)}.",
                do="Start the others, or correct WORLD_SIZE; parallel.timeout is how long to wait.",
            )
        if time.monotonic() > said:
            say(f"rank {world.rank} waits at {_address(world)}: {_missing(world, store)}")
            said = end
        time.sleep(0.05)
        here = store.add(f"here/{times}", 0)
    return store, times


def _reach(
    world: World,
    end: float,
    timeout: float,
    say: Callable[[str], None],
    open_store: Callable[[float], S],
) -> S:
    keeps = world.is_first and not world.launched
    said = False
    while True:
        try:
            return _at_most(min(PATIENCE, max(1.0, end - time.monotonic())), open_store)
        except RuntimeError as error:
            if keeps:
                raise UsageError(
                    f"Rank 0 cannot listen at {_address(world)}: {_reason(error)}.",
                    expected="Expected MASTER_ADDR to be this machine and MASTER_PORT to be free.",
                    do="Take another MASTER_PORT; `torchrun --standalone` and `--ranks` find a free one.",
                ) from error
            if time.monotonic() > end:
                raise UsageError(
                    f"Rank {world.rank} found no rank 0 at {_address(world)} within {timeout:.0f} s: {_reason(error)}.",
                    do="Start rank 0, or correct MASTER_ADDR and MASTER_PORT.",
                ) from error
            if not said:
                said = True
                say(f"rank {world.rank} waits for rank 0 at {_address(world)}: {_reason(error)}")
            time.sleep(0.2)


def _at_most(seconds: float, open_store: Callable[[float], S]) -> S:
    """torch waits for ever where something else listens, and no signal reaches it there: so beside this thread."""
    found: list[S] = []
    failed: list[Exception] = []

    def attempt() -> None:
        try:
            found.append(open_store(seconds))
        except Exception as error:
            failed.append(error)

    beside = threading.Thread(target=attempt, daemon=True)
    beside.start()
    beside.join(seconds + 1)
    if failed:
        raise failed[0]
    if not found:
        raise RuntimeError("timed out")
    return found[0]


def _missing(world: World, store: Store) -> str:
    absent = [r for r in range(min(world.count, _LISTENED)) if not store.check([f"who/{r}"])]
    if not absent:
        return "not all ranks are here"
    names = ", ".join(map(str, absent))
    return f"of {world.count} ranks, {names} {'is' if len(absent) == 1 else 'are'} not here"


def _address(world: World) -> str:
    return f"{world.host}:{world.port}"


def _reason(error: Exception) -> str:
    """The words for people in what torch says."""
    text = str(error)
    for words, meaning in (
        ("EADDRINUSE", "the port is in use"),
        ("address already in use", "the port is in use"),
        ("EACCES", "the port may not be used by this user"),
        ("Connection refused", "nobody listens there"),
        ("timed out", "nobody answers as rank 0 would"),
        ("getaddrinfo", "there is no such address"),
        ("name resolution", "there is no such address"),
    ):
        if words.lower() in text.lower():
            return meaning
    return text.splitlines()[0][:160] if text else type(error).__name__
