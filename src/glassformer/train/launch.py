"""The process itself: threads that stay on their cores, an allocator that keeps its pages.

Both must be settled before torch is loaded, so every verb that computes calls `prepare_process` first.

- OpenMP: left alone, its threads wander, and two that meet on one core spin at each other's barrier; a run
  next to any other busy program loses up to half its speed. One thread a core, bound to it.
- glibc gives large freed blocks back to the system and takes fresh, zeroed pages for the next ones; for large
  tensors this costs more than the matrix product. Told to keep them, it reuses them.

What the user has set in the environment is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
import sys
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # names and numbers of mallopt(3)
_TOP_PAD_BYTES = 64 * 2**20


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


def cores() -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota."""
    from glassformer.run.manifest import num_cores

    return num_cores()
