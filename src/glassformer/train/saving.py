"""A run's checkpoints: taken, written, and what becomes of a save that fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from glassformer.errors import RunError
from glassformer.run import checkpoints
from glassformer.train.optimizers import state_tensors
from glassformer.train.task import Event

if TYPE_CHECKING:
    from glassformer.train.loop import Session


class Saver:
    """Writes the checkpoints of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def save(self, step: int, *, must: bool) -> Iterator[Event]:
        """A checkpoint. One that fails between is a warning: training goes on, and the older ones are there."""
        session, began = self._session, time.perf_counter()
        tensors = whole_tensors(session)
        if not session.ranks.is_first:
            return
        state = {"model": session.task.config.model_dump(mode="json"), **session.state()}
        keep = session.recipe.train.keep
        try:
            path = checkpoints.save(session.run.checkpoints, step, tensors, state, keep=keep)
        except RunError as error:
            if must:
                raise
            yield session.log("warning", message=f"no checkpoint at step {step}: {error}")
            return
        size = sum(file.stat().st_size for file in path.iterdir())
        yield session.log(
            "checkpoint", step=step, path=path.name, bytes=size, seconds=time.perf_counter() - began
        )


def whole_tensors(session: Session) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds, whole and on the CPU; on rank 0."""
    masters, gather = session.weights.masters, session.ranks.gather
    return {"model": gather(masters), "optimizer": gather(state_tensors(session.optimizers, masters))}
