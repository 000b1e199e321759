"""How a row's columns become the network's inputs, and its outputs answers: kept beside the weights.

    input  = (value - mean) / scale            a column of numbers
    inputs = one 0 or 1 for each known value   a column of text (one-hot), then the same
    answer = output * scale + mean             a target that is a number
    answer = the class of the largest score    a target that is a class; classes are sorted

A column of text with more than ONE_HOT_AT_MOST values is refused: it is a name or a sentence, not a category.
What is missing or not finite is refused as well, with its column and rows: how to fill it is for whoever knows
the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from glassformer.configs import Clash, Config
from glassformer.errors import TextError, nearest
from glassformer.text.table_config import Targets

ONE_HOT_AT_MOST = 32
"""Different values of a text column that are still categories."""
NUMBERS = (int, float, np.number, np.bool_)
Floats = NDArray[np.float64]


class Columns(Config):
    """The columns of one data set, with what was learnt about them from its training rows."""

    features: tuple[str, ...] = Field(min_length=1)
    """Columns that are read, in order."""
    categories: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The values of each text column among them, sorted."""
    mean: tuple[float, ...]
    """Of each input."""
    scale: tuple[float, ...]
    shape: tuple[int, ...] | None = None
    """(height, width) or (height, width, channel) when the features are an image's pixels."""
    kind: Targets
    targets: tuple[str, ...] = Field(min_length=1)
    """Columns that are predicted."""
    classes: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()
    temperature: float = Field(1.0, gt=0)
    """Scores are divided by it before they become probabilities; see `use/calibrate.py`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        num = len(self.input_names)
        if not len(self.mean) == len(self.scale) == num:
            problems.append(
                f"mean and scale have {len(self.mean)} and {len(self.scale)} numbers for {num} inputs"
            )
        if self.shape is not None and prod(self.shape) != num:
            problems.append(f"shape {list(self.shape)} does not hold {num} inputs")
        expected = len(self.targets) if self.kind == "numbers" else 0
        if not len(self.target_mean) == len(self.target_scale) == expected:
            problems.append(f"target_mean and target_scale need {expected} numbers for kind '{self.kind}'")
        if (self.kind == "classes") != (len(self.classes) >= 2):
            problems.append(f"classes has {len(self.classes)} names for kind '{self.kind}'")
        if self.kind == "classes" and len(self.targets) != 1:
            problems.append(f"targets has {len(self.targets)} columns for kind 'classes', which needs one")
        numbers = (*self.mean, *self.scale, *self.target_mean, *self.target_scale)
        if not all(map(isfinite, numbers)) or any(s <= 0 for s in (*self.scale, *self.target_scale)):
            problems.append(
                "mean, scale, target_mean and target_scale must be finite, and the scales above 0"
            )
        if problems:
            raise Clash(problems)
        return self

    @property
    def input_names(self) -> tuple[str, ...]:
        """What each input is: a column, or `column=value`."""
        return input_names(self.features, self.categories)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each output is: a class, or a target column."""
        return self.classes if self.kind == "classes" else self.targets

    def encode(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """(row, input) for the network, from columns as they are in the data."""
        raw = raw_inputs(columns, self.features, self.categories)
        standard: Floats = (raw - np.array(self.mean)) / np.array(self.scale)
        return standard.astype(np.float32)

    def numbers(self, outputs: NDArray[Any]) -> Floats:
        """Predicted numbers in the data's own units."""
        standard: Floats = np.asarray(outputs, np.float64)
        found: Floats = standard * np.array(self.target_scale) + np.array(self.target_mean)
        return found


def input_names(features: Sequence[str], categories: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(
        name
        for feature in features
        for name in (
            [f"{feature}={value}" for value in categories[feature]] if feature in categories else [feature]
        )
    )


def find_categories(
    columns: Mapping[str, NDArray[Any]], features: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The sorted values of each text column; one with too many, or of another type, is refused."""
    found = {}
    for name in features:
        column = columns[name]
        if column.dtype != object:
            continue
        present = [value for value in column.tolist() if value is not None]
        other = next((value for value in present if not isinstance(value, str)), None)
        if other is not None:
            raise TextError(
                f"Column '{name}' holds values of type {type(other).__name__}, such as {other}.",
                expected="Numbers, or text with few different values.",
                do="Turn it into numbers, or leave it out of data.features.",
            )
        values = sorted(set(present))
        if len(values) > ONE_HOT_AT_MOST:
            words = (row for row, value in enumerate(column.tolist()) if value and not _is_number(value))
            row = next(words, 0)
            raise TextError(
                f"Column '{name}' is text with {len(values):,} different values, such as {column[row]!r} in row "
                f"{row + 1}.",
                expected=f"Numbers, or at most {ONE_HOT_AT_MOST} different texts, each of which becomes an input.",
                do="Leave it out of data.features, turn it into numbers, or group its values.",
            )
        found[name] = tuple(values)
    return found


def raw_inputs(
    columns: Mapping[str, NDArray[Any]], features: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> Floats:
    """(row, input), as in the data: nothing subtracted, nothing scaled."""
    if missing := [name for name in features if name not in columns]:
        raise TextError(
            f"There is no column {', '.join(map(repr, missing[:5]))}; {nearest(missing[0], columns)}",
            expected=f"The columns {', '.join(features[:10])}{' ...' if len(features) > 10 else ''}.",
        )
    lengths = {len(columns[name]) for name in features}
    if len(lengths) != 1:
        raise TextError(f"The columns have {sorted(lengths)} rows.", expected="Equally many in each.")
    refuse_missing({name: columns[name] for name in features})
    inputs = np.empty((lengths.pop(), len(input_names(features, categories))))
    place = 0
    for name in features:
        column = columns[name]
        if name not in categories:
            inputs[:, place] = as_numbers(name, column)
            place += 1
            continue
        index = {value: number for number, value in enumerate(categories[name])}
        if unknown := sorted({str(value) for value in column.tolist()} - index.keys()):
            raise TextError(
                f"Column '{name}' holds {unknown[0]!r}, which no row of the training data had.",
                expected=f"One of {', '.join(categories[name])}.",
                do="Check the spelling, or train again with rows that have it.",
            )
        chosen = np.array([index[str(value)] for value in column.tolist()], np.int64)
        inputs[:, place : place + len(index)] = chosen[:, None] == np.arange(len(index))
        place += len(index)
    return inputs


def as_numbers(name: str, column: NDArray[Any]) -> Floats:
    """A column of numbers as float64; text is refused with the first value that is none."""
    if column.dtype == object:
        for row, value in enumerate(column.tolist()):
            if not isinstance(value, NUMBERS):
                raise TextError(
                    f"Column '{name}' holds {value!r} in row {row + 1}, which is not a number.",
                    expected="Numbers.",
                    do="Mend the value, or leave the column out.",
                )
    return column.astype(np.float64)


def refuse_missing(columns: Mapping[str, NDArray[Any]]) -> None:
    """Every column with a value missing or not finite is named with its rows, counted from 1."""
    problems = []
    for name, column in columns.items():
        if column.dtype == object:
            bad = np.array([value is None for value in column.tolist()], bool)
        elif column.dtype.kind == "f":
            bad = ~np.isfinite(column)
        else:
            continue
        if bad.any():
            rows = np.flatnonzero(bad) + 1
            listed = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
            problems.append(f"'{name}' in {len(rows)} row{'s' * (len(rows) > 1)} ({listed})")
    if problems:
        more = f" and {len(problems) - 10} more columns" if len(problems) > 10 else ""
        raise TextError(
            f"Values are missing or not finite: {'; '.join(problems[:10])}{more}.",
            expected="A value in every row; rows are counted from 1, without the header.",
            do="Fill them in, drop those rows, or leave the column out of data.features.",
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
