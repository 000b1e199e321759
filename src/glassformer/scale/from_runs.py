"""The points of one's own runs, or of a table: what `scale fit` is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from glassformer.errors import UsageError
from glassformer.run.folder import Run
from glassformer.scale.honesty import best_of
from glassformer.scale.points import Points, read_points
from glassformer.stats import median


def scale_points(
    what: Sequence[str | Path] | str | Path, *, columns: str | Mapping[str, str] | None = None,
    where: str | Mapping[str, str] | None = None, unit: str | None = None, best: bool = False,
) -> Points:  # fmt: skip
    """Points from run folders or one .csv; `columns` and `where` as mappings or as `a=b,c=d`.

    Raises UsageError for what is neither, and for a table without loss or sizes.
    """
    paths = [Path(what)] if isinstance(what, str | Path) else [Path(one) for one in what]
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    if tables and len(paths) > 1:
        raise UsageError(
            f"{tables[0]} stands with {len(paths) - 1} others.", expected="One table alone, or run folders."
        )
    if tables:
        points = read_points(tables[0], columns=_pairs(columns, "--columns"), where=_pairs(where, "--where"))
    elif columns or where:
        raise UsageError(
            "--columns and --where are about a table.", expected="One .csv.", do="Leave them out."
        )
    else:
        points = read_runs(paths)
    points = points if unit is None else replace(points, unit=unit)
    return best_of(points) if best else points


def _pairs(text: str | Mapping[str, str] | None, option: str) -> dict[str, str]:
    if text is None or isinstance(text, Mapping):
        return dict(text or {})
    pairs = dict[str, str]()
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise UsageError(f"{option} {text!r}: {pair!r} is no name=value.", expected=f"{option} a=b,c=d")
        pairs[name.strip()] = value.strip()
    return pairs


def read_runs(paths: Sequence[str | Path]) -> Points:
    """The points of run folders: parameters, tokens, FLOPs and the loss held out at the end of each finished run."""
    rows, dropped, units = [], [], set()
    bytes_per_token = list[float]()
    for path in paths:
        run = Run.open(Path(path))
        summary = run.summary()
        if summary["status"] != "done" or summary["val_loss"] is None:
            dropped.append({"line": 0, "run": str(path), "reason": f"the run is {summary['status']}"})
            continue
        rows.append(
            (summary["parameters"], summary["tokens"], summary["val_loss"], summary["flops"], run.path.name)
        )
        if summary["val_bits_per_byte"]:
            bytes_per_token.append(summary["val_loss"] / (math.log(2) * summary["val_bits_per_byte"]))
        units.add((run.events.last("start") or {}).get("loss_unit", "nats per token"))
    if not rows:
        raise UsageError(
            "None of these runs is done.", do="Train them to their end: the same command goes on."
        )
    if len(units) > 1:
        raise UsageError(
            f"These runs count their loss in {' and in '.join(sorted(units))}.", expected="One unit."
        )
    n, d, y, c, names = zip(*rows, strict=True)
    return Points.of(
        n, d, y, C=np.array(c, np.float64), runs=list(names), unit=units.pop(), dropped=dropped,
        counting="N with embeddings, C as the runs count (matmul)", source=f"{len(rows)} runs",
        bytes_per_token=median(bytes_per_token) if len(bytes_per_token) == len(rows) else None,
    )  # fmt: skip
