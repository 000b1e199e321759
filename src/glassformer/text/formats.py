"""One file -> the documents in it, by its suffix, with bounded memory.

| suffix          | a document is                                   |
|-----------------|-------------------------------------------------|
| .jsonl          | the text under `field` in each line             |
| .csv .tsv       | the text under `field` in each row              |
| .parquet        | the same, read one row group at a time          |
| anything else   | the whole file                                  |
| + .gz .zst      | any of the first two rows and the last, unpacked |

A document longer than `LONGEST_DOCUMENT` is cut at the last line end before it, or, where there is none,
between two characters. Compression, CSV and Parquet are read by pyarrow, which says when a stream ends too
early.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError, nearest
from glassformer.units import show_bytes

if TYPE_CHECKING:
    import pyarrow

LONGEST_DOCUMENT = 16 * 2**20
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "zip",
    b"%PDF": "PDF",
}
TABLES = (".jsonl", ".csv", ".tsv")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
CSV_BLOCK = 16 * 2**20  # a row must fit in one


def documents(path: Path, field: str | None) -> Iterator[tuple[str, bytes]]:
    """('' for the whole file or ':12' for its line or row, bytes) of each document in `path`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    kind = next(iter(suffixes[-2:-1] if compression else suffixes[-1:]), "")
    column = field or "text"
    try:
        if kind == ".parquet":
            yield from _parquet(path, column)
            return
        with closing(open_stream(path, compression)) as stream:
            if kind in TABLES and stream.peek(2)[:2] in UTF16_MARKS:
                raise utf16(str(path))
            if kind == ".jsonl":
                yield from _jsonl(path, stream, column)
            elif kind in (".csv", ".tsv"):
                yield from _table(path, stream, column, "\t" if kind == ".tsv" else ",")
            else:
                yield from _text(path, stream)
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise unreadable(path, error) from None


def utf16(name: str) -> TextError:
    """What to say of text in UTF-16."""
    return TextError(
        f"{name} is UTF-16 text: it starts with a UTF-16 byte order mark.",
        expected="UTF-8.",
        do=f"Convert it: iconv -f UTF-16 -t UTF-8 '{name}' > new.txt",
    )


def open_stream(path: Path, compression: str | None) -> io.BufferedReader:
    """The bytes of a file, unpacked."""
    if compression is None:
        return io.BufferedReader(io.FileIO(path), 2**20)
    import pyarrow

    # Typed as raw input: a NativeFile has the methods that BufferedReader calls.
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression), 2**20)


def _text(path: Path, stream: io.BufferedReader) -> Iterator[tuple[str, bytes]]:
    rest, part = b"", 0
    while True:
        data = rest + stream.read(LONGEST_DOCUMENT - len(rest))
        if part == 0:
            _refuse_disguised(path, data)
        if len(data) < LONGEST_DOCUMENT:
            if data or part == 0:
                yield (f"#{part + 1}" if part else "", data)
            return
        cut = data.rfind(b"\n", LONGEST_DOCUMENT // 2) + 1 or character_boundary(data, len(data))
        part += 1
        yield f"#{part}", data[:cut]
        rest = data[cut:]


def character_boundary(data: bytes, position: int) -> int:
    """The last position at or before `position` that does not cut a UTF-8 character in two."""
    for back in range(1, min(4, position) + 1):
        byte = data[position - back]
        if byte >= 0xC0:  # the first byte of a character of 2 to 4 bytes
            whole = back == (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
            return position if whole else position - back
        if byte < 0x80:
            return position
    return position


def _jsonl(path: Path, stream: io.BufferedReader, field: str) -> Iterator[tuple[str, bytes]]:
    number = 0
    while line := stream.readline(2 * LONGEST_DOCUMENT):
        number += 1
        if len(line) == 2 * LONGEST_DOCUMENT:
            raise TextError(
                f"Line {number} of {path} is longer than {show_bytes(len(line))}.",
                expected="Each line of a .jsonl file is one JSON object.",
                do="If it is one large JSON value, write it as one object per line.",
            )
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise TextError(
                f"Line {number} of {path} is not JSON: {error}.",
                expected="Each line of a .jsonl file is one JSON object.",
                do="Mend the line, or rename the file to .txt to read it as plain text.",
            ) from None
        names = list(row) if isinstance(row, dict) else []
        if field not in names:
            raise _no_field(f"Line {number} of {path}", field, names)
        if not isinstance(row[field], str):
            raise TextError(
                f"Line {number} of {path}: '{field}' is {type(row[field]).__name__}, not text.",
                expected="A string.",
                do=_name_the_field(field, [name for name in names if isinstance(row[name], str)]),
            )
        yield f":{number}", _encode(row[field])


def _encode(text: str) -> bytes:
    """The bytes of the file again. Half a surrogate pair, written as an escape, stays invalid UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _table(path: Path, stream: io.BufferedReader, field: str, delimiter: str) -> Iterator[tuple[str, bytes]]:
    from pyarrow import binary, csv

    header = stream.peek(2**16).split(b"\n", 1)[0].decode("utf-8", "replace").removeprefix("\ufeff")
    names = [name.strip().strip('"') for name in header.split(delimiter)] if header.strip() else []
    if not names:
        return
    if field not in names:
        raise _no_field(str(path), field, names)
    reader = csv.open_csv(
        stream,
        read_options=csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(include_columns=[field], column_types={field: binary()}),
    )
    yield from _cells(batch.column(0) for batch in reader)


def _parquet(path: Path, field: str) -> Iterator[tuple[str, bytes]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            raise _no_field(str(path), field, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=64, columns=[field], use_threads=False)
        yield from _cells(batch.column(0) for batch in batches)


def _cells(columns: Iterator[pyarrow.Array]) -> Iterator[tuple[str, bytes]]:
    number = 0
    for column in columns:
        for cell in column:
            number += 1
            value: Any = cell.as_py()
            if value is not None:
                yield f":{number}", value if isinstance(value, bytes) else str(value).encode()


def _refuse_disguised(path: Path, head: bytes) -> None:
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            raise TextError(
                f"{path} holds {name} data, whatever its name says.",
                expected="Text.",
                do="Give it the right suffix (.gz, .zst, .parquet), or extract its text first.",
            )


def _no_field(where: str, field: str, names: list[str]) -> TextError:
    return TextError(
        f"{where} has no field '{field}'.",
        expected=f"Its fields are: {', '.join(names) or 'none'}.",
        do=_name_the_field(field, names),
    )


def _name_the_field(field: str, names: list[str]) -> str:
    return f"Name the one holding the text with data.field; {nearest(field, names)}" if names else ""


def unreadable(path: Path, error: Exception) -> TextError:
    """What to say of a file that fails while it is read."""
    broken_link = path.is_symlink() and not path.exists()
    reason = (
        "it is a link to nothing"
        if broken_link
        else error.strerror
        if isinstance(error, OSError) and error.strerror
        else str(error)
    )
    return TextError(
        f"{path} cannot be read: {reason.rstrip('.')}.",
        expected="A whole, readable file whose content is what its suffix says.",
        do="Mend or remove it, or set data.on_error = 'skip' to go on without it.",
    )
