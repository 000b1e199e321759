"""A trace as a file: arrays for NumPy, one JSON document, or a picture.

trace.npz    one array for each place, by its name, and `ids`; bfloat16 as float32
trace.json   {"schema", "version", "ids", "tokens", "places": [{place, axes, shape, values}]}
trace.png    (.svg) of an attention place: the head that tells most; of another: its last position, or matrix
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.files import write_bytes, write_text
from glassformer.look.attention import concentration
from glassformer.look.trace import Trace
from glassformer.look.visible import visible
from glassformer.model.mlp import Network
from glassformer.run.events import plain

MOST_CELLS = 256
"""Rows or columns of a picture; what is longer is cut, and its title says so."""


def save_trace(trace: Trace, path: Path) -> Path:
    """Write all of it, in the form that the name's ending asks for; .png and .svg show its first place."""
    kind = path.suffix.lower()
    if kind == ".npz":
        wide = {name: y.float() if y.dtype == torch.bfloat16 else y for name, y in trace.items()}
        arrays: dict[str, Any] = {name: y.cpu().numpy() for name, y in wide.items()}
        if not isinstance(trace.reading.model, Network):
            arrays["ids"] = np.array(trace.ids)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())
    elif kind == ".json":
        write_text(path, json.dumps(plain(trace.to_dict()), ensure_ascii=False, allow_nan=False) + "\n")
    elif kind in (".png", ".svg"):
        charts.save(picture(trace, next(iter(trace))), path)
    else:
        raise UsageError(
            f"A trace cannot be saved as {path.name}.",
            expected="A name ending in .npz, .json, .png, .svg or .html.",
        )
    return path


def picture(trace: Trace, place: str, *, head: int | None = None) -> charts.Spec:
    """One place as a heat map: of attention one head, the one that tells most where none is named; of vectors
    those of every position; of a network every row."""
    values, axes = trace[place].float().cpu(), trace.axes(place)
    title = place
    if axes[0] in ("batch",):
        values, axes = values[0], axes[1:]
    if "head" in axes or "kv_head" in axes:
        at = axes.index("head" if "head" in axes else "kv_head")
        if head is None:
            head = int(concentration(values).argmin()) if axes[-1] == "key" else 0
        values, axes, title = values.select(at, head), (*axes[:at], *axes[at + 1 :]), f"{place}, head {head}"
    if values.ndim == 1:
        values, axes = values[None], ("", *axes)
    if max(values.shape) > MOST_CELLS:
        title += f" (the first {MOST_CELLS} of {' x '.join(str(n) for n in values.shape)})"
    values = values[:MOST_CELLS, :MOST_CELLS]
    rows = [
        {"x": x, "y": y, "value": value}
        for y, line in enumerate(values.tolist())
        for x, value in enumerate(line)
    ]
    down, across = (_labels(trace, place, axis) for axis in axes)
    size = tuple(min(max(14 * n, 160), 900) for n in (values.shape[1], values.shape[0]))
    return charts.heatmap(
        rows, "x", "y", "value", labels=across, y_labels=down, title=title, x_title=axes[1], y_title=axes[0],
        diverging=bool(values.isfinite().any()) and float(values[values.isfinite()].min()) < 0, size=(size[0], size[1]),
    )  # fmt: skip


def _labels(trace: Trace, place: str, axis: str) -> list[str] | None:
    """The tokens along an axis that counts positions."""
    if axis not in ("position", "query", "key", "next"):
        return None
    read = place.startswith("encoder.") or (".cross_attn." in place and axis == "key")
    read = read or place.endswith((".cross_attn.k", ".cross_attn.v"))
    tokens = trace.reading.source_tokens if read else trace.reading.tokens
    return [visible(token) for token in (tokens[1:] if axis == "next" else tokens)]
