"""One source -> named columns of equal length, whatever the format.

| source                | columns                                                          | target, if not named |
|-----------------------|------------------------------------------------------------------|----------------------|
| .csv .tsv .parquet    | the file's own                                                   | -                    |
| .npz                  | each array of one axis; `x[0]`, `x[1]` ... of one with more axes | `y`                  |
| folder of images      | `pixel[row,column]`, and `,channel` in colour; `class`           | `class`              |
| python:digits         | `pixel[0,0]` ... `pixel[7,7]`; `digit`                           | `digit`              |

Images lie in one sub-folder for each class and are .png or .pgm, grey or in colour, all of one size. Columns
of an array with three or more axes, (row, height, width) or with channels after, are pixels too.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError

DIGITS = "python:digits"
TABLES = (".csv", ".tsv", ".parquet", ".npz")
IMAGES = (".png", ".pgm")
Column = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Columns as read: numbers, or text as an array of objects; what is missing is NaN or None."""

    columns: dict[str, Column]
    names: list[tuple[str, int]]
    """(file, rows in it) in order, to tell where a row came from."""
    target: str | None = None
    """The column that is the target unless another is named."""
    shape: tuple[int, ...] | None = None
    """(height, width) or (height, width, channel) when the other columns are pixels."""
    warnings: list[str] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(rows for _, rows in self.names)


def read_sources(paths: Sequence[str], base: Path) -> Source:
    """All sources, one below the other."""
    sources = [source for path in paths for source in _read(path, base)]
    first = sources[0]
    for other in sources[1:]:
        if list(other.columns) != list(first.columns) or other.shape != first.shape:
            differing = sorted(set(other.columns) ^ set(first.columns))
            which = f"only one of them has {', '.join(differing[:5])}" if differing else "their order differs"
            raise TextError(
                f"{other.names[0][0]} has other columns than {first.names[0][0]}: {which}.",
                expected="The same columns in every file.",
                do="Mend the file, or take it out of data.paths.",
            )
    if len(sources) == 1:
        return first
    columns = {
        name: np.concatenate([_widened(source.columns[name], name, sources) for source in sources])
        for name in first.columns
    }
    names = [name for source in sources for name in source.names]
    found = [warning for source in sources for warning in source.warnings]
    return Source(columns, names, first.target, first.shape, found)


def objects(values: Sequence[object]) -> Column:
    """A column of Python objects, whatever they are."""
    column = np.empty(len(values), object)
    for row, value in enumerate(values):
        column[row] = value
    return column


def _widened(column: Column, name: str, sources: Sequence[Source]) -> Column:
    """A column that is text in any file is text in all."""
    text = any(source.columns[name].dtype == object for source in sources)
    if not text or column.dtype == object:
        return column
    return objects([str(value) for value in column.tolist()])


def _read(path: str, base: Path) -> Iterator[Source]:
    if path == DIGITS:
        yield _digits()
        return
    if path.startswith("python:"):
        raise TextError(f"There is no source '{path}'.", expected=f"'{DIGITS}'.", do="Check data.paths.")
    whole = (base / Path(path).expanduser()).absolute()
    if whole.is_dir():
        from glassformer.text.images import read_images

        columns, names, shape, found = read_images(whole)
        yield Source(columns, names, "class", shape, found)
        return
    root = Path(whole.anchor)
    files = [whole] if whole.exists() else sorted(root.glob(str(whole.relative_to(root))))
    if not files:
        raise TextError(f"There is no file or folder {path}.", do="Check data.paths.")
    for file in files:
        yield _read_file(file)


def _read_file(file: Path) -> Source:
    kind = file.suffix.lower()
    if kind not in TABLES:
        raise TextError(
            f"{file.name} is not a table that can be read.",
            expected=f"A file ending in {', '.join(TABLES)}, or a folder of images.",
            do="Convert it, or give its folder if it is an image.",
        )
    try:
        return _read_npz(file) if kind == ".npz" else _read_arrow(file, kind)
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:  # pyarrow's are the first two
        reason = getattr(error, "strerror", None) or str(error)
        raise TextError(
            f"{file.name} cannot be read: {reason.rstrip('.')}.",
            expected="A whole, readable file whose content is what its suffix says.",
            do="Mend it, or take it out of data.paths.",
        ) from None


def _read_arrow(file: Path, kind: str) -> Source:
    import pyarrow
    from pyarrow import csv, parquet

    if kind == ".parquet":
        table = parquet.read_table(file)
    else:
        # Types are inferred from the first block; in one block, 1.5 after a million whole numbers is no surprise.
        size = min(file.stat().st_size + 1, 2**31 - 1)
        table = csv.read_csv(
            file,
            read_options=csv.ReadOptions(use_threads=False, block_size=size),
            parse_options=csv.ParseOptions(
                delimiter="\t" if kind == ".tsv" else ",", newlines_in_values=True
            ),
        )
    names = [name.strip() for name in table.column_names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TextError(
            f"{file.name} has several columns called {', '.join(twice)}.",
            expected="A name of its own for each column.",
            do="Rename them in the file's first row.",
        )
    columns = {}
    for name, column in zip(names, table.columns, strict=True):
        column, kind_of = column.combine_chunks(), column.type
        if pyarrow.types.is_dictionary(kind_of):
            column, kind_of = column.cast(kind_of.value_type), kind_of.value_type
        if pyarrow.types.is_binary(kind_of):
            raise ValueError(f"column '{name}' is not UTF-8 text; convert it with iconv -t UTF-8")
        columns[name] = _numpy(column, kind_of)
    return Source(columns, [(file.name, table.num_rows)])


def _numpy(column: Any, kind: Any) -> Column:
    """An arrow column as numbers with NaN, or as objects with None, where something is missing."""
    from pyarrow import types

    if types.is_boolean(kind) or types.is_decimal(kind):
        column = column.cast("float64")
    elif types.is_null(kind):
        return np.full(len(column), np.nan)
    elif not (types.is_integer(kind) or types.is_floating(kind)):
        return objects([None if value == "" else value for value in column.to_pylist()])
    numbers: Column = column.to_numpy(zero_copy_only=False)  # integers with nulls become floats with NaN
    return numbers


def _read_npz(file: Path) -> Source:
    with file.open("rb") as stream:
        archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name; save it with numpy.savez")
        arrays = {name: archive[name] for name in archive.files}
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        listed = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
        raise TextError(
            f"{file.name} holds {listed}.",
            expected="Arrays with the rows on their first axis, equally many in each.",
            do="Save them as: np.savez(file, x=inputs, y=targets).",
        )
    columns: dict[str, Column] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise ValueError(f"the array {name} holds {array.dtype}, neither numbers nor text")
        columns |= _columns(name, array.astype(object) if array.dtype.kind == "U" else array)
    images = [array.shape[1:] for array in arrays.values() if array.ndim > 2]
    shape = (
        images[0]
        if len(images) == 1 and all(a.ndim in (1, len(images[0]) + 1) for a in arrays.values())
        else None
    )
    rows = next(iter(arrays.values())).shape[0]
    return Source(columns, [(file.name, rows)], "y" if "y" in columns else None, shape)


def _columns(name: str, array: Column) -> dict[str, Column]:
    """`x` itself, or `x[0,0]` ... for each place of an array with more axes than the rows."""
    if array.ndim == 1:
        return {name: array}
    flat = array.reshape(len(array), -1)
    places = np.ndindex(*array.shape[1:])
    return {f"{name}[{','.join(map(str, place))}]": flat[:, n] for n, place in enumerate(places)}


def _digits() -> Source:
    try:
        with warnings.catch_warnings(), _no_places():
            warnings.simplefilter("ignore")  # its own deprecations are not about these data
            from sklearn.datasets import load_digits
    except ImportError:
        raise TextError(
            f"{DIGITS} comes with scikit-learn, which is not installed.",
            do="Install it with: pip install 'glassformer[digits]'.",
        ) from None
    found = load_digits()
    columns = _columns("pixel", found.images) | {"digit": found.target}
    return Source(columns, [(DIGITS, len(found.target))], "digit", (8, 8))


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
    """scikit-learn brings an OpenMP of its own, which complains on stderr of places meant for torch's: this
    thread is bound to one of them already."""
    before = {name: os.environ.pop(name) for name in ("OMP_PLACES", "OMP_PROC_BIND") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
