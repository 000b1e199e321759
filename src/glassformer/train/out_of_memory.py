"""Out of memory: said in words, with the numbers, and what would fit.

What a step holds is arithmetic (model/count.py). Of it, weights, gradients and the optimiser's memory are there
whatever the batch; activations and logits grow with the micro-batch, so train.accumulate decides about them:

    held(m) = weights + gradients + optimiser + state to go back to + activations(m) + logits(m)
    m       = rows in a micro-batch = batch / (ranks * accumulate)

What fits is measured when the step has failed and its tensors are gone: the largest m whose activations and logits,
and what is still to come of the rest, are less than what is free then. `_ROOM` leaves room for what lives for a moment
in the backward pass, and for pages that are free but too scattered to be used.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import re
import traceback
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import OutOfMemory
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.run.manifest import free_memory_bytes
from glassformer.train.launch import release_pages, spare_pages
from glassformer.train.task import Task
from glassformer.units import show_bytes

if TYPE_CHECKING:
    from glassformer.train.loop import Session

_ROOM = 2.0
"""Measured: a step peaks at up to so many times what it keeps."""
_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "alloc_failed",
    "not enough memory", "memoryerror",
)  # fmt: skip
_HOLDS = {
    "weights": "weights", "gradients": "gradients", "optimizer": "the optimiser's memory",
    "remembered": "the state to go back to", "activations": "activations", "logits": "logits",
}  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what was missing: on a GPU, in torch's own allocator, in Python, or for a file's pages."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and says_no_memory(str(error))


def says_no_memory(message: str) -> bool:
    """Whether an error's text is about memory; libraries have no type for it."""
    return any(words in message.lower() for words in _WORDS)


def in_short(error: BaseException) -> str:
    """The error's type and first line, without the place in torch's own code."""
    first = (str(error).strip().splitlines() or [""])[0]
    first = re.sub(r"^\[enforce fail[^\]]*\] err == 0\. ", "", first)[:200].rstrip(". ")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def let_go(error: BaseException) -> None:
    """Free what the failed computation still holds, whose frames keep tensors alive; and keep no page any more."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    spare_pages()
    release_pages()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def explained(task: Task, num_ranks: int) -> Iterator[list[Session]]:
    """Whatever runs out of memory in the block is an OutOfMemory with all that is known. The session goes into the
    list once there is one."""
    begun: list[Session] = []
    try:
        yield begun
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
        raise explain(in_short(error), task, num_ranks, begun[0] if begun else None) from error


def explain(what: str, task: Task, num_ranks: int, session: Session | None) -> OutOfMemory:
    """The error for a person: which tensors are large, what is free, what would fit."""
    recipe = task.recipe
    accumulate = session.parts.count if session else recipe.train.accumulate
    all_rows = recipe.train.batch // num_ranks
    rows = all_rows // accumulate
    held = holds(task, session, rows, num_ranks)
    largest = max(held, key=lambda name: held[name])
    parts = ", ".join(f"{_HOLDS[name]} {show_bytes(size)}" for name, size in held.items() if size)
    device = session.choice.device if session else recipe.engine.device
    free, fits = free_bytes(device), None
    if free is not None:
        left = free - _still_to_come(held, session)
        fits = _largest_that_fits(task, session, left, all_rows, accumulate, num_ranks)
    when = "Before the first step" if session is None or session.guard.last is None else (
        f"In the step after step {session.guard.last + 1}"
    )  # fmt: skip
    return OutOfMemory(
        f"{when} memory ran out ({what}). The largest part is {_HOLDS[largest]}, {show_bytes(held[largest])}.",
        expected=f"A step with micro-batches of {_rows(rows)} holds {parts}: "
        f"{show_bytes(sum(held.values()))} in all"
        + ("." if free is None else f"; beside what stays, {show_bytes(free)} are free."),
        do=_advice(task, session, fits, all_rows, accumulate),
    )


def holds(task: Task, session: Session | None, rows: int, num_ranks: int) -> dict[str, int]:
    """Bytes of each class of tensors of a rank, in a step with micro-batches of `rows`."""
    recipe, config = task.recipe, task.config
    shard = recipe.parallel.shard
    shared = num_ranks if shard == "all" else shard
    total = sum(map(prod, task.shapes.values()))
    kind: count.Optimizer = "momentum" if recipe.optimizer.kind == "sgd" else recipe.optimizer.kind
    optimizer = count.optimizer_bytes(task.shapes, kind)
    device, compiled, share = recipe.engine.device, False, recipe.engine.activation_memory
    if session is not None:
        device, compiled = session.choice.device, session.choice.compiled
        precision, attention = session.choice.precision, session.choice.attention
    else:
        asked = recipe.engine
        precision = "fp32" if asked.precision == "auto" else asked.precision
        attention = None if asked.attention == "auto" else asked.attention
    if isinstance(config, ModelConfig):
        fused = attention != "explicit"
        again = 0 if compiled else count.num_recomputed(config, share, precision=precision, fused=fused)
        memory = count.memory(config, batch=rows, precision=precision, fused=fused, recomputed=again)
        weights, gradients = memory.weights + memory.copies, memory.gradients
        activations, logits = memory.activations, memory.logits
        if compiled:
            activations = round(share * activations)
    else:
        weights = gradients = 4 * total
        activations = 4 * rows * (config.widths[0] + 2 * sum(config.hidden))
        logits = 8 * rows * config.widths[-1]
    on_host = not _is_gpu(device)  # where the state to go back to is kept
    remembered = 4 * total + optimizer if recipe.faults.remember_every and on_host else 0
    kept = {"weights": weights, "gradients": gradients, "optimizer": optimizer, "remembered": remembered}
    return {**{k: v // shared for k, v in kept.items()}, "activations": activations, "logits": logits}


def free_bytes(device: str) -> int | None:
    """What can still be had: on the GPU, or of the machine, the control group and this process's own limits."""
    if _is_gpu(device):
        inside = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + inside
    rooms = [room for room in (free_memory_bytes(), *_left_in_limits()) if room is not None]
    return min(rooms, default=None)


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _left_in_limits() -> Iterator[int]:
    """Bytes left below the limits that a shell or a scheduler sets (`ulimit -v`, `ulimit -d`)."""
    with contextlib.suppress(ImportError, OSError, TypeError):
        import resource

        status = Path("/proc/self/status").read_text()
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            limit = resource.getrlimit(kind)[0]
            held = re.search(rf"{name}:\s+(\d+)", status)
            if limit != resource.RLIM_INFINITY and held:
                yield max(0, limit - int(held[1]) * 1024) + _free_in_heap()


def _free_in_heap() -> int:
    """Bytes that the C library holds free: they count against a limit, and can be used again."""

    class Info(ctypes.Structure):
        _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]

    if platform.libc_ver()[0] != "glibc":
        return 0
    asked = getattr(ctypes.CDLL(None), "mallinfo2", None)  # since glibc 2.33
    if asked is None:
        return 0
    asked.restype = Info
    return int(asked().field_8)  # fordblks


def _still_to_come(held: dict[str, int], session: Session | None) -> int:
    """Of what stays from step to step, what is not there yet."""
    missing = dict.fromkeys(("weights", "gradients", "optimizer", "remembered"), session is None)
    if session is not None:
        missing["optimizer"] = not any(optimizer.state for optimizer in session.optimizers)
        missing["remembered"] = session.guard.memory.step is None
    return sum(held[name] for name, is_missing in missing.items() if is_missing)


def _largest_that_fits(
    task: Task, session: Session | None, free: int, rows: int, accumulate: int, num_ranks: int
) -> int | None:
    """The fewest micro-batches, more than there are now, whose activations and logits fit into what is free."""
    for parts in range(accumulate + 1, rows + 1):
        if rows % parts == 0:
            held = holds(task, session, rows // parts, num_ranks)
            if _ROOM * (held["activations"] + held["logits"]) <= free:
                return parts
    return None


def _advice(task: Task, session: Session | None, fits: int | None, rows: int, accumulate: int) -> str:
    recipe, ways = task.recipe, []
    if fits is not None:
        ways.append(
            f"train.accumulate {fits} (micro-batches of {_rows(rows // fits)}, the same mathematics) should fit"
        )
    elif accumulate < rows:
        ways.append(f"train.accumulate {rows} (one row at a time) takes the least, but may not fit either")
    if isinstance(task.config, ModelConfig) and recipe.engine.activation_memory > 0:
        ways.append("engine.activation_memory 0 keeps the fewest activations")
    if fits is None:
        ways.append("or take a smaller model, parallel.shard over more ranks, or a machine with more memory")
    elif recipe.faults.out_of_memory == "stop" and recipe.parallel.shard == 1:
        ways.append("faults.out_of_memory 'halve' finds what fits by itself")
    told = "; ".join(ways)
    where = "" if session is None else f" With --run {session.run.path} it goes on from what is saved."
    return f"What helps: {told}.{where}"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def fields_of(
    error: str, rank: int, rows: int, asked_rows: int, accumulate: int, step: int
) -> dict[str, Any]:
    """The event `memory`."""
    return {
        "step": step, "rank": rank, "error": error, "rows": rows, "asked_rows": asked_rows, "accumulate": accumulate,
        "message": f"step {step}: memory ran out ({error}); from now on {accumulate} micro-batches of "
        f"{_rows(rows)}, the same mathematics",
    }  # fmt: skip
