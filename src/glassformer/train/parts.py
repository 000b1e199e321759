"""Into how many micro-batches a rank's rows are cut, which changes when they do not fit into memory.

With `faults.out_of_memory = "halve"` a gradient that does not fit is computed again, in twice as many micro-batches,
half as large. The loss of each is divided by the targets of the whole batch, so the sum stays the mean of the batch:
the same mathematics, floats added in another order. Samples and their order stay as they are; with dropout each
micro-batch draws its own noise, so there other noise is drawn, as on another number of ranks.

It happens before anything of a step is exchanged or changed, and on all ranks together, if it does on any. An event
`memory` says so, and a run that goes on begins with what fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from glassformer.train.launch import spare_pages
from glassformer.train.out_of_memory import explain, fields_of, in_short, is_out_of_memory, let_go
from glassformer.train.task import Event

if TYPE_CHECKING:
    from glassformer.train.loop import Session

T = TypeVar("T")


class Parts:
    """Of one session."""

    def __init__(self, session: Session) -> None:
        self._session, train = session, session.recipe.train
        self.rows = train.batch // session.ranks.data_count
        """Of this rank, in a step."""
        self.count = train.accumulate
        """Micro-batches that they are computed in."""
        self.halves = session.recipe.faults.out_of_memory == "halve"
        self._asked = self.rows // train.accumulate
        self._told: list[Event] = []
        before = session.ranks.decide(lambda: session.run.events.last("memory"))
        if self.halves and before is not None and before["asked_rows"] == self._asked:
            self.count = self._at_least(self.rows / before["rows"]) or self.rows
            spare_pages()  # as it was when that fitted

    def fit(self, compute: Callable[[int], T], step: int) -> T:
        """What `compute` makes of the rows in so many micro-batches as fit; of the step that counts from 0.

        It must be able to begin again from nothing. Raises OutOfMemory where single rows do not fit.
        """
        if not self.halves:
            return compute(self.count)
        noise = _noise()
        while True:
            made, error = None, ""
            try:
                made = compute(self.count)
            except Exception as raised:
                if not is_out_of_memory(raised):
                    raise
                error = in_short(raised)
                let_go(raised)
            if not self._session.ranks.anywhere(made is None):
                assert made is not None
                return made
            made = None
            self._halve(error, step)
            _draw_again(noise)

    def told(self) -> Iterator[Event]:
        """What has been written since this was last asked."""
        while self._told:
            yield self._told.pop(0)

    def _halve(self, error: str, step: int) -> None:
        session = self._session
        errors = session.ranks.hear(error)
        rank = next(rank for rank, heard in enumerate(errors) if heard)
        more = self._at_least(2 * self.count) or (self.rows if self.count < self.rows else None)
        if more is None:
            raise explain(errors[rank], session.task, session.ranks.data_count, session)
        self.count = more
        if session.ranks.is_first:
            fields = fields_of(errors[rank], rank, self.rows // more, self._asked, more, step + 1)
            self._told.append(session.log("memory", **fields))

    def _at_least(self, parts: float) -> int | None:
        """The fewest micro-batches from `parts` on that the rows divide into."""
        return next((n for n in range(1, self.rows + 1) if n >= parts and self.rows % n == 0), None)


def _noise() -> list[Any]:
    """torch's random numbers, as they stand."""
    gpu = torch.cuda.is_available()
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if gpu else [])]


def _draw_again(noise: list[Any]) -> None:
    torch.set_rng_state(noise[0])
    for state in noise[1:]:
        torch.cuda.set_rng_state(state)
