"""The number formats of GGUF: bytes -> float32, and back for those that are written.

A row of n numbers is n / k blocks of k numbers. Symbols: d, m, e half-precision numbers of a block; q a small
integer for each number; s and t small integers for each sub-block.

| format | k   | bytes | what lies there                                                 | number             |
|--------|-----|-------|-----------------------------------------------------------------|--------------------|
| F32    | 1   | 4     | IEEE 754 single precision                                       | itself             |
| F16    | 1   | 2     | IEEE 754 half precision                                         | itself             |
| BF16   | 1   | 2     | the upper half of an F32                                        | itself             |
| Q8_0   | 32  | 34    | d, 32 q of 8 bits with sign                                     | d q                |
| Q4_0   | 32  | 18    | d, 32 q of 4 bits                                               | d (q - 8)          |
| Q4_1   | 32  | 20    | d, m, 32 q of 4 bits                                            | d q + m            |
| Q4_K   | 256 | 144   | d, e, 8 s and 8 t of 6 bits in 12 bytes, 256 q of 4 bits        | d s q - e t        |
| Q6_K   | 256 | 210   | 256 q of 6 bits: low 4 then high 2; 16 s of 8 bits with sign; d | d s (q - 32)       |

Which nibble belongs to which number. Q4_0, Q4_1: byte i holds number i (low) and i + 16 (high). Q4_K: 32 bytes
hold 64 numbers, the low nibbles first, and each 32 numbers have their s and t. Q6_K: 128 numbers take 64 bytes
of low nibbles (0-31, 32-63 low; 64-95, 96-127 high) and 32 bytes of high pairs, two bits for each of these four
groups; every 16 numbers have their s. The 6-bit s and t of Q4_K: bytes 0-3 hold s 0-3, bytes 4-7 t 0-3, bytes
8-11 the low nibbles of s 4-7 and t 4-7, whose upper two bits are those of bytes 0-3 and 4-7.

Written Q8_0: d = max |x| / 127, q = x / d rounded half away from zero. So |x - d q| <= d / 2 plus what the
half-precision d is off: 127 (d 2^-11 + 2^-25).

Source: ggml's `ggml-common.h` (layouts) and `ggml-quants.c` (reference rows); values equal theirs to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import ModelError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BYTES_AT_ONCE = 2**20
"""Of blocks; what is computed in between stays in the processor's cache and out of the peak."""


@dataclass(frozen=True, slots=True)
class Format:
    """One of ggml's types."""

    name: str
    number: int
    """What a file calls it."""
    block: int
    """k: numbers in a block."""
    block_bytes: int
    decode: Callable[[Bytes], Floats]
    """(blocks, bytes) -> (blocks, k)."""
    encode: Callable[[Floats], Bytes] | None = None

    def size(self, count: int) -> int:
        """Bytes of `count` numbers, a whole number of blocks."""
        return count // self.block * self.block_bytes


def dequantise(data: Bytes, form: Format) -> Floats:
    """All numbers in `data`, in order."""
    blocks = data.reshape(-1, form.block_bytes)
    found = np.empty((len(blocks), form.block), np.float32)
    at_once = max(1, BYTES_AT_ONCE // form.block_bytes)
    with np.errstate(
        invalid="ignore"
    ):  # a damaged d is infinite, and infinity times 0 is NaN here as in ggml
        for start in range(0, len(blocks), at_once):
            found[start : start + at_once] = form.decode(blocks[start : start + at_once])
    return found.reshape(-1)


def quantise(values: Floats, form: Format, *, name: str) -> Bytes:
    """The bytes of `values`; a number that the format cannot hold is refused, with the `name` of its tensor."""
    assert form.encode is not None, f"{form.name} is not written"
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, form.block)
    found = np.empty((len(blocks), form.block_bytes), np.uint8)
    at_once = max(1, BYTES_AT_ONCE // form.block_bytes)
    for start in range(0, len(blocks), at_once):
        piece = blocks[start : start + at_once]
        largest = float(np.abs(piece).max())
        if not largest < _LARGEST[form.name]:  # true for NaN as well
            raise ModelError(
                f"{name} holds {largest:g}, which {form.name} cannot.",
                expected=f"Expected finite numbers below {_LARGEST[form.name]:g}.",
                do="Write f32, which keeps every finite number." if np.isfinite(largest) else "",
            )
        found[start : start + at_once] = form.encode(piece)
    return found.reshape(-1)


def _half(blocks: Bytes, start: int) -> Floats:
    """The half-precision number at a byte of each block, as a column."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """The low nibbles of the last axis, then its high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _from_f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _from_bf16(blocks: Bytes) -> Floats:
    wide = np.zeros((*blocks.shape[:-1], 2), "<u2")
    wide[..., 1] = np.ascontiguousarray(blocks).view("<u2")[..., 0]
    return wide.view("<f4").astype(np.float32)


def _from_q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _from_q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8)


def _from_q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _from_q4_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    low = packed[:, :2] & 63  # s 0-3 and t 0-3
    high = np.stack([packed[:, 2] & 15, packed[:, 2] >> 4], axis=1) | ((packed[:, :2] >> 6) << 4)
    six = np.concatenate([low, high], axis=2)  # (blocks, s or t, sub-block)
    scale, shift = _half(blocks, 0) * six[:, 0], _half(blocks, 2) * six[:, 1]
    q = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    found: Floats = scale[..., None] * q - shift[..., None]
    return found.reshape(-1, 256)


def _from_q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))  # (blocks, half, 128 numbers)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = ((pairs >> shifts) & 3).reshape(-1, 2, 128)
    q = (low | (high << 4)).astype(np.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (scale[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _to_bf16(blocks: Floats) -> Bytes:
    """Rounded to the nearest, ties to even, as IEEE 754 does."""
    bits = blocks.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view(np.uint8)


def _to_q8_0(blocks: Floats) -> Bytes:
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = blocks * np.where(d == 0, np.float32(0), np.float32(1) / d)
    # Below 2^-128 the reciprocal is infinite; such a block is nought in half precision anyway.
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=127.0, neginf=-127.0)
    whole = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)
    return np.concatenate([d.astype("<f2").view(np.uint8), whole.view(np.uint8)], axis=1)


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("F32", 0, 1, 4, _from_f32, lambda x: x.astype("<f4").view(np.uint8)),
        Format("F16", 1, 1, 2, lambda b: _half(b, 0), lambda x: x.astype("<f2").view(np.uint8)),
        Format("BF16", 30, 1, 2, _from_bf16, _to_bf16),
        Format("Q8_0", 8, 32, 34, _from_q8_0, _to_q8_0),
        Format("Q4_0", 2, 32, 18, _from_q4_0),
        Format("Q4_1", 3, 32, 20, _from_q4_1),
        Format("Q4_K", 12, 256, 144, _from_q4_k),
        Format("Q6_K", 14, 256, 210, _from_q6_k),
    )
}

_LARGEST: dict[str, Any] = {"F32": np.inf, "F16": 65520.0, "BF16": 3.3961775e38, "Q8_0": 127 * 65504.0}

OTHERS: dict[int, str] = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Formats that are not read, so that they can be refused by name."""
