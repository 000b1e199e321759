"""A row and an answer as a person reads them: an image is drawn, a row of a table is named values.

▒▓██▓░        says 7 (98%), and it is 7
  ░██▒        age 42, colour red: says dog (54%), but it is cat (41%)
 ▒█▓          area 120, rooms 4: says price 212.5, and it is 208
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.text.columns import Columns

_INKS = " ░▒▓█"
_WIDEST = 28
"""Pixels on a side; a larger image is drawn from every second, third ... one."""
_FEATURES = 8
_MARKS = 6


def show_row(columns: Columns, inputs: NDArray[Any]) -> str:
    """One row, from its standardised inputs."""
    raw = np.asarray(inputs, np.float64) * np.array(columns.scale) + np.array(columns.mean)
    if columns.shape is not None:
        return _draw(raw.reshape(columns.shape))
    values, place = [], 0
    for name in columns.features:
        known = columns.categories.get(name)
        width = len(known) if known else 1
        part = raw[place : place + width]
        values.append(f"{name} {known[int(part.argmax())]}" if known else f"{name} {_number(part[0])}")
        place += width
    more = len(values) - _FEATURES
    return ", ".join(values[:_FEATURES]) + (f" and {more} more" if more > 0 else "")


def say(columns: Columns, answer: NDArray[Any], target: Any) -> str:
    """What the network says of a row, and what it is: the target as a part of a table holds it."""
    if columns.kind == "classes":
        said, right = int(answer.argmax()), int(target)
        names = columns.classes
        truth = f"and it is {names[right]}"
        if said != right:
            truth = f"but it is {names[right]} ({answer[right]:.0%})"
        return f"says {names[said]} ({answer[said]:.0%}), {truth}"
    if columns.kind == "numbers":
        pairs = zip(columns.targets, answer, columns.numbers(target), strict=True)
        shown = [f"{name} {_number(found)}, and it is {_number(truth)}" for name, found, truth in pairs]
    else:
        rows = zip(columns.targets, answer, target, strict=True)
        shown = [f"{name} {found:.0%}, and it is {'yes' if truth else 'no'}" for name, found, truth in rows]
    return "says " + "; ".join(shown[:_MARKS]) + ("; ..." if len(shown) > _MARKS else "")


def _draw(image: NDArray[Any]) -> str:
    grey = image.mean(axis=2) if image.ndim == 3 else image
    every = -(-max(grey.shape) // _WIDEST)
    grey = grey[::every, ::every]
    low, high = grey.min(), grey.max()
    ink = (grey - low) / (high - low if high > low else 1.0) * (len(_INKS) - 1)
    lines = ("".join(_INKS[round(value)] * 2 for value in row).rstrip() for row in ink.tolist())
    return "\n".join(lines).strip("\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
