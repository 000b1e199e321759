"""The points that laws are fitted to: one line for each run or checkpoint, from a table or from run folders.

    N      parameters         D   training tokens seen        C   training FLOPs
    loss   on text held out   U   unique tokens, where text was repeated

Of N, D and C two are enough: the third follows from C = 6 N D and is then said to be derived. Where all three are
given they must agree, and what C counts (6 N D, forward alone, with attention, ...) shows in C / (6 N D).

Other people's tables name their columns otherwise. The usual names are known (`KNOWN`), others are given:
`columns={"N": "model_params"}`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError, nearest
from glassformer.scale.laws import Array

KNOWN: dict[str, tuple[str, ...]] = {
    "N": ("n", "params", "parameters", "num_parameters", "n_params", "num_params", "model_size", "model_params",
          "total_params", "size"),
    "D": ("d", "tokens", "train_tokens", "training_tokens", "num_tokens", "n_tokens", "total_tokens", "tokens_seen"),
    "C": ("c", "flops", "flop", "compute", "train_flops", "training_flops", "total_flops", "c_6nd"),
    "loss": ("val_loss", "validation_loss", "eval_loss", "test_loss", "final_loss", "train_loss", "l", "nll"),
    "U": ("u", "unique_tokens", "unique"),
    "run": ("run_id", "run_name", "name", "id"),
    "warm": ("undecayed", "not_decayed", "hot"),
    "lr": ("learning_rate", "peak_lr", "max_lr"),
}  # fmt: skip
"""Column -> what else it is called, in small letters; each is looked for by its own name first."""
_NUMBERS = ("N", "D", "C", "loss", "U", "warm", "lr")
_BITS_PER_BYTE = ("bpb", "bits_per_byte", "val_bits_per_byte")


@dataclass(frozen=True)
class Points:
    """Runs in columns, each (point,); what was noticed while reading is in `warnings`."""

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
    bytes_per_token: float | None = None
    """Of the text held out, where it is known: it says how low a loss can be."""
    dropped: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Lines that cannot be used, with the reason."""

    def __len__(self) -> int:
        return len(self.loss)

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
    found = find_columns(rows[0], columns or {}, str(path))
    return _points(rows, found, str(path))


def find_columns(header: Iterable[str], given: Mapping[str, str], source: str) -> dict[str, str]:
    """Our name -> the table's, by the names given, our own, or the usual ones."""
    names = list(header)
    unknown = [key for key in given if key not in KNOWN and key != "bpb"]
    if unknown:
        raise UsageError(f"There is no column {unknown[0]!r} to name;", expected=nearest(unknown[0], KNOWN))
    absent = [column for column in given.values() if column not in names]
    if absent:
        raise UsageError(f"{source} has no column {absent[0]!r};", expected=nearest(absent[0], names))
    found = dict(given)
    small = {name.strip().lower(): name for name in reversed(names)}
    for ours, others in KNOWN.items():
        if ours not in found:
            hit = (
                ours
                if ours in names
                else next((small[n] for n in (ours.lower(), *others) if n in small), None)
            )
            if hit is not None and hit not in given.values():
                found[ours] = hit
    if "loss" not in found:
        bits = next((small[name] for name in _BITS_PER_BYTE if name in small), None)
        if bits is not None:
            found["loss"] = bits
    sizes = [name for name in ("N", "D", "C") if name in found]
    if "loss" not in found or len(sizes) < 2:
        lacks = [*(["loss"] if "loss" not in found else []), *(["two of N, D, C"] if len(sizes) < 2 else [])]
        raise UsageError(
            f"{source} says nothing of {' and of '.join(lacks)}.",
            expected=f"Its columns are: {', '.join(names)}.",
            do="Say which is which, for example --columns N=params,D=tokens,loss=val_loss.",
        )  # fmt: skip
    return found


def _points(rows: Sequence[Mapping[str, str]], found: Mapping[str, str], source: str) -> Points:
    kept: list[dict[str, float]] = []
    runs: list[str] = []
    dropped: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for number, row in enumerate(rows, start=2):  # line 1 is the header
        values = {name: _number(row[found[name]]) for name in _NUMBERS if name in found}
        run = row[found["run"]] if "run" in found else str(number)
        reason = _unusable(values)
        key = (run, *values.values()) if "run" in found else (number,)
        if reason is None and key in seen:
            reason = "it is there twice"
        if reason is not None:
            dropped.append({"line": number, "run": run, "reason": reason})
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
    N, D, C, counting = _three(columns)  # noqa: N806 # the field's symbols
    loss = found["loss"].strip().lower()
    unit = "bits per byte" if loss in _BITS_PER_BYTE else None
    return Points(
        N, D, C, columns["loss"], runs, columns.get("U"), columns.get("warm"), columns.get("lr"), unit,
        f"N is {found.get('N', 'derived')}; {counting}", source, dropped=dropped,
    )  # fmt: skip


def _three(columns: Mapping[str, Array]) -> tuple[Array, Array, Array, str]:
    given = {name: columns.get(name) for name in ("N", "D", "C")}
    n, d, c = given["N"], given["D"], given["C"]
    if n is None:
        assert c is not None and d is not None  # find_columns
        return c / (6 * d), d, c, "N = C / (6 D)"
    if d is None:
        assert c is not None
        return n, c / (6 * n), c, "D = C / (6 N)"
    if c is None:
        return n, d, 6 * n * d, "C = 6 N D"
    return n, d, c, "C as given"


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}.get(str(text).strip().lower(), math.nan)


def _unusable(values: Mapping[str, float]) -> str | None:
    for name in ("loss", "N", "D", "C"):
        if name in values and not math.isfinite(values[name]):
            return f"{name} is not a number"
        if name in values and values[name] <= 0:
            return f"{name} is {values[name]:g}"
    return None
