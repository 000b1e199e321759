"""A run's checkpoints: copied, written beside the work, and what becomes of a save that fails.

    stall    the step's weights and optimiser are copied into memory on the host that is kept for it: training waits
             for this, and for nothing else
    flight   a thread writes the copy (`run/checkpoints.py`; `run/together.py` where ranks hold parts of the weights)
             while steps go on; there is never more than one
    landing  it is whole on the disk: only now the `checkpoint` event is told, and older ones have been removed

- A save that comes due while one is in flight is left out, which a warning says. The last step's, and that of a run
  which is asked to stop, wait for it instead; so do all where the finished model is a mean of checkpoints
  (`train.average`), which must not depend on how fast the disk is.
- A save that fails is a warning, and is tried again with the state of a later step: after an eighth of
  `train.checkpoint_every`, then a quarter, a half, and then every time that one is due.
- Writing changes no number of the training. What all ranks must do alike (begin, leave out, try again) follows from
  the step and from rank 0's word on how its flight goes (`Ranks.agree`).
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.errors import RunError
from glassformer.run import checkpoints
from glassformer.run.sealed import not_saved
from glassformer.train.optimizers import state_tensors
from glassformer.train.task import Event
from glassformer.units import show_seconds

if TYPE_CHECKING:
    from glassformer.run.shards import Group
    from glassformer.train.loop import Session

Stems = Mapping[str, Mapping[str, Tensor]]

_FLYING, _LANDED, _FAILED = 0.0, 1.0, 2.0
_LAST_SECONDS = 30.0
"""Where an error ends the run: the longest wait for a save in flight that other ranks may have left."""


class Saver:
    """Writes the checkpoints of one session. As a context: whatever ends it, a save in flight is waited for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._copies = Copies()
        self._flight: Flight | None = None
        self._retry_at: int | None = None
        self._failures = self._left_out = 0
        masters = session.weights.masters
        mine = session.ranks.mine(masters)
        self.divided = any(mine[name] is not weight for name, weight in masters.items())
        """Whether each rank holds a part of the weights, and all save together."""
        self._group: Group | None = None

    @property
    def group(self) -> Group:
        """The ranks, on connections that are not those of the training; all make it at the same time."""
        from glassformer.run.shards import Group  # loads torch's distributed checkpoint, which few runs need

        self._group = self._group or Group()
        return self._group

    def due(self, step: int) -> bool:
        """Whether there is to be a checkpoint after so many steps: a regular one, or one that is tried again."""
        retry = self._retry_at is not None and step >= self._retry_at
        return retry or step % self._session.recipe.train.checkpoint_every == 0

    def save(self, step: int, *, must: bool) -> Iterator[Event]:
        """Begin a checkpoint; with `must`, RunError unless it is on the disk at the end."""
        session, began = self._session, time.perf_counter()
        train = session.recipe.train
        if self._flight is not None and (must or train.average > 1):
            self.join()
        yield from self.look(step, again=step)
        if self._flight is not None:
            self._left_out += 1
            if session.ranks.is_first:
                yield session.log("warning", message=self._too_slow(step))
            return
        self._flight = flight = self._begin(step, began)
        if must or not train.save_beside:
            flight.join()
            flight.stall_seconds = time.perf_counter() - began
            yield from self.look(step, must=must)

    def look(self, step: int, *, must: bool = False, again: int | None = None) -> Iterator[Event]:
        """Tell of the save in flight, once it has landed. One that failed is tried again after step `again`."""
        flight, session = self._flight, self._session
        if flight is None:
            return
        (how,) = session.ranks.agree(flight.how)
        if how == _FLYING:
            return
        self._flight, self._retry_at = None, None
        flight.join()
        if flight.broken is not None:
            raise flight.broken
        if how == _LANDED:
            self._failures = 0
            if session.ranks.is_first:
                yield session.log("checkpoint", **flight.told())
            return
        if must:
            if not session.ranks.is_first:
                session.ranks.wait()  # which breaks: rank 0 ends, and its error is the cause
            raise flight.error or RunError(f"No checkpoint at step {flight.step}.")
        every = session.recipe.train.checkpoint_every
        self._failures += 1
        self._retry_at = again or step + min(every, max(1, every // 8) * 2 ** (self._failures - 1))
        if session.ranks.is_first:
            message = (
                f"no checkpoint at step {flight.step}: {flight.error} Tried again at step {self._retry_at}."
            )
            yield session.log("warning", message=message)

    def join(self) -> None:
        """Wait until nothing is in flight; `look` tells how it went."""
        if self._flight is not None:
            self._flight.join()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """A second Ctrl-C waits for nothing; what else ends a run waits for what is in flight, and notes it."""
        flight, self._flight = self._flight, None
        if flight is None or kind is KeyboardInterrupt:
            return
        flight.join(_LAST_SECONDS if self.divided else None)
        if flight.how == _LANDED and self._session.ranks.is_first:
            self._session.log("checkpoint", **flight.told())

    def _begin(self, step: int, began: float) -> Flight:
        session = self._session
        ranks, masters, keep = session.ranks, session.weights.masters, session.recipe.train.keep
        if not (ranks.is_first or self.divided):
            return Flight(step, began, None, beside=False)
        tensors: Stems = {"model": masters, "optimizer": state_tensors(session.optimizers, masters)}
        tensors = {stem: ranks.as_saved(named) for stem, named in tensors.items()}
        copied: Stems = {stem: ranks.mine(named) for stem, named in tensors.items()}
        if self.divided or session.recipe.train.save_beside:
            copied = self._copies.take(copied)
        state = copy.deepcopy({"model": session.task.config.model_dump(mode="json"), **session.state()})
        folder = session.run.checkpoints
        if not self.divided:
            beside = session.recipe.train.save_beside
            return Flight(
                step, began, lambda: checkpoints.save(folder, step, copied, state, keep=keep), beside=beside
            )
        from glassformer.run import together

        group = self.group
        return Flight(
            step, began, lambda: together.save(folder, step, tensors, copied, state, group, keep=keep)
        )

    def _too_slow(self, step: int) -> str:
        assert self._flight is not None  # it is what is slow
        return (
            f"no checkpoint at step {step}: that of step {self._flight.step} is still being written, after "
            f"{show_seconds(time.perf_counter() - self._flight.began)} ({self._left_out} left out so far); raise "
            "train.checkpoint_every, or give a quicker disk"
        )


class Flight:
    """One save on its way to the disk, in a thread of its own or, when not `beside`, at once; for a rank that writes
    nothing, none."""

    def __init__(
        self, step: int, began: float, write: Callable[[], Path] | None, *, beside: bool = True
    ) -> None:
        self.step, self.began = step, began
        self.error: RunError | None = None
        """What the disk, of this rank or another, refused."""
        self.broken: BaseException | None = None
        """What should not have happened: it ends the run."""
        self._path: Path | None = None
        self._bytes, self._seconds = 0, 0.0
        self._write = write
        self._over = (
            threading.Event()
        )  # a signal may interrupt waiting for it, which joining a thread does not survive
        if beside:
            threading.Thread(target=self._work_aside, name=f"saves step {step}", daemon=True).start()
        else:
            self._work()
        self.stall_seconds = time.perf_counter() - began

    @property
    def how(self) -> float:
        """How it goes, as a number that ranks can tell each other."""
        if not self._over.is_set():
            return _FLYING
        return _FAILED if self.error or self.broken else _LANDED

    def join(self, seconds: float | None = None) -> None:
        self._over.wait(seconds)

    def told(self) -> dict[str, Any]:
        """The fields of the `checkpoint` event."""
        assert self._path is not None  # told of one that landed, by the rank that published it
        return {
            "step": self.step, "path": self._path.name, "bytes": self._bytes,
            "seconds": self._seconds, "stall_seconds": self.stall_seconds,
        }  # fmt: skip

    def _work_aside(self) -> None:
        try:
            self._work()
        except BaseException as error:  # in a thread nobody would see it
            self.broken = error
            self._over.set()

    def _work(self) -> None:
        try:
            if self._write is not None:
                self._path = self._write()
                self._bytes = sum(file.stat().st_size for file in self._path.iterdir())
        except RunError as error:
            self.error = error
        except OSError as error:
            self.error = not_saved(Path(f"step {self.step}"), error)
        self._seconds = time.perf_counter() - self.began
        self._over.set()


class Copies:
    """What is written while training changes the weights: one copy on the host, in memory that is used again."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Stems) -> dict[str, dict[str, Tensor]]:
        """A copy of all, whole when this returns."""
        taken: dict[str, dict[str, Tensor]] = {}
        for stem, named in tensors.items():
            for name, tensor in named.items():
                old = self._kept.get((stem, name))
                if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype:
                    old = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    self._kept[stem, name] = old
                old.copy_(tensor, non_blocking=tensor.is_cuda)
                taken.setdefault(stem, {})[name] = old
        if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
            torch.cuda.current_stream().synchronize()  # the copies of all tensors run side by side until here
        return taken


def whole_tensors(session: Session) -> dict[str, dict[str, Tensor]]:
    """Weights and optimiser, whole and on the CPU; on rank 0."""
    masters, gather = session.weights.masters, session.ranks.gather
    return {"model": gather(masters), "optimizer": gather(state_tensors(session.optimizers, masters))}
