"""Any value of a recipe as a flag: `--model.width 64` stands for `width = 64` under `[model]`.

Values are passed on as they were typed; the recipe reads and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Group, Parameter

Values = Annotated[
    dict[str, str] | None,
    Parameter(
        allow_leading_hyphen=True,
        show_default=False,
        group=Group("Recipe", help="Any value of the recipe, such as --model.width 64 (docs/recipes.md)"),
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class TextOverrides:
    """The tables of a recipe that are about text."""

    data: Values = None
    """--data.KEY VALUE: which text."""
    tokenizer: Values = None
    """--tokenizer.KEY VALUE: how words become ids."""

    def dotted(self) -> dict[str, str]:
        """`{"model.width": "64"}`."""
        given = ((table.name, getattr(self, table.name) or {}) for table in fields(self))
        return {f"{table}.{key}": value for table, values in given for key, value in values.items()}


@Parameter(name="*")
@dataclass(frozen=True)
class Overrides(TextOverrides):
    """All tables of a recipe."""

    model: Values = None
    """--model.KEY VALUE: the network."""
    mask: Values = None
    """--mask.KEY VALUE: what an encoder has to guess."""
    train: Values = None
    """--train.KEY VALUE: how long, how much at a time."""
    optimizer: Values = None
    """--optimizer.KEY VALUE: how weights change."""
    schedule: Values = None
    """--schedule.KEY VALUE: the learning rate over time."""
    engine: Values = None
    """--engine.KEY VALUE: how this machine is used."""
    faults: Values = None
    """--faults.KEY VALUE: what to do about numbers that would spoil the weights."""
    parallel: Values = None
    """--parallel.KEY VALUE: how the work is divided over ranks."""
