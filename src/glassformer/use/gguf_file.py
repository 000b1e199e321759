"""The GGUF container: what a file says about itself and where its tensors lie. No model is known here.

    "GGUF"  version (3; 2 is the same)  number of tensors  number of values
    each value:   key, type, value             a string is its length and its UTF-8; an array its type and length
    each tensor:  name, dimensions, format, offset      dimensions count from the innermost, so (columns, rows)
    padding to the alignment (`general.alignment`, 32), then the data; offsets count from here

All numbers are little-endian; counts and lengths have 64 bits. Nothing a file says is believed: every count,
length, size and offset is held against the bytes that are there before memory is taken for it, so a file can
make us hold only a small multiple of its own size. Tensors must not overlap, names not repeat.

Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from glassformer.errors import ModelError
from glassformer.files import replacing
from glassformer.use.quantised import FORMATS, OTHERS, Floats, Format, dequantise, quantise

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_MOST_DIMENSIONS, _DEEPEST = 4, 4

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""What the number of a value's type means, as numpy writes it."""
_LEAST = {_BOOL: 1, _STRING: 8, _ARRAY: 12} | {kind: int(code[-1]) for kind, code in _SCALARS.items()}
"""The fewest bytes of a value of each type."""
_LEAST_VALUE, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies and how its numbers are written."""

    shape: tuple[int, ...]
    """Outermost first, as everywhere in this project."""
    form: Format
    start: int
    """Its first byte in the file."""

    @property
    def size(self) -> int:
        return self.form.size(prod(self.shape))


class GgufFile:
    """A file mapped into memory: `metadata`, `tensors`, and the numbers of one tensor at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        if not path.is_file():
            raise ModelError(f"There is no file {path}.", do="Check the path.")
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file: it does not begin with 'GGUF'.")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._parse()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._bytes.close()

    def read(self, name: str) -> Floats:
        """A tensor's numbers in float32, in memory of their own."""
        tensor = self.tensors[name]
        data = np.frombuffer(self._bytes, np.uint8, tensor.size, tensor.start)
        numbers = dequantise(data, tensor.form).reshape(tensor.shape)
        del data
        if hasattr(
            mmap, "MADV_DONTNEED"
        ):  # pages that were read would count as ours until the file is closed
            start = tensor.start - tensor.start % mmap.PAGESIZE
            self._bytes.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.size - start)
        return numbers

    def _parse(self) -> None:
        at = _Reader(self._bytes, self.path)
        at.place = 4
        version = at.number("<u4", "the version")
        if version not in (2, VERSION):
            kind = "big-endian" if version in (2 << 24, 3 << 24) else f"of version {version}"
            raise ModelError(f"{self.path} is {kind}.", expected="Little-endian GGUF 2 or 3 is read.")
        num_tensors = at.count("tensors", _LEAST_TENSOR)
        num_values = at.count("values", _LEAST_VALUE)
        for _ in range(num_values):
            key = at.string("a key")
            if key in self.metadata:
                at.refuse(f"{key!r} is there twice")
            self.metadata[key] = at.value(at.number("<u4", f"the type of {key!r}"), key)
        if self.metadata.get("split.count", 1) not in (0, 1):
            raise ModelError(
                f"{self.path} is one of {self.metadata['split.count']} files.",
                do="Join them first (llama-gguf-split --merge).",
            )
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            at.refuse(f"general.alignment is {alignment}; it must be a multiple of 8")
        found = [at.tensor() for _ in range(num_tensors)]
        data = -(-at.place // alignment) * alignment
        for name, tensor in found:
            if name in self.tensors:
                at.refuse(f"the tensor {name!r} is there twice")
            if tensor.start % alignment:
                at.refuse(f"the tensor {name!r} begins at {tensor.start}, no multiple of {alignment}")
            self.tensors[name] = Tensor(tensor.shape, tensor.form, data + tensor.start)
        end, before = data, "the header"
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].start):
            if tensor.start < end:
                at.refuse(f"the tensor {name!r} lies over {before}")
            end, before = tensor.start + tensor.size, repr(name)
            if end > len(self._bytes):
                at.refuse(f"the tensor {name!r} would end at byte {end:,} of {len(self._bytes):,}")


class _Reader:
    """Takes one thing after the other, each only if the file has its bytes."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self.place = data, path, 0

    def refuse(self, reason: str) -> NoReturn:
        raise ModelError(f"{self._path} is damaged: {reason}.", do="Get the file anew.")

    def number(self, code: str, what: str) -> int:
        return int(np.frombuffer(self._take(int(code[-1]), what), code)[0])

    def count(self, what: str, least: int) -> int:
        """A number of things that take at least so many bytes each."""
        count = self.number("<u8", f"the number of {what}")
        if count * least > len(self._data) - self.place:
            self.refuse(f"it promises {count:,} {what}, more than its {len(self._data):,} bytes can hold")
        return count

    def string(self, what: str) -> str:
        (length,) = struct.unpack("<Q", self._take(8, what))
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        """A Python value; an array of numbers becomes a list."""
        if kind in _SCALARS:
            return np.frombuffer(self._take(_LEAST[kind], key), _SCALARS[kind])[0].item()
        if kind == _BOOL:
            return self._truths(self._take(1, key), key)[0]
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY or depth == _DEEPEST:
            self.refuse(f"{key!r} has a value of type {kind}" + " too deep inside others" * (kind == _ARRAY))
        inner = self.number("<u4", key)
        if inner not in _LEAST:
            self.refuse(f"{key!r} has values of type {inner}")
        count = self.count(f"entries of {key!r}", _LEAST[inner])
        if inner in _SCALARS:
            return np.frombuffer(self._take(count * _LEAST[inner], key), _SCALARS[inner]).tolist()
        if inner == _BOOL:
            return self._truths(self._take(count, key), key)
        return [self.value(inner, key, depth + 1) for _ in range(count)]

    def tensor(self) -> tuple[str, Tensor]:
        name = self.string("the name of a tensor")
        num = self.number("<u4", name)
        if not 1 <= num <= _MOST_DIMENSIONS:
            self.refuse(f"the tensor {name!r} has {num} dimensions")
        shape = tuple(self.number("<u8", name) for _ in range(num))[::-1]
        kind, start = self.number("<u4", name), self.number("<u8", name)
        form = next((form for form in FORMATS.values() if form.number == kind), None)
        if form is None:
            called = OTHERS.get(kind, f"format {kind}")
            raise ModelError(
                f"{self._path} holds {name!r} as {called}.", expected=f"What is read: {', '.join(FORMATS)}."
            )
        if not prod(shape) or shape[-1] % form.block:
            self.refuse(f"the tensor {name!r} has shape {list(shape)}, no whole number of blocks")
        if form.size(prod(shape)) > len(self._data):
            self.refuse(f"the tensor {name!r} of shape {list(shape)} is larger than the file")
        return name, Tensor(shape, form, start)

    def _take(self, size: int, what: str) -> bytes:
        if size > len(self._data) - self.place:
            self.refuse(f"it ends inside {what!r}: {size:,} bytes were promised at {self.place:,}")
        self.place += size
        return self._data[self.place - size : self.place]

    def _truths(self, data: bytes, key: str) -> list[bool]:
        if any(byte > 1 for byte in data):
            self.refuse(f"{key!r} is neither true nor false")
        return [bool(byte) for byte in data]


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor to be written; its numbers are asked for when their turn comes."""

    name: str
    shape: tuple[int, ...]
    form: Format
    read: Callable[[], Floats]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[Written]) -> Path:
    """Write a file, in one step; of the tensors one at a time is held."""
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [_string(key) + _typed(value) for key, value in metadata.items()]
    offset = 0
    for one in tensors:
        dims = struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *one.shape[::-1])
        header.append(_string(one.name) + dims + struct.pack("<IQ", one.form.number, offset))
        offset += _padded(one.form.size(prod(one.shape)))
    with replacing(path) as stream:
        stream.write(b"".join(header))
        stream.write(bytes(_padded(stream.tell()) - stream.tell()))
        for one in tensors:
            data = quantise(one.read(), one.form, name=one.name)
            stream.write(data.data)
            stream.write(bytes(_padded(data.size) - data.size))
    return path


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """A value after the number of its type: true or false, whole numbers in 32 bits, others as F32, strings, and
    lists of strings or of whole numbers."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    texts = all(isinstance(one, str) for one in value)
    start = struct.pack("<IIQ", _ARRAY, _STRING if texts else 5, len(value))
    entries = map(_string, value) if texts else (np.asarray(value, "<i4").tobytes(),)
    return start + b"".join(entries)
