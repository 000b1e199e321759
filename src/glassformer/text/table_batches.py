"""`batch(step)` for rows of a table: a pure function of (table, seed, step), like that for text.

Sample number g = step * batch + place. One epoch is every row once, in an order of its own:

    epoch = g // rows,    row = permute(g % rows, epoch)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError
from glassformer.text.order import permute, round_keys
from glassformer.text.tables import Answers, PreparedTable, Table


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Rows to learn from."""

    inputs: NDArray[np.float32]
    """(row, input)"""
    targets: Answers
    """(row,) or (row, output)"""
    sample_ids: NDArray[np.int64]
    """(row,): names each row among all that will ever be given; `TableBatches.locate` finds it again."""

    @property
    def num_targets(self) -> int:
        """What the summed loss is divided by: rows."""
        return len(self.sample_ids)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arguments of `Network.loss`."""
        return {"inputs": self.inputs, "targets": self.targets}


class TableBatches:
    """The batches of the training rows. Everything is set when it is made; `batch` keeps no state."""

    def __init__(self, data: PreparedTable, *, batch: int, seed: int) -> None:
        self.data, self.batch_size = data, batch
        self.num_samples = len(data.train)
        self.steps_per_epoch = -(-self.num_samples // batch)
        self._keys = round_keys(seed, "order", 0)
        self.waste = 0.0
        """No place of a batch is left empty."""
        self.warnings: list[str] = []
        if self.num_samples < batch:
            self.warnings.append(
                f"There are {self.num_samples:,} training rows, less than a batch of {batch:,}: "
                f"each batch repeats them {batch / self.num_samples:.1f} times."
            )

    @property
    def tokens_per_batch(self) -> int:
        """What is counted here is rows."""
        return self.batch_size

    def batch(self, step: int) -> TableBatch:
        """The batch of this step, counted from 0."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return _gather(self.data.train, self._rows(samples), samples)

    def locate(self, sample_id: int) -> dict[str, Any]:
        """Where the row with this sample id comes from: its epoch, its number, its file."""
        if sample_id < 0:
            raise TextError(f"There is no sample {sample_id}.", expected="A sample id of a batch, from 0 on.")
        row = int(self.data.train.rows[self._rows(np.array([sample_id]))[0]])
        return {"epoch": sample_id // self.num_samples, "row": row, "origin": self.data.origin(row)}

    def _rows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        epoch, index = np.divmod(samples.astype(np.uint64), np.uint64(self.num_samples))
        return permute(index, self.num_samples, epoch, self._keys).astype(np.int64)


def validation_table_batches(part: Table, *, batch: int) -> Iterator[TableBatch]:
    """All rows of a part in order, each once; the last batch holds what is left."""
    for first in range(0, len(part), batch):
        rows = np.arange(first, min(first + batch, len(part)))
        yield _gather(part, rows, part.rows[rows])


def _gather(part: Table, rows: NDArray[np.int64], sample_ids: NDArray[np.int64]) -> TableBatch:
    return TableBatch(part.inputs[rows], part.targets[rows], sample_ids)
