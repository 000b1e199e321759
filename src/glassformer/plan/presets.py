"""Models that others have published, by name: shape, size, and what they were trained on (`data/presets.toml`).

    preset("Llama 3.1 405B").architecture.parameters.total      405,853,388,800

A test holds each count against the published one, to the last parameter wherever the weights were released.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from glassformer.errors import UsageError, nearest
from glassformer.plan.architecture import Architecture, Latent


@dataclass(frozen=True, slots=True)
class Preset:
    """One published model."""

    name: str
    title: str
    architecture: Architecture
    length: int | None
    """Tokens in a row of pre-training; of an encoder-decoder, those that it writes. None where nobody published it."""
    read_length: int
    """Tokens that an encoder-decoder reads; 0 of other models."""
    tokens: float | None
    """Of pre-training; of an encoder-decoder, those that it writes. None where nobody published them."""
    published: float
    """Parameters, as published."""
    within: float
    """How far our count may be from that, as a share."""
    source: str
    note: str = ""
    also: tuple[str, ...] = ()
    """Other names."""


def preset(name: str) -> Preset:
    """By name, in any case and with any dashes, dots and spaces; UsageError with the nearest names."""
    table = presets()
    wanted = _plain(name)
    for one in table.values():
        if wanted in map(_plain, (one.name, one.title, *one.also)):
            return one
    begun = [key for key in table if wanted and _plain(key).startswith(wanted)]
    if len(begun) == 1:
        return table[begun[0]]
    expected = (
        "it can be " + ", ".join(begun) if 0 < len(begun) <= 8 else nearest(name.lower(), table, count=5)
    )
    raise UsageError(f"There is no preset {name!r};", expected=expected)


@cache
def presets() -> Mapping[str, Preset]:
    """All of them by name, in the table's order."""
    text = (resources.files("glassformer.plan") / "data" / "presets.toml").read_text(encoding="utf-8")
    found = {}
    for family in tomllib.loads(text).values():
        models = family.pop("models")
        for name, own in models.items():
            found[name] = _read(name, {**family, **own})
    return found


def _read(name: str, values: dict[str, Any]) -> Preset:
    mine = {field.name for field in fields(Preset)} - {"name", "architecture"}
    given = {key: value for key, value in values.items() if key not in mine}
    width, heads = given["width"], given["heads"]
    given.setdefault("kv_heads", heads)
    given.setdefault("head_width", width // heads)
    given.setdefault("ff_width", 4 * width)
    if "latent" in given:
        given["latent"] = Latent(**given["latent"])
    tokens = values.get("tokens")
    return Preset(
        name=name, title=values["title"], architecture=Architecture(name=values["title"], **given),
        length=values.get("length"), read_length=values.get("read_length", 0),
        tokens=None if tokens is None else float(tokens), published=float(values["published"]),
        within=values.get("within", 0.0), source=values["source"], note=values.get("note", ""),
        also=tuple(values.get("also", ())),
    )  # fmt: skip


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
