"""Which stretches of text occur again, found in bounded memory.

A stretch is `LENGTH` bytes in a row. Its hash is a polynomial in an odd base p, modulo 2^64, taken for every
place of a text at once from running sums: with S_i = sum_{j < i} b_j p^j,

    hash_i = (S_{i + LENGTH} - S_i) * p^(-i),

then mixed. Only stretches whose hash ends in `level` zero bits are kept, so a stretch is kept at all of its
places or at none, and shares of kept stretches estimate shares of all of them (Broder 1997). When the table
is full the level rises by one and half of it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from glassformer.text.order import mix

LENGTH = 50
"""Bytes; about 13 tokens of English, the length by which overlap is usually judged (Brown et al. 2020)."""
MOST_KEPT = 2**19
BLOCK = 2**20  # bytes hashed at once
BASE = 0x9E3779B97F4A7C15 | 1


class Seen:
    """The stretches met so far, and on which side of the split."""

    def __init__(self, *, expected_bytes: int = 0, most_kept: int = MOST_KEPT) -> None:
        self.level = max(0, (expected_bytes // most_kept).bit_length())
        self._most_kept = most_kept
        self._in_train: dict[int, bool] = {}
        self._validation: list[NDArray[np.uint64]] = []

    def add(self, data: bytes, *, validation: bool) -> tuple[float, float, int]:
        """Take in one document: (share of its stretches met in earlier documents, share that repeats within
        it, number of stretches judged)."""
        kept = [_at_level(hashes, self.level) for hashes in stretches(data)]
        hashes = np.concatenate(kept) if kept else np.empty(0, np.uint64)
        if not hashes.size:
            return 0.0, 0.0, 0
        unique = np.unique(hashes)
        numbers = unique.tolist()
        known = sum(number in self._in_train for number in numbers)
        if validation:
            self._validation.append(hashes)
            for number in numbers:
                self._in_train.setdefault(number, False)
        else:
            self._in_train.update(dict.fromkeys(numbers, True))
        while len(self._in_train) > self._most_kept:
            self._raise_level()
        return known / len(unique), 1 - len(unique) / len(hashes), len(hashes)

    def overlap(self) -> float:
        """The share of the validation side's stretches that occur on the training side; NaN without any."""
        hashes = np.concatenate([*self._validation, np.empty(0, np.uint64)])
        hashes = _at_level(hashes, self.level)
        found = sum(self._in_train[number] for number in hashes.tolist())
        return found / len(hashes) if len(hashes) else float("nan")

    def _raise_level(self) -> None:
        self.level += 1
        dropped = (1 << self.level) - 1
        self._in_train = {number: side for number, side in self._in_train.items() if not number & dropped}
        self._validation = [_at_level(hashes, self.level) for hashes in self._validation]


def stretches(data: bytes) -> Iterator[NDArray[np.uint64]]:
    """The hash of every `LENGTH` bytes of `data` in a row, block by block."""
    powers, inverses = _powers()
    for start in range(0, len(data) - LENGTH + 1, BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK + LENGTH - 1, len(data) - start), start)
        sums = np.zeros(len(block) + 1, np.uint64)
        # Adding 1 lets a run of zero bytes count too.
        np.cumsum((block.astype(np.uint64) + np.uint64(1)) * powers[: len(block)], out=sums[1:])
        windows = len(block) - LENGTH + 1
        yield mix((sums[LENGTH:] - sums[:windows]) * inverses[:windows])


def _at_level(hashes: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
    return hashes[(hashes & np.uint64((1 << level) - 1)) == 0] if level else hashes


@cache
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """p^i and p^-i modulo 2^64."""
    size = BLOCK + LENGTH
    both = []
    for base in (BASE, pow(BASE, -1, 2**64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        both.append(np.multiply.accumulate(factors))
    return both[0], both[1]
