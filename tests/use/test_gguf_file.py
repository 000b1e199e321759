"""The GGUF container: read and written as ggml's own package does; what a file says falsely is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from glassformer.errors import ModelError
from glassformer.use.gguf_file import GgufFile, Written, write_gguf
from glassformer.use.quantised import FORMATS

NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)
VALUES: dict[str, Any] = {
    "general.architecture": "llama", "a.yes": True, "a.count": 2**32 - 1, "a.real": 0.5, "a.text": "Straße",
    "a.texts": ["x", "", "你好"], "a.counts": [1, -3],
}  # fmt: skip


def written(path: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    tensors = tensors or {"one": NUMBERS}
    listed = [Written(name, x.shape, FORMATS["F32"], lambda x=x: x) for name, x in tensors.items()]
    return write_gguf(path, VALUES, listed)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u64(len(value.encode())) + value.encode()


def tensor(name: str = "t", shape: tuple[int, ...] = (8,), form: int = 0, start: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(form) + u64(start)


def file(
    path: Path,
    values: bytes = b"",
    num_values: int = 0,
    tensors: bytes = b"",
    num_tensors: int = 0,
    data: int = 64,
) -> Path:
    header = b"GGUF" + u32(3) + u64(num_tensors) + u64(num_values) + values + tensors
    path.write_bytes(header + bytes(-len(header) % 32 + data))
    return path


def test_what_ggmls_package_writes_is_read_whatever_the_type_of_a_value(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = dict.fromkeys(("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"), 7)
    for kind, value in {**numbers, "float32": 0.25, "float64": 0.1, "bool": False, "string": "ü"}.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    for key, values in {
        "ints": [1, 2, 3],
        "reals": [0.5, 1.5],
        "truths": [True, False],
        "texts": ["a", "b"],
    }.items():
        writer.add_array(f"k.{key}", values)
    writer.add_tensor("t", NUMBERS)
    writer.add_tensor("h", NUMBERS.astype(np.float16))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    with GgufFile(path) as opened:
        assert all(opened.metadata[f"k.{kind}"] == 7 for kind in numbers)
        assert opened.metadata["k.float64"] == 0.1 and opened.metadata["k.bool"] is False
        assert opened.metadata["k.string"] == "ü" and opened.metadata["k.texts"] == ["a", "b"]
        assert opened.metadata["k.truths"] == [True, False] and opened.metadata["k.reals"] == [0.5, 1.5]
        assert opened.tensors["t"].shape == (2, 3)
        for name in ("t", "h"):
            np.testing.assert_array_equal(opened.read(name), NUMBERS)


def test_what_we_write_is_read_by_ggmls_package_and_by_us(tmp_path: Path) -> None:
    path = written(tmp_path / "ours.gguf", one=NUMBERS, two=NUMBERS.T.copy())
    theirs = gguf.GGUFReader(path)
    assert {key: theirs.fields[key].contents() for key in VALUES} == VALUES
    with GgufFile(path) as opened:
        assert opened.metadata == VALUES
        for one in theirs.tensors:
            np.testing.assert_array_equal(one.data, opened.read(one.name))
            assert one.data_offset == opened.tensors[one.name].start
    assert [left.name for left in tmp_path.iterdir()] == ["ours.gguf"]


def test_a_file_is_only_replaced_by_a_whole_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    before = path.read_bytes()
    with pytest.raises(ModelError, match="one holds nan"):
        written(path, one=NUMBERS * np.nan)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_file_cut_anywhere_in_its_header_or_data_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.gguf").read_bytes()
    for length in range(len(whole) - 8):  # what follows the last tensor is padding
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"damaged|not a GGUF"):
            GgufFile(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: file(p, num_values=2**60), "promises 1,152,921,504,606,846,976 values"),
        (lambda p: file(p, num_tensors=2**63), "promises 9,223,372,036,854,775,808 tensors"),
        (lambda p: file(p, u64(2**62), 1, data=640), "ends inside 'a key'"),
        (lambda p: file(p, text("k") + u32(99), 1), "'k' has a value of type 99"),
        (lambda p: file(p, text("k") + u32(8) + u64(2**40), 1), "ends inside 'k'"),
        (lambda p: file(p, text("k") + u32(9) + u32(8) + u64(2**50), 1), "promises .* entries of 'k'"),
        (lambda p: file(p, text("k") + u32(9) + u32(77) + u64(1), 1), "'k' has values of type 77"),
        (lambda p: file(p, text("k") + u32(9) + (u32(9) + u64(1)) * 9, 1, data=640), "too deep"),
        (lambda p: file(p, text("k") + u32(7) + b"\2", 1), "neither true nor false"),
        (lambda p: file(p, text("k") + u32(8) + u64(1) + b"\xff", 1), "k is not UTF-8"),
        (lambda p: file(p, (text("k") + u32(0) + b"\1") * 2, 2), "'k' is there twice"),
        (lambda p: file(p, text("general.alignment") + u32(4) + u32(0), 1), "alignment is 0"),
        (lambda p: file(p, text("general.alignment") + u32(4) + u32(12), 1), "alignment is 12"),
        (lambda p: file(p, text("split.count") + u32(2) + b"\3\0", 1), "one of 3 files"),
        (lambda p: file(p, tensors=tensor(shape=()), num_tensors=1), "has 0 dimensions"),
        (lambda p: file(p, tensors=tensor(shape=(1,) * 5), num_tensors=1), "has 5 dimensions"),
        (lambda p: file(p, tensors=tensor(shape=(0, 4)), num_tensors=1), "no whole number of blocks"),
        (lambda p: file(p, tensors=tensor(shape=(33,), form=8), num_tensors=1), "no whole number of blocks"),
        (lambda p: file(p, tensors=tensor(shape=(2**40, 2**40)), num_tensors=1), "larger than the file"),
        (lambda p: file(p, tensors=tensor(form=11), num_tensors=1), "holds 't' as Q3_K"),
        (lambda p: file(p, tensors=tensor(form=1234), num_tensors=1), "holds 't' as format 1234"),
        (lambda p: file(p, tensors=tensor(start=8), num_tensors=1), "no multiple of 32"),
        (lambda p: file(p, tensors=tensor(start=2**63), num_tensors=1), "would end at byte"),
        (lambda p: file(p, tensors=tensor() * 2, num_tensors=2), "'t' is there twice"),
        (lambda p: file(p, tensors=tensor() + tensor("u"), num_tensors=2), "lies over 't'"),
    ],
)
def test_what_a_file_says_falsely_is_named(make: Callable[[Path], Path], says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=says):
        GgufFile(make(tmp_path / "x.gguf"))


def test_another_version_byte_order_or_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for data, says in (
        (b"GGUF" + u32(1) + bytes(60), "of version 1"), (b"GGUF" + u32(3)[::-1] + bytes(60), "big-endian"),
        (b"PK\3\4", "not a GGUF file"), (b"", "not a GGUF file"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(ModelError, match=says):
            GgufFile(path)
    with pytest.raises(ModelError, match="There is no file"):
        GgufFile(tmp_path / "gone.gguf")


def test_version_2_is_read_as_3_is(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    with GgufFile(path) as opened:
        np.testing.assert_array_equal(opened.read("one"), NUMBERS)
