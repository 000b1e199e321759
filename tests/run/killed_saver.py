"""Saves that really die: run as a program, it forks savers, kills them, and says what could be loaded after.

    boundaries   SIGKILL before each operation on the file system that a save makes, one after the other
    bytes        the kernel ends the process when a file reaches a chosen size (SIGXFSZ, default action)
    moments      SIGKILL from outside at random moments of a loop of saves

Prints JSON lines. It forks from a process that has loaded torch, because loading it takes longer than a save.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glassformer.run import checkpoints

Tensors = dict[str, dict[str, torch.Tensor]]


def state_at(step: int, width: int = 64) -> Tensors:
    draw = torch.Generator().manual_seed(step)
    weight = torch.randn(width, width, generator=draw)
    return {"model": {"weight": weight, "half": weight.bfloat16()}, "optimizer": {"moment": weight.square()}}


def same(one: Tensors, other: Tensors) -> bool:
    if {stem: set(named) for stem, named in one.items()} != {
        stem: set(named) for stem, named in other.items()
    }:
        return False
    return all(
        torch.equal(tensor, other[stem][name])
        for stem, named in one.items()
        for name, tensor in named.items()
    )


def save(folder: Path, step: int, keep: int, width: int = 64) -> None:
    checkpoints.save(folder, step, state_at(step, width), {"step": step}, keep=keep)


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


def aftermath(folder: Path, width: int = 64, **facts: Any) -> dict[str, Any]:
    partial = [entry.name for entry in checkpoints.list_checkpoints(folder) if entry.kind == "partial"]
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None
    row = {
        **facts,
        "partial": partial,
        "step": loaded.step,
        "identical": same(loaded.tensors, state_at(loaded.step, width))
        and loaded.state == {"step": loaded.step},
        "findings": [str(finding) for finding in loaded.findings],
        "left": [entry.name for entry in checkpoints.list_checkpoints(folder) if entry.kind == "partial"],
    }
    print(json.dumps(row))
    return row


def die_before(number: int, folder: Path) -> None:
    """From now on this process is killed before the n-th operation on the file system that touches `folder`."""
    count = 0

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        kinds = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "open")
        if (event in kinds and str(folder) in str(arguments[0])) or event == "ctypes.dlsym":
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(before)


def boundaries(keep: int, second: int) -> None:
    """With step 100 saved, save `second` and be killed before the n-th operation, for every n."""
    number, died = 0, True
    while died:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / "checkpoints"
            save(folder, 100, keep)

            def work(folder: Path = folder, number: int = number) -> None:
                die_before(number, folder)
                save(folder, second, keep)

            _, status = os.waitpid(in_child(work), 0)
            died = os.WIFSIGNALED(status)
            aftermath(folder, mode="boundaries", keep=keep, number=number, died=died)
        number += 1


def at_bytes() -> None:
    for limit in [0, 1, 7, 8, 9, 100, 511, 4096, 16384, 20000, 24575, 24576]:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / "checkpoints"
            save(folder, 100, 1)

            def work(folder: Path = folder, limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                save(folder, 200, 1)

            _, status = os.waitpid(in_child(work), 0)
            aftermath(folder, mode="bytes", limit=limit, died=os.WIFSIGNALED(status))


def at_moments(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "checkpoints"
        step = 1
        began = time.perf_counter()
        save(folder, step, 1, 256)
        one = time.perf_counter() - began  # on a busy machine a save takes longer, and is killed later
        for _ in range(15):

            def work(start: int = step) -> None:
                for later in range(start + 1, start + 10_000):
                    save(folder, later, 1, 256)

            pid = in_child(work)
            delay = chance.uniform(0.0, max(0.06, 4 * one))
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            row = aftermath(folder, 256, mode="moments", seed=seed, delay=delay, before=step)
            step = row["step"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    boundaries(keep=1, second=200)
    boundaries(keep=2, second=100)
    at_bytes()
    at_moments(seed=20260131)
