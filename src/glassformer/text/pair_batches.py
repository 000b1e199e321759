"""`batch(step)` of pairs: several pairs side by side in each row, as a pure function of (stores, seed, step).

Sentences are short and rows are long, so a row holds as many pairs as fit on both of its sides, and a segment
number tells them apart: neither attention nor positions reach from one pair into another (`model/stacks.py`).
Every batch has the same shape, which one compilation serves, and little is padded.

    source           x1 x2 x3 <end>  x1 x2 <end>  ...        what is read
    ids              <end> y1 y2     <end> y1 y2 y3 ...      what has been written
    targets          y1 y2 <end>     y1 y2 y3 <end> ...      what comes next
    (source_)segments 0 0 0 0        1 1 1 ...               -1 where padded

Pairs are packed once, longest first, each into the fullest of the open rows that has room for it; every epoch
takes the rows in an order of its own, as `batches.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError
from glassformer.text.batches import NO_LOSS
from glassformer.text.order import permute, round_keys
from glassformer.text.pairs import PairStore

Integers = NDArray[np.int64]
_OPEN_ROWS = 64
"""A pair is tried in so many rows at most: the ones opened last."""


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Rows of pairs to learn from; each array is (batch, context)."""

    source: Integers
    source_segments: Integers
    ids: Integers
    targets: Integers
    segments: Integers
    sample_ids: Integers
    """(batch,): the number of each row since training began."""

    @property
    def num_targets(self) -> int:
        return int((self.targets != NO_LOSS).sum())

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """What the model's loss takes, by name."""
        names = ("source", "source_segments", "ids", "targets", "segments")
        return {name: getattr(self, name) for name in names}


class PairBatches:
    """The batches of a store of pairs. Everything is set when it is made; `batch` keeps no state."""

    def __init__(self, store: PairStore, *, batch: int, context: int, seed: int) -> None:
        self.store, self.batch_size, self.context = store, batch, context
        self._rows, left_out = pack(store, context)
        self.num_samples = len(self._rows)
        if not self.num_samples:
            raise TextError(
                f"No pair fits into a row of {context} tokens.",
                do="Raise model.context above the longest pair.",
            )
        self._keys = round_keys(seed, "order", 0)
        filled = int(np.diff(store.target.starts)[np.concatenate(self._rows)].sum())
        self.waste = 1 - filled / (self.num_samples * context)
        """The part of all target places that holds nothing."""
        self.warnings: list[str] = []
        if left_out:
            self.warnings.append(f"{left_out} pairs are longer than {context} tokens and are left out")

    @property
    def tokens_per_batch(self) -> int:
        """Places on the target's side; the source's has as many."""
        return self.batch_size * self.context

    def batch(self, step: int) -> PairBatch:
        """The batch of this step, counted from 0."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch, index = np.divmod(numbers.astype(np.uint64), np.uint64(self.num_samples))
        chosen = permute(index, self.num_samples, epoch, self._keys).astype(np.int64)
        return gather(self.store, [self._rows[row] for row in chosen.tolist()], self.context, numbers)


def pair_validation_batches(store: PairStore, *, batch: int, context: int) -> Iterator[PairBatch]:
    """All pairs, each target predicted once; the last batch is filled up with empty rows."""
    rows, _ = pack(store, context)
    for first in range(0, len(rows), batch):
        chosen = rows[first : first + batch]
        chosen += [np.empty(0, np.int64)] * (batch - len(chosen))
        yield gather(store, chosen, context, np.arange(first, first + batch))


def pack(store: PairStore, context: int) -> tuple[list[Integers], int]:
    """(the pairs of each row, how many fit in none)."""
    need = np.stack(
        [np.diff(store.source.starts), np.diff(store.target.starts)], axis=1
    )  # tokens, ends included
    longest = need.max(1, initial=0)
    order = np.argsort(-longest, kind="stable")
    order = order[longest[order] <= context]
    rows: list[list[int]] = []
    room = np.full((len(order), 2), context, np.int64)  # places left in each row, on either side
    for pair in order.tolist():
        first = max(0, len(rows) - _OPEN_ROWS)
        tried = room[first : len(rows)]
        fits = (tried >= need[pair]).all(1)
        if fits.any():
            row = first + int(np.where(fits, tried.sum(1), 2 * context + 1).argmin())
            rows[row].append(pair)
        else:
            row = len(rows)
            rows.append([pair])
        room[row] -= need[pair]
    return [np.array(row, np.int64) for row in rows], len(longest) - len(order)


def gather(store: PairStore, rows: list[Integers], context: int, sample_ids: Integers) -> PairBatch:
    """The tokens of these rows."""
    store.source.check()
    store.target.check()
    end = store.source.end_of_text
    shape = len(rows), context
    source, ids = np.full(shape, end, np.int64), np.full(shape, end, np.int64)
    targets = np.full(shape, NO_LOSS, np.int64)
    read, written = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    for row, pairs in enumerate(rows):
        at = to = 0
        for segment, pair in enumerate(pairs.tolist()):
            x, y = (
                side.ids[side.starts[pair] : side.starts[pair + 1]] for side in (store.source, store.target)
            )
            source[row, at : at + len(x)], read[row, at : at + len(x)] = x, segment
            targets[row, to : to + len(y)], written[row, to : to + len(y)] = y, segment
            ids[row, to + 1 : to + len(y)] = y[:-1]
            at, to = at + len(x), to + len(y)
    return PairBatch(source, read, ids, targets, written, sample_ids)
