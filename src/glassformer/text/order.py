"""A random order of `size` things that needs no memory: a keyed permutation.

Write an index as a pair (l, r) in Z_a x Z_b with a = ceil(sqrt(size)), b = ceil(size / a). Each round adds a
hash of one half to the other,

    l <- (l + F_k(r)) mod a,    r <- (r + F_k'(l)) mod b,

which can be undone, so that all rounds together are a bijection of the a*b pairs (a Feistel network: Luby &
Rackoff 1988; for any domain: Black & Rogaway 2002). A pair beyond `size` is sent through again until it falls
inside: still a bijection. F is the finaliser of SplitMix64 (Steele et al. 2014) over the half, the epoch and
the round's key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glassformer.seeds import derive

ROUNDS = 6
Words = NDArray[np.uint64]
_EPOCH_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def round_keys(seed: int, *names: str | int) -> list[np.uint64]:
    """The keys of one permutation, two for each pair of rounds."""
    return [np.uint64(derive(seed, *names, number)) for number in range(ROUNDS)]


def permute(index: Words, size: int, epoch: Words, keys: Sequence[np.uint64]) -> Words:
    """The place of each `index` (0 <= index < size) in the order of its `epoch`."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    shift = epoch * _EPOCH_STEP
    place = _rounds(index, a, b, shift, keys)
    while (outside := place >= size).any():
        place[outside] = _rounds(place[outside], a, b, shift[outside], keys)
    return place


def mix(word: Words) -> Words:
    """A hash of each 64-bit word."""
    word = (word ^ (word >> _SHIFTS[0])) * _MIX[0]
    word = (word ^ (word >> _SHIFTS[1])) * _MIX[1]
    return word ^ (word >> _SHIFTS[2])


def _rounds(index: Words, a: int, b: int, shift: Words, keys: Sequence[np.uint64]) -> Words:
    wide, high = np.uint64(a), np.uint64(b)
    left, right = index % wide, index // wide
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = (left + mix(right + shift + first) % wide) % wide
        right = (right + mix(left + shift + second) % high) % high
    return right * wide + left
