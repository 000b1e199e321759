"""`batch(step)`: ids -> rows to learn from, as a pure function of (store, seed, step).

Nothing is iterated, so resuming, another number of machines, and looking again at the batch behind a spike
are the same call. Sample number g = step * batch + row. Each source serves its own samples k = 0, 1, 2, ...;
without weights all text is one source and k = g. One epoch is every row of the source once, in an order of
its own:

    epoch = k // num_rows,    row = permute(k % num_rows, epoch)

`stream` packing lays the documents end to end in a ring and cuts it into windows of `context` tokens,
starting at a place that differs in every epoch; nothing is padded. `fit` packing puts whole documents
together (see `packing.py`) and pads.

A row holds target tokens; the input at each place is the token before the target. Every document ends in
`end_of_text`, so the first token of a document is predicted from `end_of_text`, as when generating from
nothing. With `mask_documents`, `segments` numbers the documents of a row, and that `end_of_text` counts to
the document it opens: no token sees another document, and none loses its loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError
from glassformer.seeds import derive, generator
from glassformer.text.order import mix, permute, round_keys
from glassformer.text.packing import Rows, fit
from glassformer.text.store import TokenStore

NO_LOSS = -100
"""The target where nothing is to be predicted; `torch.nn.functional.cross_entropy` ignores it by default."""
PERIOD = 1000
"""Weighted sources share this many samples exactly, then the same again."""
_SOURCE_SHIFT = 48
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to learn from."""

    ids: Integers
    """(batch, context)"""
    targets: Integers
    """(batch, context): the next token at each place, or NO_LOSS."""
    segments: NDArray[np.int32] | None
    """(batch, context): which document of the row, -1 where padded; None when documents are not masked."""
    sample_ids: Integers
    """(batch,): names each row among all that the source will ever give; `Batches.locate` finds it again."""

    @property
    def num_targets(self) -> int:
        return int((self.targets != NO_LOSS).sum())

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """What a model's loss takes, by name; rows first in each."""
        return {"ids": self.ids, "targets": self.targets, "segments": self.segments}


class Batches:
    """The batches of a store. Everything is set when it is made; `batch` keeps no state."""

    def __init__(
        self,
        store: TokenStore,
        *,
        batch: int,
        context: int,
        seed: int,
        packing: Literal["stream", "fit"] = "stream",
        mask_documents: bool = False,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.store, self.batch_size, self.context = store, batch, context
        self._mask = mask_documents
        spans = _spans(store, len(weights)) if weights else [(0, store.num_tokens, 0, store.num_documents)]
        self._sources: list[_Source] = []
        for number, (start, end, first, last) in enumerate(spans):
            if end - start < context:
                which = f"Source {number + 1} of {len(spans)}" if weights else "The training text"
                raise TextError(
                    f"{which} has {end - start:,} tokens, fewer than one context of {context:,}.",
                    expected=f"At least {context:,} tokens.",
                    do="Give more text, or lower model.context.",
                )
            if packing == "fit":
                rows = fit(store.starts[first : last + 1], context)
                self._sources.append(_Fit(rows, seed, number))
            else:
                self._sources.append(_Stream(start, end, context, seed, number))
        self._slots = _slots(weights, seed) if weights else np.zeros(1, np.int64)
        self._rank = _rank_within(self._slots)
        self._share = np.bincount(self._slots, minlength=len(spans))
        self.num_samples = sum(source.num_rows for source in self._sources)
        self.steps_per_epoch = -(-self.num_samples // batch)
        self.tokens_per_batch = batch * context
        lost = sum(source.num_padded for source in self._sources)
        self.waste = lost / (self.num_samples * context)
        self.warnings: list[str] = []
        if self.num_samples < batch:
            self.warnings.append(
                f"The training text gives {self.num_samples:,} rows of {context:,} tokens, less than a batch "
                f"of {batch:,}: each batch repeats it {batch / self.num_samples:.1f} times."
            )

    def batch(self, step: int) -> Batch:
        """The batch of this step, counted from 0."""
        self.store.check()
        source, sample = self._samples(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        places = np.empty((self.batch_size, self.context), np.int64)
        for number in np.unique(source).tolist():
            chosen = source == number
            places[chosen] = self._sources[number].places(sample[chosen])
        return _gather(self.store, places, (source << _SOURCE_SHIFT) | sample, self._mask)

    def locate(self, sample_id: int) -> dict[str, Any]:
        """Where the row with this sample id comes from: its source, epoch, documents and token ranges."""
        source, sample = sample_id >> _SOURCE_SHIFT, sample_id & ((1 << _SOURCE_SHIFT) - 1)
        places = self._sources[source].places(np.array([sample]))[0]
        places = places[places >= 0]
        starts = self.store.starts
        numbers = np.searchsorted(starts, places, "right") - 1
        documents = []
        for number in dict.fromkeys(numbers.tolist()):
            inside = places[numbers == number] - starts[number]
            documents.append(
                {
                    "document": number,
                    "name": self.store.names[number],
                    "tokens": (int(inside.min()), int(inside.max()) + 1),
                }
            )
        return {"source": source, "epoch": sample // self._sources[source].num_rows, "documents": documents}

    def _samples(self, numbers: Integers) -> tuple[Integers, Integers]:
        """(source, how many samples that source gave before) of each sample number."""
        period, slot = np.divmod(numbers, len(self._slots))
        source = self._slots[slot]
        return source, period * self._share[source] + self._rank[slot]


def validation_batches(
    store: TokenStore, *, batch: int, context: int, mask_documents: bool = False
) -> Iterator[Batch]:
    """All tokens of the store in order, each predicted once; the last rows are padded."""
    num_rows = -(-store.num_tokens // context)
    for first in range(0, num_rows, batch):
        store.check()
        rows = np.arange(first, first + batch)
        places = rows[:, None] * context + np.arange(context)
        places[places >= store.num_tokens] = -1
        yield _gather(store, places, rows, mask_documents)


class _Source(Protocol):
    num_rows: int
    num_padded: int

    def places(self, sample: Integers) -> Integers:
        """(sample,) -> (sample, context): the place in the store of each target, -1 where there is none."""


class _Stream:
    """Windows of a ring of tokens."""

    num_padded = 0

    def __init__(self, start: int, end: int, context: int, seed: int, number: int) -> None:
        self._start, self._size, self._context = start, end - start, context
        self.num_rows = self._size // context
        self._keys = round_keys(seed, "order", number)
        self._phase_key = np.uint64(derive(seed, "phase", number))

    def places(self, sample: Integers) -> Integers:
        epoch, index = np.divmod(sample.astype(np.uint64), np.uint64(self.num_rows))
        window = permute(index, self.num_rows, epoch, self._keys).astype(np.int64)
        phase = (mix(epoch + self._phase_key) % np.uint64(self._size)).astype(np.int64)
        first = phase + window * self._context
        places = first[:, None] + np.arange(self._context)
        places -= (places >= self._size) * np.int64(self._size)
        return places + self._start


class _Fit:
    """Rows of whole documents."""

    def __init__(self, rows: Rows, seed: int, number: int) -> None:
        self._rows, self.num_rows, self.num_padded = rows, rows.num_rows, rows.num_padded
        self._keys = round_keys(seed, "order", number)

    def places(self, sample: Integers) -> Integers:
        epoch, index = np.divmod(sample.astype(np.uint64), np.uint64(self.num_rows))
        return self._rows.places(permute(index, self.num_rows, epoch, self._keys).astype(np.int64))


def _gather(store: TokenStore, places: Integers, sample_ids: Integers, mask_documents: bool) -> Batch:
    # The token before the first of a source ends the source before it, or the ring: always end_of_text.
    targets = store.ids.take(places, mode="wrap").astype(np.int64)
    ids = store.ids.take(places - 1, mode="wrap").astype(np.int64)
    padded = places < 0
    if padded.any():
        ids[padded], targets[padded] = store.end_of_text, NO_LOSS
    if not mask_documents:
        return Batch(ids, targets, None, sample_ids)
    opens = (ids == store.end_of_text) & ~padded
    opens[:, 1:] |= np.diff(places, axis=1) != 1
    opens[:, 0] = False
    segments = np.cumsum(opens, axis=1, dtype=np.int32)
    segments[padded] = -1
    return Batch(ids, targets, segments, sample_ids)


def _spans(store: TokenStore, num_sources: int) -> list[tuple[int, int, int, int]]:
    """(first token, end, first document, end) of each source; documents lie in the order of their sources."""
    edges = np.searchsorted(store.sources, np.arange(num_sources + 1))
    return [
        (int(store.starts[first]), int(store.starts[last]), first, last)
        for first, last in pairwise(edges.tolist())
    ]


def _slots(weights: Sequence[float], seed: int) -> Integers:
    """Which source serves each sample of a period: shares by largest remainder, in random order."""
    exact = np.array(weights, float) / sum(weights) * PERIOD
    shares = np.floor(exact).astype(np.int64)
    rest = np.argsort(shares - exact, kind="stable")[: PERIOD - int(shares.sum())]
    shares[rest] += 1
    return generator(seed, "slots").permutation(np.repeat(np.arange(len(shares)), shares))


def _rank_within(slots: Integers) -> Integers:
    """How many earlier slots of the period belong to the same source."""
    order = np.argsort(slots, kind="stable")
    ranks = np.empty(len(slots), np.int64)
    starts = np.searchsorted(slots[order], slots[order])
    ranks[order] = np.arange(len(slots)) - starts
    return ranks
