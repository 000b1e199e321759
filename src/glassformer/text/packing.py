"""Whole documents into rows: best fit, longest first, with the padding counted.

A document of m tokens fills m // context rows of its own; what remains goes into the fullest open row that
still has room for it, or opens a new one (best-fit decreasing: at most 11/9 of the fewest possible rows;
Johnson 1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Pieces of documents, grouped by row."""

    context: int
    first: Integers
    """(piece,): the place in the store of its first token."""
    length: Integers
    """(piece,)"""
    offset: Integers
    """(piece,): where in its row it begins."""
    edges: Integers
    """(row + 1,): row r holds pieces edges[r] to edges[r + 1]."""

    @property
    def num_rows(self) -> int:
        return len(self.edges) - 1

    @property
    def num_padded(self) -> int:
        """Places that hold no token."""
        return self.num_rows * self.context - int(self.length.sum())

    def places(self, rows: Integers) -> Integers:
        """(row,) -> (row, context): the place in the store of each token, -1 where padded."""
        result = np.full((len(rows), self.context), -1, np.int64)
        counts = self.edges[rows + 1] - self.edges[rows]
        pieces = _ranges(self.edges[rows], counts)
        lengths = self.length[pieces]
        row = np.repeat(np.repeat(np.arange(len(rows)), counts), lengths)
        result[row, _ranges(self.offset[pieces], lengths)] = _ranges(self.first[pieces], lengths)
        return result


def fit(starts: Integers, context: int) -> Rows:
    """Pack the documents whose edges are `starts` into rows of `context` tokens."""
    sizes = np.diff(starts)
    full, rest = np.divmod(sizes, context)
    whole = np.repeat(starts[:-1], full) + context * _ranges(np.zeros_like(full), full)
    short = np.flatnonzero(rest)
    short = short[np.argsort(-rest[short], kind="stable")]
    row_of_short, num_short_rows = _best_fit(rest[short], context)
    first = np.concatenate([whole, starts[short] + full[short] * context])
    length = np.concatenate([np.full(len(whole), context), rest[short]])
    row = np.concatenate([np.arange(len(whole)), len(whole) + row_of_short])
    order = np.argsort(row, kind="stable")
    edges = np.searchsorted(row[order], np.arange(len(whole) + num_short_rows + 1))
    first, length = first[order], length[order]
    before = np.cumsum(length) - length
    offset = before - np.repeat(before[edges[:-1]], np.diff(edges))
    return Rows(context, first, length, offset, edges)


def _best_fit(sizes: Integers, context: int) -> tuple[Integers, int]:
    """The row of each piece, longest first. `open_rows[r]` are the rows with r places left; the bits of
    `room` say which of them are not empty, so the smallest sufficient one is found without a search."""
    open_rows: list[list[int]] = [[] for _ in range(context)]
    room = num_rows = 0
    rows = np.empty(len(sizes), np.int64)
    for piece, size in enumerate(sizes.tolist()):
        sufficient = room >> size
        if sufficient:
            left = size + (sufficient & -sufficient).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                room &= ~(1 << left)
        else:
            row, left = num_rows, context
            num_rows += 1
        rows[piece] = row
        if left > size:
            open_rows[left - size].append(row)
            room |= 1 << (left - size)
    return rows, num_rows


def _ranges(first: Integers, count: Integers) -> Integers:
    """The numbers first[0], first[0] + 1, ... (count[0] of them), then those of the next, end to end."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - count - first, count)
