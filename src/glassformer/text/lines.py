"""One file -> its rows of several fields, by its suffix: what pairs and labelled texts are read from.

| suffix    | a row is                                                                |
|-----------|-------------------------------------------------------------------------|
| .tsv      | the fields of a line between tabs, in order; no header and no quotes    |
| .csv      | a row, its fields named by the header                                   |
| .jsonl    | an object on a line, its fields named by keys                           |
| .parquet  | a row, its fields named by columns                                      |
| any other | a line, its only field                                                  |

Each but .parquet may be compressed (.gz, .zst). Rows keep their order and number, so an empty line is a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from glassformer.errors import TextError, nearest
from glassformer.text.formats import COMPRESSIONS, open_stream, unreadable

Row = tuple[bytes, ...]


def rows(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    """The values of `fields` in each row; by place in a .tsv, by name in a .csv, .jsonl or .parquet."""
    if not path.is_file():
        raise TextError(f"There is no file {path}.", do="Check data.paths.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    kind = next(iter(suffixes[-2:-1] if compression else suffixes[-1:]), "")
    try:
        if kind == ".parquet":
            yield from _parquet(path, fields)
            return
        with closing(open_stream(path, compression)) as stream:
            lines = (line.rstrip(b"\r\n") for line in stream)
            if kind == ".csv":
                yield from _csv(path, stream.read(), fields)
            elif kind == ".jsonl":
                yield from _jsonl(path, lines, fields)
            elif kind == ".tsv":
                yield from _tsv(path, lines, fields)
            else:
                yield from ((line,) for line in lines)
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise unreadable(path, error) from None


def is_table(path: str) -> bool:
    """Whether one such file holds several fields a row."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in COMPRESSIONS]
    return bool(suffixes) and suffixes[-1] in (".tsv", ".csv", ".jsonl", ".parquet")


def _tsv(path: Path, lines: Iterator[bytes], fields: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        row = tuple(line.split(b"\t"))
        if len(row) < len(fields):
            raise TextError(
                f"Line {number} of {path} has {len(row)} field{'s' * (len(row) != 1)}.",
                expected=f"{len(fields)}, with a tab between them: {', '.join(fields)}.",
                do="Mend the line.",
            )
        yield row[: len(fields)]


def _csv(path: Path, data: bytes, fields: Sequence[str]) -> Iterator[Row]:
    import csv
    import io

    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig", "surrogateescape")), strict=True)
    _check_names(path, reader.fieldnames or [], fields)
    for number, row in enumerate(reader, 2):
        if any(row[name] is None for name in fields):
            raise TextError(f"Row {number} of {path} ends before its fields do.", do="Mend the row.")
        yield tuple(row[name].encode("utf-8", "surrogateescape") for name in fields)


def _jsonl(path: Path, lines: Iterator[bytes], fields: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TextError(
                f"Line {number} of {path} is not JSON: {error}.", expected="One JSON object a line."
            ) from None
        _check_names(f"Line {number} of {path}", list(row) if isinstance(row, dict) else [], fields)
        yield tuple(str(row[name]).encode("utf-8", "surrogatepass") for name in fields)


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_names(path, file.schema_arrow.names, fields)
        for batch in file.iter_batches(batch_size=1024, columns=list(fields), use_threads=False):
            columns = [batch.column(name).to_pylist() for name in fields]
            for row in zip(*columns, strict=True):
                yield tuple(v if isinstance(v, bytes) else str(v or "").encode() for v in row)


def _check_names(where: Path | str, names: Sequence[str], fields: Sequence[str]) -> None:
    for field in fields:
        if field not in names:
            raise TextError(
                f"{where} has no field '{field}'.",
                expected=f"Its fields are: {', '.join(names) or 'none'}.",
                do=f"Name the right one; {nearest(field, names)}" if names else "",
            )
