"""How well a product's sides fit a matrix unit: tiles, waves and alignment.

A kernel computes the result in tiles; the units that compute tiles at the same time (multiprocessors) take
ceil(tiles / units) turns, and the last turn is rarely full. The kernel library chooses among tile sizes; a smaller tile
wastes less at the edge and reads its factors more often, which costs `_TILES`' share of speed.

Tensor cores load 128 bytes at once: a side that 64 numbers do not divide leaves part of it unused (NVIDIA, "Matrix
Multiplication Background User's Guide": multiples of 64 numbers of 16 bits are best on A100, 8 the least).
"""

from __future__ import annotations

import numpy as np

from glassformer.plan.layout import Number

_TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.85), (64, 64, 0.7))

_UNITS = {"P100": 56, "V100": 80, "A100": 108, "H100": 132, "H800": 132, "H200": 132, "GH200": 132, "B200": 148,
          "B300": 148, "GB200": 148, "GB300": 148, "MI250X": 208, "MI300X": 304, "MI325X": 304, "MI355X": 256,
          "L40S": 142, "RTX-3090": 82, "RTX-4090": 128}  # fmt: skip
"""Multiprocessors or compute units, of the vendors' datasheets; others compute by systolic arrays of 128 x 128."""


def units(name: str) -> int:
    """Of an accelerator, by the name it has in the table."""
    return next((n for begin, n in _UNITS.items() if name.startswith(begin)), 8)


def quantised(m: Number, n: Number, name: str) -> Number:
    """Share of the peak that tiles and waves leave, for a product with an m x n result: the best tile's."""
    many = units(name)
    least: Number = np.inf  # numbers that could be computed in the time
    for rows, columns, share in _TILES:
        turns = np.ceil(np.ceil(m / rows) * np.ceil(n / columns) / many)
        least = np.minimum(least, turns * (many * rows * columns / share))
    return m * n / least


def misaligned(n: Number, k: Number) -> Number:
    """0 where 64 divides both sides, 1 where only 8 does, 2.1 for 4: of the worse side."""
    return np.maximum(_off(n), _off(k))


def _off(side: Number) -> Number:
    whole = np.rint(side).astype(np.int64) if isinstance(side, np.ndarray) else np.int64(round(float(side)))
    return (64.0 / np.gcd(np.maximum(1, whole), 64) - 1.0) / 7.0
