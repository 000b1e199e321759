"""Ranks find each other: all at one store, each once, or a sentence says who is missing.

Rank 0 keeps the store, unless torch's launcher does; then it is there before the ranks and survives them, with all
that earlier ones, now dead, wrote there. So rank 0 calls a meeting under a name never used before, the others take
their places in the newest one, and it begins when rank 0 has seen as many as there are to be. A number of the attempt
would not do: where machines join and leave, their launchers count differently.

A rank that waits says so after `PATIENCE` seconds, because a wrong WORLD_SIZE or address looks just like a machine
that takes long to start.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
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
) -> tuple[S, str]:
    """(the store, the name of this meeting in it); UsageError where the ranks do not meet within `timeout` seconds.

    `open_store(seconds)` makes or reaches the store, and raises RuntimeError after so long.
    """
    end = time.monotonic() + timeout
    store = _reach(world, end, timeout, say, open_store)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    mine, name, here = f"{me}, {uuid.uuid4().hex}", "", ""
    if world.is_first:
        store.set("meeting", f"{uuid.uuid4().hex} {world.count}")
    said = time.monotonic() + PATIENCE
    while True:
        called = store.get("meeting").decode() if store.check(["meeting"]) else ""
        if called != name:
            name, here = called, _take_place(world, store, called, mine)
            if not world.launched:
                _check(world, called, here.rpartition(",")[0], me)
        if here == mine and _is_complete(world, store, name):
            return store, name.split()[0]
        if time.monotonic() > end:
            raise UsageError(
                f"After {timeout:.0f} s {_missing(world, store, name)}.",
                expected=f"Expected {world.count} ranks (WORLD_SIZE) at {_address(world)}.",
                do="Start the others, or correct WORLD_SIZE; parallel.timeout is how long to wait.",
            )
        if time.monotonic() > said:
            say(f"rank {world.rank} waits at {_address(world)}: {_missing(world, store, name)}")
            said = end
        time.sleep(0.05)


def _take_place(world: World, store: Store, name: str, mine: str) -> str:
    """Who has this rank's place at a meeting; one that the dead have called may have one already."""
    place = f"{name}/{world.rank}"
    who = store.compare_set(place, "", mine).decode()
    if who == mine:
        store.add(f"{name}/here", 1)
    return who


def _check(world: World, name: str, who: str, me: str) -> None:
    """Where nobody begins ranks again, a place that another process has, and another count, are mistakes."""
    if who != me:
        raise UsageError(
            f"There are two ranks {world.rank} at {_address(world)}: {who}, and this one.",
            do="Give each process a RANK of its own, or this run a MASTER_PORT of its own.",
        )
    count = int(name.split()[1])
    if count != world.count:
        raise UsageError(
            f"WORLD_SIZE is {world.count}, but for rank 0 at {_address(world)} it is {count}.",
            do="Give all ranks the same WORLD_SIZE.",
        )


def _is_complete(world: World, store: Store, name: str) -> bool:
    """Whether rank 0, if it still lives, has seen all."""
    if world.is_first and store.add(f"{name}/here", 0) == world.count:
        store.set(f"{name}/complete", "")
    return store.check([f"{name}/complete"])


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


def _missing(world: World, store: Store, name: str) -> str:
    absent = [r for r in range(min(world.count, _LISTENED)) if not store.check([f"{name}/{r}"])]
    if not absent:
        return "not all ranks are here"
    names = ", ".join(map(str, absent))
    return f"of {world.count} ranks, {names} {'is' if len(absent) == 1 else 'are'} not here"


def _address(world: World) -> str:
    return f"[{world.host}]:{world.port}" if ":" in world.host else f"{world.host}:{world.port}"


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
