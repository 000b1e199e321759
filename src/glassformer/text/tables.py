"""A table of rows -> numbers to learn from, in parts for training, validation and test.

1. Read all sources (`table_files.py`) and choose the target and feature columns.
2. Split: a row's side follows from the first 8 bytes of the SHA-256 of its features, read as a fraction u of
   2^64: test when u < test, validation when u < test + validation, else training. Adding rows moves no other,
   and rows with equal features land on the same side, so nothing to be predicted has been seen in training.
3. Mean and standard deviation of the training rows; every part is standardised by them (`columns.py`).

The digest is of everything that decides what is learnt: the columns, the numbers, the settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError, nearest
from glassformer.text.columns import (
    Columns,
    as_numbers,
    find_categories,
    input_names,
    raw_inputs,
    refuse_missing,
)
from glassformer.text.table_config import TableConfig, Targets
from glassformer.text.table_files import Column, Source, read_sources

FORMAT = 1
"""Raised when the same rows would become other numbers."""
Answers = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Table:
    """One part of the rows, ready for the network."""

    inputs: NDArray[np.float32]
    """(row, input), standardised."""
    targets: Answers
    """(row,) class numbers, or (row, output) standardised numbers or marks."""
    rows: NDArray[np.int64]
    """The number of each row among all that were read, from 0."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class PreparedTable:
    """A data set, ready to train on."""

    columns: Columns
    train: Table
    validation: Table
    test: Table
    digest: str
    """Of content and settings: a run resumes only on the same."""
    warnings: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    """(file, rows in it), in the order read."""

    @property
    def num_inputs(self) -> int:
        return len(self.columns.input_names)

    @property
    def num_outputs(self) -> int:
        return len(self.columns.outputs)

    def origin(self, row: int) -> str:
        """`rows.csv row 17`: where a row, numbered as in `Table.rows`, came from."""
        for file, count in self.files:
            if row < count:
                return f"{file} row {row + 1}"
            row -= count
        raise IndexError(row)


def prepare_table(config: TableConfig, targets: Targets, *, base: Path) -> PreparedTable:
    """Read the rows of `config`; `targets` says what the target columns are to be."""
    source = read_sources(config.paths, base)
    if source.num_rows == 0:
        raise TextError(f"{', '.join(config.paths)} has no rows.", do="Check data.paths.")
    chosen = _choose_targets(source, config)
    features = _choose_features(source, config, chosen)
    refuse_missing({name: source.columns[name] for name in (*features, *chosen)})
    categories = find_categories(source.columns, features)
    raw = raw_inputs(source.columns, features, categories)
    answers, classes = _answers(source, chosen, targets)
    side = _sides(raw, config)
    if not (side == 0).any():
        raise TextError(
            f"All {len(side)} rows are held out: nothing is left to train on.",
            do="Give more rows, or lower data.validation and data.test.",
        )
    pixels = source.shape is not None and not config.features
    mean, scale = _spread(raw[side == 0], config.standardise, shared=pixels)
    about: dict[str, Any] = {}
    if targets == "numbers":
        about["target_mean"], about["target_scale"] = _spread(answers[side == 0], config.standardise)
        answers = (answers - about["target_mean"]) / about["target_scale"]
    columns = Columns(
        features=features, categories=categories, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()),
        shape=source.shape if pixels else None, kind=targets, targets=chosen, classes=classes,
        **{name: tuple(value.tolist()) for name, value in about.items()},
    )  # fmt: skip
    digest = _digest(raw, answers, columns, config)
    inputs = ((raw - mean) / scale).astype(np.float32)
    answers = answers.astype(np.int64 if targets == "classes" else np.float32)
    train, validation, test = (
        Table(inputs[rows], answers[rows], rows) for rows in (np.flatnonzero(side == n) for n in range(3))
    )
    found = [*source.warnings, *_warnings(config, columns, raw, answers, side, pixels)]
    return PreparedTable(columns, train, validation, test, digest, tuple(found), tuple(source.names))


def _choose_targets(source: Source, config: TableConfig) -> tuple[str, ...]:
    implied = (source.target,) if source.target else ()
    chosen = config.target or implied
    listed = ", ".join(list(source.columns)[:20]) + (", ..." if len(source.columns) > 20 else "")
    if not chosen:
        raise TextError(
            "Which column is to be predicted is not said.",
            expected=f"One of the columns: {listed}.",
            do="Name it with data.target.",
        )
    for name in (*chosen, *config.features):
        if name not in source.columns:
            raise TextError(
                f"There is no column {name!r}; {nearest(name, source.columns)}", expected=f"One of: {listed}."
            )
    return chosen


def _choose_features(source: Source, config: TableConfig, targets: tuple[str, ...]) -> tuple[str, ...]:
    features = config.features or tuple(name for name in source.columns if name not in targets)
    if not features:
        raise TextError(
            f"The only columns are the target: {', '.join(targets)}.", expected="Columns to predict it from."
        )
    return features


def _answers(source: Source, names: tuple[str, ...], kind: Targets) -> tuple[NDArray[Any], tuple[str, ...]]:
    """(row,) class numbers and the class names, or (row, output) numbers."""
    if kind == "classes":
        if len(names) > 1:
            raise TextError(
                f"data.target names {len(names)} columns: {', '.join(names)}.",
                expected="One column with each row's class.",
                do="Use head 'scores' for several columns of yes and no, or task 'regress' for numbers.",
            )
        return _classes(names[0], source.columns[names[0]])
    answers = np.stack([as_numbers(name, source.columns[name]) for name in names], axis=1)
    if kind == "marks" and (wrong := np.argwhere((answers != 0) & (answers != 1))).size:
        row, column = wrong[0]
        raise TextError(
            f"Column '{names[column]}' holds {answers[row, column]:g} in row {row + 1}.",
            expected="0 or 1 in every target column, for head 'scores'.",
        )
    return answers, ()


def _classes(name: str, column: Column) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    values = [str(value) for value in column.tolist()] if column.dtype == object else None
    if values is None:
        numbers = as_numbers(name, column)
        if (fraction := np.flatnonzero(numbers % 1)).size:
            raise TextError(
                f"Column '{name}' holds {numbers[fraction[0]]:g} in row {fraction[0] + 1}, which is no class.",
                expected="Text or whole numbers.",
                do="To predict a number, use task 'regress'.",
            )
        found, places = np.unique(numbers.astype(np.int64), return_inverse=True)
        labels = tuple(map(str, found.tolist()))
    else:
        labels = tuple(sorted(set(values)))
        index = {label: number for number, label in enumerate(labels)}
        places = np.array([index[value] for value in values], np.int64)
    if len(labels) < 2:
        raise TextError(
            f"Column '{name}' has the same value in every row: {labels[0]}.", expected="At least two classes."
        )
    return places.astype(np.int64), labels


def _sides(raw: NDArray[np.float64], config: TableConfig) -> NDArray[np.int64]:
    """0 training, 1 validation, 2 test, for each row."""
    rows = np.ascontiguousarray(raw + 0.0)  # -0 and 0 are the same number
    heads = b"".join(hashlib.sha256(row.data).digest()[:8] for row in rows)
    u = np.frombuffer(heads, ">u8").astype(np.float64) / 2.0**64
    side = np.where(u < config.test + config.validation, 1, 0)
    side[u < config.test] = 2
    return side.astype(np.int64)


def _spread(
    values: NDArray[np.float64], standardise: bool, *, shared: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, or one of each for all; a constant is divided by 1."""
    width = values.shape[1]
    if not standardise:
        return np.zeros(width), np.ones(width)
    axis = None if shared else 0
    mean, scale = values.mean(axis=axis), values.std(axis=axis)
    still = scale <= 1e-12 * np.abs(values).max(axis=axis)  # what rounding leaves of a constant
    return np.broadcast_to(mean, width).copy(), np.broadcast_to(np.where(still, 1.0, scale), width).copy()


def _digest(raw: NDArray[Any], answers: NDArray[Any], columns: Columns, config: TableConfig) -> str:
    shape = {
        "format": FORMAT,
        "columns": columns.model_dump(mode="json"),
        "sides": [config.validation, config.test],
        "rows": len(raw),
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for numbers in (raw, answers):
        digest.update(np.ascontiguousarray(numbers).data)
    return digest.hexdigest()


def _warnings(
    config: TableConfig,
    columns: Columns,
    raw: NDArray[Any],
    answers: NDArray[Any],
    side: NDArray[Any],
    pixels: bool,
) -> list[str]:
    found = []
    if not (side == 1).any():
        why = (
            "data.validation is 0"
            if not config.validation
            else f"no row of {len(side)} fell to it by its hash"
        )
        found.append(f"Nothing is held out for validation ({why}): there is no validation loss.")
    if config.test and not (side == 2).any():
        found.append(f"Nothing is held out for the test: no row of {len(side)} fell to it by its hash.")
    if not pixels:  # at an image's edge a pixel that never changes is nothing special
        still = np.ptp(raw[side == 0], axis=0) == 0
        names = input_names(columns.features, columns.categories)
        if same := [name for name, constant in zip(names, still.tolist(), strict=True) if constant]:
            found.append(
                f"The same in every training row, so nothing is learnt from it: {', '.join(same[:10])}."
            )
    if columns.kind == "classes":
        counts = np.bincount(answers[side == 0], minlength=len(columns.classes))
        if absent := [name for name, count in zip(columns.classes, counts, strict=True) if not count]:
            found.append(f"Classes without a training row: {', '.join(absent[:10])}.")
        if len(columns.classes) > len(side) / 2:
            found.append(
                f"{len(columns.classes):,} classes for {len(side):,} rows: "
                "if the target is a number, use task 'regress'."
            )
    return found
