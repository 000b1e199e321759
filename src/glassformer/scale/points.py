"""The points that laws are fitted to: one line for each run or checkpoint, from a table or from run folders.

    N      parameters         D   training tokens seen        C   training FLOPs
    loss   on text held out   U   unique tokens, where text was repeated

Of N, D and C two are enough: the third follows from C = 6 N D and is then said to be derived. Where all three are
given they must agree, and what C counts (6 N D, forward alone, with attention, ...) shows in C / (6 N D).

Other people's tables name their columns otherwise: see columns.py.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError, nearest
from glassformer.scale.columns import BITS_PER_BYTE, find_columns, number
from glassformer.scale.laws import Array

_NUMBERS = ("N", "D", "C", "loss", "U", "warm", "lr")


@dataclass(frozen=True)
class Points:
    """Runs in columns, each (point,)."""

    N: Array
    D: Array
    C: Array
    loss: Array
    runs: Sequence[str]
    """Which run each point is of: points of one run err together."""
    U: Array | None = None
    warm: Array | None = None
    """1 where the learning rate had not been decayed."""
    lr: Array | None = None
    unit: str | None = None
    """Of the loss; None when nobody said."""
    counting: str = "N as given, C = 6 N D"
    source: str = ""
    dropped: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Lines that cannot be used, with the reason."""
    tokenizer: str | None = None
    """Which one, or its digest: losses per token of two tokenizers cannot be compared."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What is known of how the runs were made, for the checklist: `optimizer`, `schedule`, `data`, ..."""

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def per(self) -> str:
        """The unit of the loss, or that nobody said."""
        return self.unit or "unit not said"

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers that were fitted, in their order."""
        whole = hashlib.sha256("\n".join(self.runs).encode())
        for column in (self.N, self.D, self.C, self.loss, self.U, self.warm, self.lr):
            whole.update(b"-" if column is None else np.ascontiguousarray(column, np.float64).tobytes())
        return whole.hexdigest()

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and most of N, D, C, D / N and the loss."""
        columns = {"N": self.N, "D": self.D, "C": self.C, "D / N": self.D / self.N, "loss": self.loss}
        return {name: (float(column.min()), float(column.max())) for name, column in columns.items()}

    def where(self, kept: NDArray[np.bool_] | Sequence[bool]) -> Points:
        """The points for which `kept` is true."""
        mask = np.asarray(kept, bool)

        def cut(column: Array | None) -> Array | None:
            return None if column is None else column[mask]

        return replace(
            self, N=self.N[mask], D=self.D[mask], C=self.C[mask], loss=self.loss[mask],
            runs=[run for run, keep in zip(self.runs, mask, strict=True) if keep],
            U=cut(self.U), warm=cut(self.warm), lr=cut(self.lr),
        )  # fmt: skip

    @classmethod
    def of(cls, N: Iterable[float], D: Iterable[float], loss: Iterable[float], **more: Any) -> Points:  # noqa: N803 # the field's symbols
        """Points from three columns; C is 6 N D unless it is given."""
        n, d, y = (np.asarray(list(column), np.float64) for column in (N, D, loss))
        more.setdefault("C", 6 * n * d)
        more.setdefault("runs", [str(i) for i in range(len(y))])
        return cls(n, d, loss=y, **more)


def read_points(
    path: str | Path, *, columns: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None
) -> Points:
    """The points of a .csv. `where` keeps the lines whose columns have these texts.

    Raises UsageError where there is no table, no loss, or fewer than two of N, D, C.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no table {path}.", expected="A .csv with a line for each run.")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise UsageError(f"{path} has no lines.", expected="A header, and a line for each run.")
    for name, text in (where or {}).items():
        if name not in rows[0]:
            raise UsageError(f"{path} has no column {name!r};", expected=nearest(name, rows[0]))
        rows = [row for row in rows if row[name] == text]
    if not rows:
        raise UsageError(f"No line of {path} is left.", expected=f"Lines with {dict(where or {})}.")
    found = find_columns(rows[0], columns or {}, str(path), rows[0])
    return _points(rows, found, str(path))


def _points(rows: Sequence[Mapping[str, str]], found: Mapping[str, str], source: str) -> Points:
    kept: list[dict[str, float]] = []
    runs: list[str] = []
    dropped: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for line, row in enumerate(rows, start=2):  # line 1 is the header
        values = {name: number(row[found[name]]) for name in _NUMBERS if name in found}
        run = row[found["run"]] if "run" in found else str(line)
        reason = _unusable(values)
        key = (run, *values.values()) if "run" in found else tuple(row.values())
        if reason is None and key in seen:
            reason = "it is there twice"
        if reason is not None:
            dropped.append({"line": line, "run": run, "reason": reason})
            continue
        seen.add(key)
        kept.append(values)
        runs.append(run)
    if not kept:
        raise UsageError(
            f"No line of {source} can be used.",
            expected=f"{dropped[0]['reason']} (line {dropped[0]['line']}).",
        )
    columns = {name: np.array([values[name] for values in kept]) for name in kept[0]}
    N, D, C, counting = _three(columns, found)  # noqa: N806 # the field's symbols
    loss = found["loss"].strip().lower()
    unit = "bits per byte" if loss in BITS_PER_BYTE else None
    return Points(
        N, D, C, columns["loss"], runs, columns.get("U"), columns.get("warm"), columns.get("lr"),
        _one(rows, found, "unit", source) or unit, counting, Path(source).name, dropped=dropped,
        tokenizer=_one(rows, found, "tokenizer", source),
    )  # fmt: skip


def _one(rows: Sequence[Mapping[str, str]], found: Mapping[str, str], name: str, source: str) -> str | None:
    """What all lines say of their unit, or tokenizer. Raises UsageError where they differ."""
    if name not in found:
        return None
    said = list(dict.fromkeys(row[found[name]].strip() for row in rows if row[found[name]].strip()))
    if len(said) > 1:
        raise UsageError(
            f"{source} mixes losses: {name} is {' in some lines and '.join(map(repr, said[:3]))} in others.",
            expected="One unit and one tokenizer: E, A and B of a mixture mean nothing.",
            do=f"Fit them apart: --where {found[name]}={said[0]}. Bits per byte can be compared across tokenizers.",
        )  # fmt: skip
    return said[0] if said else None


def _three(columns: Mapping[str, Array], found: Mapping[str, str]) -> tuple[Array, Array, Array, str]:
    """N, D, C and what was counted how: the names of the table's columns, as they tell of embeddings and the like."""
    given = {name: columns.get(name) for name in ("N", "D", "C")}
    n, d, c = given["N"], given["D"], given["C"]
    given_as = [
        "" if found[name] == name else f" (column {found[name]})"
        for name in ("N", "D", "C")
        if name in columns
    ]
    said = ", ".join(
        f"{name}{how}"
        for name, how in zip((n for n in ("N", "D", "C") if n in columns), given_as, strict=True)
    )
    said += " as given"
    if n is None:
        assert c is not None and d is not None  # find_columns
        return c / (6 * d), d, c, f"{said}; N = C / (6 D)"
    if d is None:
        assert c is not None
        return n, c / (6 * n), c, f"{said}; D = C / (6 N)"
    if c is None:
        return n, d, 6 * n * d, f"{said}; C = 6 N D"
    return n, d, c, said


def _unusable(values: Mapping[str, float]) -> str | None:
    for name in ("loss", "N", "D", "C"):
        if name in values and not math.isfinite(values[name]):
            return f"{name} is not a number"
        if name in values and values[name] <= 0:
            return f"{name} is {values[name]:g}"
    return None
