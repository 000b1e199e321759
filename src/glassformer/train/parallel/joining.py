"""A process becomes one of several ranks: it finds the others, joins their group, and ends with them."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from glassformer.errors import UsageError
from glassformer.train import attempt
from glassformer.train.attempt import Cause
from glassformer.train.config import ParallelConfig
from glassformer.train.meeting import meet
from glassformer.train.parallel.many import ManyRanks
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.watchdog import Watchdog
from glassformer.train.world import World

_EXCHANGE = timedelta(hours=1)
"""The longest that rank 0 may be busy alone, with a checkpoint or a sample; the dead are found by their silence."""
_CAUSE_SECONDS = 1.5
"""An exchange that breaks is told at once, the cause a moment later."""
NO_WORD = "Another rank ended without a word: it was killed, its machine is gone, or the network is down"


@contextlib.contextmanager
def joined(
    config: ParallelConfig,
    device: str,
    say: Callable[[str], None] = lambda message: None,
    run: Path | None = None,
) -> Iterator[Ranks]:
    """Be one of the ranks that the environment says there are. Whatever ends one of them ends all, and is told: to
    the others, to the launcher, and in the folder `run` where it is on this machine."""
    world = World.here()
    if world.count == 1:
        with _ending(0, run, lambda error: Cause.of(error, 0)):
            yield ALONE
        return
    with _ending(world.rank, run, lambda error: Cause.of(error, world.rank)):
        store, meeting = meet(world, config.timeout, say, lambda seconds: _store(world, seconds))
        _connect(world, device, PrefixStore(f"group/{meeting}", store))
    watch = store.clone()  # type: ignore[attr-defined] # torch's stubs lack it
    watch.set_timeout(timedelta(seconds=max(5.0, config.timeout)))  # rank 0 may keep it, and hang
    watchdog = Watchdog(
        PrefixStore(f"watch/{meeting}", watch),
        world.rank,
        world.count,
        config.timeout,
        run=run,
        before_the_end=lambda cause: attempt.tell_end(cause, world.rank, run),
    )
    watchdog.start()
    try:
        with _ending(world.rank, run, lambda error: _cause_of(error, world.rank, watchdog)):
            yield ManyRanks(world, config, device, watchdog)
    finally:
        watchdog.stop()
        with contextlib.suppress(RuntimeError):  # of a group whose other end is gone
            dist.destroy_process_group()


@contextlib.contextmanager
def _ending(rank: int, run: Path | None, why: Callable[[BaseException], Cause]) -> Iterator[None]:
    """An error in the block is told before this rank ends with it, or with that of the rank which caused it."""
    try:
        yield
    except BaseException as error:
        with _undisturbed():
            cause = why(error)
            told = error if cause.rank == rank else cause.error()
            attempt.tell_end(cause, rank, run)
            if attempt.is_launched():
                get_error_handler().record_exception(told)  # torchrun's summary shows the first
        if told is error:
            raise
        raise told from error


def _store(world: World, seconds: float) -> TCPStore:
    """Where the ranks meet, kept by rank 0 or by torch's launcher."""
    return TCPStore(
        world.host, world.port, world.count, world.is_first and not world.launched,
        timeout=timedelta(seconds=seconds), wait_for_workers=False,
    )  # fmt: skip


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A launcher terminates those that are left at once; they take the seconds that it takes to say why they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _connect(world: World, device: str, store: PrefixStore) -> None:
    """Become one group. UsageError where the ranks met, but their network does not carry what they exchange."""
    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend, store=store, rank=world.rank, world_size=world.count, timeout=_EXCHANGE
        )
    except RuntimeError as error:
        raise UsageError(
            f"Rank {world.rank} met the others, but cannot connect to them: {str(error).splitlines()[0][:200]}",
            expected=f"Expected {socket.gethostname()}, this machine's name, to be an address that all ranks reach.",
            do="GLOO_SOCKET_IFNAME (between GPUs, NCCL_SOCKET_IFNAME as well) names the network to use: lo on one "
            "machine.",
        ) from error


def _cause_of(error: BaseException, rank: int, watchdog: Watchdog) -> Cause:
    """The error itself, told to the others; or, of a broken exchange, that of the rank which broke it."""
    if not _is_of_an_exchange(error):
        cause = Cause.of(error, rank)
        watchdog.tell(cause)
        return cause
    return watchdog.cause(_CAUSE_SECONDS) or Cause(-1, NO_WORD, 1, True)


def _is_of_an_exchange(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "closed by peer")
    )
