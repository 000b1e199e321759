"""A process becomes one of several ranks: it finds the others, joins their group, and ends with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from glassformer.train.config import ParallelConfig
from glassformer.train.meeting import meet
from glassformer.train.parallel.many import ManyRanks
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.watchdog import Cause, RankFailed, Watchdog
from glassformer.train.world import World

_EXCHANGE = timedelta(hours=1)
"""The longest that rank 0 may be busy alone, with a checkpoint or a sample; the dead are found by their silence."""
_CAUSE_SECONDS = 4.0
"""An exchange that breaks is told at once, the cause a moment later."""


@contextlib.contextmanager
def joined(
    config: ParallelConfig, device: str, say: Callable[[str], None] = lambda message: None
) -> Iterator[Ranks]:
    """Be one of the ranks that the environment says there are. Whatever ends one of them ends all, and is told."""
    world = World.here()
    if world.count == 1:
        yield ALONE
        return
    store, times = meet(world, config.timeout, say, lambda seconds: _store(world, seconds))
    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore(f"group/{times}", store),
        rank=world.rank, world_size=world.count, timeout=_EXCHANGE,
    )  # fmt: skip
    watchdog = Watchdog(
        PrefixStore(
            f"watch/{times}",
            store.clone(),  # type: ignore[attr-defined] # torch's stubs lack it
        ),
        world.rank,
        world.count,
        config.timeout,
    )
    watchdog.start()
    try:
        yield ManyRanks(world, config, device)
    except BaseException as error:
        told = _cause_of(error, watchdog)
        if world.launched:
            get_error_handler().record_exception(told)  # torchrun's summary shows the first
        if told is error:
            raise
        raise told from error
    finally:
        watchdog.stop()
        with contextlib.suppress(RuntimeError):  # of a group whose other end is gone
            dist.destroy_process_group()


def _store(world: World, seconds: float) -> TCPStore:
    """Where the ranks meet, kept by rank 0 or by torch's launcher."""
    return TCPStore(
        world.host, world.port, world.count, world.is_first and not world.launched,
        timeout=timedelta(seconds=seconds), wait_for_workers=False,
    )  # fmt: skip


def _cause_of(error: BaseException, watchdog: Watchdog) -> BaseException:
    """The error itself, told to the others; or, of a broken exchange, that of the rank which broke it."""
    if not _is_of_an_exchange(error):
        watchdog.tell(error)
        return error
    cause: Cause | None = watchdog.cause(_CAUSE_SECONDS)
    if cause is not None:
        return cause.error()
    return RankFailed(
        "Another rank ended without a word: it was killed, its machine is gone, or the network is down.",
        expected=str(error).splitlines()[0][:200],
        do="The same command goes on from the last checkpoint.",
    )


def _is_of_an_exchange(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "closed by peer")
    )
