"""The process itself: threads that stay on their cores, an allocator that keeps its pages; and several processes.

Both must be settled before torch is loaded, so every verb that computes calls `prepare_process` first.

- OpenMP: left alone, its threads wander, and two that meet on one core spin at each other's barrier; a run
  next to any other busy program loses up to half its speed. One thread a core, bound to it.
- glibc gives large freed blocks back to the system and takes fresh, zeroed pages for the next ones; for large
  tensors this costs more than the matrix product. Told to keep them, it reuses them.

What the user has set in the environment is left as it is.

`start_ranks` is `glassformer train --ranks N`: torch's own elastic launcher on this machine, as torchrun would be, but
with the exit code of the ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from glassformer.errors import Stopped

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # names and numbers of mallopt(3)
_TOP_PAD_BYTES = 64 * 2**20
_SAVE_SECONDS = 600
"""Ranks that were asked to stop are killed after so long."""


def prepare_process(threads: int | None = None) -> None:
    """Settle threads and memory. Does nothing once torch is loaded, save for the allocator."""
    if "torch" not in sys.modules:
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        for name, value in thread_settings(cores()).items():
            os.environ.setdefault(name, value)
        if "RANK" in os.environ:  # what torch's C++ warns of while ranks meet, meeting.py says in a sentence
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    keep_pages()


@contextlib.contextmanager
def on_all_cores() -> Iterator[None]:
    """Let other threads and processes than OpenMP's begin here: they inherit the cores of the thread that begins
    them, and OpenMP has bound this one to a single core (tokenizing and compiling would share that one)."""
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    places = {int(core) for core in re.findall(r"\{(\d+)\}", os.environ.get("OMP_PLACES", ""))}
    if not bound < places:
        yield
        return
    os.sched_setaffinity(0, places)
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def thread_settings(threads: int) -> dict[str, str]:
    """The environment that OpenMP reads once, when it is loaded."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    alone = (
        ranks == "1" and "PYTEST_XDIST_WORKER" not in os.environ
    )  # processes side by side must not share cores
    if not alone or not hasattr(os, "sched_getaffinity"):
        return {"OMP_NUM_THREADS": str(threads)}
    places = ",".join(f"{{{core}}}" for core in sorted(os.sched_getaffinity(0)))
    return {"OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "true", "OMP_PLACES": places}


def keep_pages() -> bool:
    """Tell glibc to reuse freed memory; False where the C library is another."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(name, value) for name, value in settings)


def release_pages() -> None:
    """Give back to the system what nothing holds any more; for after a piece of work that will not come again."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def start_ranks(count: int, arguments: Sequence[str], *, entry: Callable[..., None] | None = None) -> int:
    """`glassformer ARGUMENTS` in `count` processes that find each other; returns what they exit with.

    A signal is passed on to all of them, and they have as long as they need for a save (`_SAVE_SECONDS`).
    `entry` is called with the arguments instead, in processes that are forked from this one.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks say themselves what happened
    with tempfile.TemporaryDirectory(prefix="glassformer-ranks-") as said:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="glassformer", rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=said),
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2", local_addr="localhost",
            shutdown_timeout=_SAVE_SECONDS, start_method="fork" if entry else "spawn",
        )  # fmt: skip
        try:
            program = () if entry else ("-m", "glassformer")
            elastic_launch(config, entry or sys.executable)(*program, *arguments)
        except ChildFailedError as failed:
            return _exit_of({rank: failure.exitcode for rank, failure in failed.failures.items()})
        except SignalException as stopped:
            told = [json.loads(file.read_text("utf-8")) for file in Path(said).rglob("error.json")]
            saved = bool(told) and all("Stopped" in str(error) for error in told)
            return Stopped.exit_code if saved else 128 + stopped.sigval
    return 0


def _exit_of(codes: Mapping[int, int]) -> int:
    """One exit code for all ranks: the first that failed decides, and a killed one is named."""
    killed = {rank: signal.Signals(-code).name for rank, code in codes.items() if code < 0}
    others = [code for code in codes.values() if code >= 0]
    if Stopped.exit_code in others:
        return Stopped.exit_code
    for rank, name in killed.items():
        if name != "SIGTERM":  # which is the launcher's, to those that were left
            print(f"error: Rank {rank} was killed by {name}. The same command goes on.", file=sys.stderr)
    return others[0] if others else 1


def cores() -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota."""
    from glassformer.run.manifest import num_cores

    return num_cores()
