"""Randomness as a pure function: the same seed and the same name always give the same numbers.

Nothing here keeps state. A place that needs randomness names itself, so adding one never shifts another:

    rng = generator(seed, "batches", "train", epoch)

The seed of each stream is the first 8 bytes of SHA-256 over the seed and the names.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` under `seed`."""
    text = "\x1f".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) for the stream called `names` under `seed`."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))
