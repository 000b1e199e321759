"""Sources named in a recipe -> documents, always in the same order.

A source is a file, a directory (all text files in it, sorted, hidden and binary ones left out), a glob, or
`python:stdlib`: the standard library of the running Python without its tests and character tables, about 11 MB
of code and English that every machine has; `python:tests`: its tests, where they are installed, about 19 MB.

Each document passes the encoding policy: `strict` refuses bytes that are not UTF-8 and names their lines,
`replace` puts U+FFFD in their place, `bytes` keeps every byte. A file that fails stops the reading, or with
`on_error = "skip"` is left out and recorded as `Skipped`.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from glassformer.errors import TextError
from glassformer.text.config import DataConfig, Encoding
from glassformer.text.formats import UTF16_MARKS, documents, utf16

STDLIB, TESTS = "python:stdlib", "python:tests"
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
NOT_STDLIB = TEST_FOLDERS | {"encodings", "site-packages", "dist-packages", "lib-dynload"}
BINARY = frozenset(
    """
    .pyc .pyo .so .o .a .dll .dylib .exe .class .jar .whl .zip .tar .tgz .bz2 .xz .7z .rar .lz4 .npy .npz
    .bin .pt .pth .ckpt .safetensors .gguf .onnx .h5 .arrow .feather .pkl .pickle .db .sqlite .pdf
    .png .jpg .jpeg .gif .bmp .ico .webp .tif .tiff .mp3 .mp4 .wav .ogg .flac .avi .mov .mkv
    .ttf .otf .woff .woff2 .eot .doc .docx .xls .xlsx .ppt .pptx .odt
    """.split()  # noqa: SIM905 - five lines of names read better than fifty
)


@dataclass(frozen=True, slots=True)
class Document:
    """One document: where it came from, and its bytes."""

    source: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or document that was left out: by a fault (`error`), or by design (binary files)."""

    source: str
    name: str
    reason: str
    error: bool


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    name: str
    """As shown to people and kept in records: relative to the source, never a path of this machine."""


def read(data: DataConfig, *, base: Path, skipped: list[Skipped] | None = None) -> Iterator[Document]:
    """All documents of all sources in order. What is left out is appended to `skipped`."""
    left_out = skipped if skipped is not None else []

    def fault(source: str, name: str, error: TextError) -> None:
        if data.on_error == "stop":
            raise error
        left_out.append(Skipped(source, name, str(error), error=True))

    seen: dict[str, str] = {}
    for source in data.sources:
        num_files = 0
        for file in _files(source.path, base):
            if isinstance(file, Skipped):
                left_out.append(replace(file, source=source.path))
                continue
            num_files += 1
            try:
                _refuse_twice(file, seen)
                for suffix, raw in documents(file.path, source.field):
                    try:
                        text = apply_encoding(raw, data.encoding, file.name + suffix)
                    except TextError as error:
                        fault(source.path, file.name + suffix, error)
                    else:
                        yield Document(source.path, file.name + suffix, text)
            except TextError as error:
                fault(source.path, file.name, error)
        if num_files == 0:
            raise TextError(
                f"{source.path} holds no text files.",
                expected="At least one text file, .jsonl, .csv or .parquet.",
                do="Check data.paths; binary and hidden files are left out.",
            )


def apply_encoding(data: bytes, encoding: Encoding, name: str) -> bytes:
    """`data` under the policy; what is returned is valid UTF-8 unless the policy is `bytes`."""
    if encoding == "bytes":
        return data
    try:
        data.decode()
        return data
    except UnicodeDecodeError:
        if data.startswith(UTF16_MARKS):
            raise utf16(name) from None
        if encoding == "replace":
            return data.decode("utf-8", "replace").encode()
        raise TextError(
            f"{name} is not valid UTF-8: {describe_invalid(data)}.",
            expected="UTF-8 text.",
            do="Convert it (iconv -f LATIN1 -t UTF-8), or set data.encoding = 'replace' or 'bytes'.",
        ) from None


def invalid_lines(data: bytes, at_most: int = 5) -> list[tuple[int, int]]:
    """(line number from 1, byte value) of the first invalid byte of each of the first invalid lines."""
    if _is_utf8(data):
        return []
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            found.append((number, line[error.start]))
            if len(found) == at_most:
                break
    return found


def describe_invalid(data: bytes) -> str:
    """`byte 0xE9 on line 3, 0xFF on line 7`."""
    return "byte " + ", ".join(f"0x{byte:02X} on line {number}" for number, byte in invalid_lines(data))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _files(path: str, base: Path) -> Iterable[_File | Skipped]:
    if path in (STDLIB, TESTS):
        return _stdlib() if path == STDLIB else _tests()
    if path.startswith("python:"):
        raise TextError(
            f"There is no source '{path}'.", expected=f"'{STDLIB}' or '{TESTS}'.", do="Check data.paths."
        )
    whole = base / Path(path).expanduser()
    if whole.is_dir():
        return _walk(whole)
    if whole.is_symlink() or whole.exists():
        return [_File(whole, path if not Path(path).is_absolute() else whole.name)]
    if glob.has_magic(path):
        return _glob(whole)
    raise TextError(
        f"There is no file or directory {path}" + ("" if Path(path).is_absolute() else f" in {base}") + ".",
        do="Check data.paths.",
    )


def _glob(pattern: Path) -> Iterator[_File]:
    fixed = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    root = Path(*fixed)
    for path in sorted(root.glob("/".join(pattern.parts[len(fixed) :]))):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and not (path.is_dir() and "**" in pattern.parts):
            yield _File(path, relative.as_posix())


def _walk(root: Path, leave_out: frozenset[str] = frozenset()) -> Iterator[_File | Skipped]:
    """Every file below `root`, sorted by name, links to directories not followed."""
    closed: list[_File] = []

    def remember(error: OSError) -> None:
        folder = Path(error.filename)
        closed.append(_File(folder, folder.relative_to(root).as_posix()))

    for folder, folders, names in os.walk(root, onerror=remember):
        folders[:] = sorted(
            f for f in folders if not f.startswith((".", "__pycache__")) and f not in leave_out
        )
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if path.exists() and not path.is_file():
                yield Skipped("", relative, "not a regular file", error=False)
            elif path.exists() and _is_binary(path):
                yield Skipped("", relative, "binary", error=False)
            else:
                yield _File(path, relative)
    yield from closed  # reading them names the reason


def _stdlib() -> Iterator[_File]:
    for file in _walk(Path(sysconfig.get_path("stdlib")), NOT_STDLIB):
        # _sysconfigdata is generated for each machine and holds its paths.
        if (
            isinstance(file, _File)
            and file.path.suffix in (".py", ".txt")
            and "_sysconfigdata" not in file.name
        ):
            yield file


def _tests() -> Iterator[_File]:
    """The other half of the standard library; files that are badly encoded on purpose are left out by `on_error`."""
    for file in _walk(Path(sysconfig.get_path("stdlib")), NOT_STDLIB - TEST_FOLDERS):
        if (
            isinstance(file, _File)
            and file.path.suffix == ".py"
            and TEST_FOLDERS & set(Path(file.name).parts)
        ):
            yield file


def _is_binary(path: Path) -> bool:
    if set(path.suffixes[-2:]) & BINARY:
        return True
    if path.suffix in (".gz", ".zst", ".parquet"):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False  # reading it names the reason
    return not head.startswith(UTF16_MARKS) and head.count(0) * 20 > len(head)


def _refuse_twice(file: _File, seen: dict[str, str]) -> None:
    real = os.path.realpath(file.path)
    if real in seen:
        raise TextError(
            f"{file.name} is the same file as {seen[real]}, which was already read.",
            expected="Each file once.",
            do="Remove one from data.paths, or set data.on_error = 'skip' to read it once.",
        )
    seen[real] = file.name
