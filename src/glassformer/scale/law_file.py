"""A law as a file: all that a forecast needs, so that nothing is fitted again.

    law.save("law.json")            Law.load("law.json").loss(7e9, 2e12)
    forecaster.save("law.json")     Forecaster.load("law.json").forecast(flops=1e24)

JSON. `about` is for people and other programs: form, numbers with intervals, unit, counting, ranges, digest of the
points. `law` (of a forecaster, `forecaster`) is the object itself, field by field:

    an array         {"shape": [400, 5], "float64": "1.8 0.35 ..."}         every digit, so it comes back to the bit
    an object        {"is": "Points", ...}                                  of the kinds in `_kinds`, no others
    inf, nan         {"float64": "inf"}

Reading builds those kinds and nothing else, so a file from somebody else does no harm. The points are in it, and
`about.digest` is theirs: a file whose points were changed by hand is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer.errors import GlassformerError, UsageError
from glassformer.files import write_text

if TYPE_CHECKING:
    from glassformer.scale.fit import Law
    from glassformer.scale.forecast import Forecaster

SCHEMA, VERSION = "glassformer.law", 1


def write_law(path: str | Path, law: Law, forecaster: Forecaster | None = None) -> Path:
    """Write a law, with a forecaster of the same points where there is one."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise UsageError(f"A law cannot be written as {path.name}.", expected="A name that ends in .json.")
    content = {
        "schema": SCHEMA, "version": VERSION, "about": about(law), "law": _encoded(law),
        "forecaster": _encoded(forecaster),
    }  # fmt: skip
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def save_law(law: Law, path: str | Path) -> Path:
    """Write a law with a forecaster of its points, so that forecasts need no further fit; without where the points are
    too few for one."""
    from glassformer.scale.forecast import Forecaster

    try:
        forecaster = None if law.points is None else Forecaster.of(law.points)
    except UsageError:
        forecaster = None
    return write_law(path, law, forecaster)


def read_law(path: str | Path) -> Law:
    """The law in a file.

    Raises GlassformerError where there is none, of another kind or version, or with points that were changed.
    """
    law: Law = _decoded(_content(Path(path))["law"])
    return law


def read_forecaster(path: str | Path) -> Forecaster:
    """The forecaster in a file; where it holds a law alone, one is made of the law's points."""
    from glassformer.scale.forecast import Forecaster

    content = _content(Path(path))
    found: Forecaster | None = _decoded(content["forecaster"])
    if found is not None:
        return found
    law: Law = _decoded(content["law"])
    if law.points is None:
        raise UsageError(f"{path} holds a law without points, of which no interval can be made.")
    return Forecaster.of(law.points)


def about(law: Law) -> dict[str, Any]:
    """What a law is, for people: unit, counting and ranges beside its numbers."""
    p = law.points
    said: dict[str, Any] = {"form": law.form, "values": law.rows()}
    if p is not None:
        said |= {
            "unit": p.unit, "tokenizer": p.tokenizer, "counting": p.counting, "source": p.source, "points": len(p),
            "runs": len(set(p.runs)), "ranges": {name: list(ends) for name, ends in p.ranges().items()},
            "digest": p.digest,
        }  # fmt: skip
    return said


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"There is no law {path}.", do="Make one: glassformer scale fit ... --out law.json")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GlassformerError(f"{path} is no JSON: {error}.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA or not isinstance(content.get("law"), dict):
        raise UsageError(
            f"{path} is no law, but {schema or 'something else'}.",
            expected=f"A file with the schema {SCHEMA} and what a forecast needs.",
            do="Make one: glassformer scale fit ... --out law.json (what --json prints is for reading only).",
        )  # fmt: skip
    if content["version"] != VERSION:
        raise GlassformerError(
            f"{path} has version {content['version']} of {schema}, this glassformer reads {VERSION}.",
            do="Fit again, or take the glassformer that wrote it.",
        )  # fmt: skip
    points = _decoded(content["law"]).points
    if points is not None and points.digest != content["about"]["digest"]:
        raise GlassformerError(
            f"The points in {path} are not those that the law was fitted to: their digest differs.",
            do="Fit again.",
        )  # fmt: skip
    return content


def _kinds() -> dict[str, type]:
    from glassformer.scale.backtest import Backtest, Cut
    from glassformer.scale.fit import Law
    from glassformer.scale.forecast import Forecaster
    from glassformer.scale.points import Points
    from glassformer.scale.solve import Huber, Prior, Student

    return {kind.__name__: kind for kind in (Backtest, Cut, Law, Forecaster, Points, Huber, Prior, Student)}


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        flat = " ".join(map(repr, value.astype(np.float64).ravel().tolist()))
        return {"shape": list(value.shape), "float64": flat}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else {"float64": repr(float(value))}
    if is_dataclass(value) and type(value).__name__ in _kinds():
        held = {field.name: _encoded(getattr(value, field.name)) for field in fields(value)}
        return {"is": type(value).__name__, **held}
    if isinstance(value, Mapping):
        return {str(key): _encoded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(one) for one in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a law file: add it to law_file._kinds")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "float64" in value:
        if "shape" not in value:
            return float(value["float64"])
        return np.array(value["float64"].split(), np.float64).reshape(value["shape"])
    kind = value.get("is")
    if kind is None:
        return {key: _decoded(one) for key, one in value.items()}
    known = _kinds().get(kind)
    names = {field.name for field in fields(known)} if known else set()
    if known is None or not {*value} - {"is"} <= names:
        raise GlassformerError(f"The law file holds {kind!r} as this glassformer does not know it.")
    return known(**{key: _decoded(one) for key, one in value.items() if key != "is"})
