"""The command that a drill gives: `glassformer train` with the user's own recipe, and what makes its copy short."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from glassformer.train.config import DURATIONS
from glassformer.train.recipe import AnyRecipe

MOST_TIMEOUT = 15.0
"""Seconds of `parallel.timeout` in a drill, where the recipe's is longer."""
KEEP = 3
"""Checkpoints kept, at least: one may be damaged, one may not have been saved."""

What = str | Path | Sequence[str | Path] | Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Command:
    """The program's arguments for a shorter run of the recipe."""

    texts: Sequence[str]
    task: str | None
    overrides: Mapping[str, Any]
    recipe: AnyRecipe

    @property
    def timeout(self) -> float:
        return min(self.recipe.parallel.timeout, MOST_TIMEOUT)

    def arguments(
        self, run: Path, steps: int, every: int, engine: Mapping[str, Any], ranks: int
    ) -> list[str]:
        train = {
            "steps": steps, "checkpoint_every": every, "keep": max(KEEP, self.recipe.train.keep), "log_every": 1,
            "validate_every": steps + 1, "sample_every": steps + 1, "average": 1,
        }  # fmt: skip
        durations = {f"train.{name}" for name in DURATIONS}
        values = {name: value for name, value in self.overrides.items() if name not in durations}
        values |= {f"train.{name}": value for name, value in train.items()}
        values["faults.most_crashes"] = 0  # crashes are meant here
        values |= {f"engine.{name}": value for name, value in engine.items()}
        if ranks > 1:
            values["parallel.timeout"] = self.timeout
        flags = [part for name, value in values.items() for part in (f"--{name}", _typed(value))]
        task = ["--task", self.task] if self.task else []
        return ["train", *self.texts, *task, "--run", str(run), "--json", *flags]


def texts_of(what: What, recipe: AnyRecipe, folder: Path) -> list[str]:
    """What stands behind `train`; values are written down, with paths that hold wherever they are read."""
    if what is None:
        return []
    if not isinstance(what, Mapping):
        return [str(text) for text in ([what] if isinstance(what, str | Path) else what)]
    values = {
        key: _absolute(value) if key in ("data", "tokenizer") else value
        for key, value in recipe.resolved().items()
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return [str(path)]


def _absolute(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute(inner, name) for inner in value]
    is_path = name in ("path", "paths", "validation_paths") and isinstance(value, str | Path)
    return str(Path.cwd() / value) if is_path and not str(value).startswith("python:") else value


def _typed(value: Any) -> str:
    """A value as one would type it behind its flag."""
    return value if isinstance(value, str) else json.dumps(value)
