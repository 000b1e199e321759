"""The tasks `classify`, `regress` and `marks`: a plain network predicts columns of a table from the others.

What the loop counts in tokens is rows here. Samples are rows held out, with what the network says of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from glassformer.errors import ConfigError
from glassformer.files import write_json
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig, flops_per_row, shapes
from glassformer.text.table_batches import TableBatch, TableBatches, validation_table_batches
from glassformer.text.tables import PreparedTable, prepare_table
from glassformer.train.recipe import TableRecipe
from glassformer.train.task import Event, Progress, Task
from glassformer.use.believe import judge_predictions, reliability_of
from glassformer.use.predict import COLUMNS, Predictor, answers, measure_calibration, save_network
from glassformer.use.row_words import say, show_row

_SAMPLES = 3
_CLASSES_LISTED = 30


class TableTask(Task):
    recipe: TableRecipe
    config: NetworkConfig
    batches: TableBatches

    def __init__(self, recipe: TableRecipe, base: Path, progress: Progress) -> None:
        progress("reading the table")
        self.recipe = recipe
        self.prepared = data = prepare_table(recipe.data, recipe.targets, base=base)
        self.config = _sized(recipe.model, data)
        self.digests = {"data": data.digest}
        self.report = {"table": _parts(data), "sources": _sources(data), "warnings": list(data.warnings)}
        self.warnings = (*data.warnings, *self.config.warnings)
        self.batches = TableBatches(data, batch=recipe.train.batch, seed=recipe.train.seed)
        self.training_tokens, self.validation_tokens = len(data.train), len(data.validation)
        self.sizes = {"inputs": data.num_inputs, "outputs": data.num_outputs, "test_rows": len(data.test)}
        self.shapes = shapes(self.config)
        self.matrices = {name: shape for name, shape in self.shapes.items() if len(shape) == 2}
        self.flops_per_token = flops_per_row(self.config)

    def build(self, device: str | torch.device) -> nn.Module:
        return Network(self.config, seed=self.recipe.train.seed).to(device)

    def keep(self, folder: Path) -> None:
        write_json(folder / COLUMNS, self.prepared.columns.model_dump(mode="json"))

    def validation(self, rows: int) -> Iterator[TableBatch]:
        return validation_table_batches(self.prepared.validation, batch=rows)

    def samples(self, model: nn.Module) -> Iterator[Event]:
        """Rows from all over what is held out, always the same."""
        part = self.prepared.validation if len(self.prepared.validation) else self.prepared.train
        used, columns = self._in_use(model), self.prepared.columns
        rows = np.unique(np.linspace(0, len(part) - 1, _SAMPLES).astype(np.int64))
        inputs, targets = part.inputs[rows], part.targets[rows]
        for row, answer, target in zip(inputs, answers(used, inputs), targets, strict=True):
            yield {
                "event": "sample",
                "prompt": show_row(columns, row) + "\n",
                "text": say(columns, answer, target),
            }

    def judge(self, model: nn.Module, *, whole: bool) -> Event:
        """Accuracy, or rmse and R^2; once training is over also the ECE, and the same on the test rows."""
        used, data = self._in_use(model), self.prepared
        found: Event = dict(judge_predictions(used, data.validation))
        if whole and self.recipe.task != "regress" and len(data.validation):
            found["ece"] = measure_calibration(used, data.validation).ece
        if whole:
            found |= {f"test_{name}": value for name, value in judge_predictions(used, data.test).items()}
        return found

    def findings(self, model: nn.Module) -> Iterator[Event]:
        held_out = len(self.prepared.validation) + len(self.prepared.test)
        if self.recipe.task != "regress" and held_out:
            yield {"event": "calibration", **reliability_of(self._in_use(model), self.prepared).to_dict()}

    def save(self, folder: Path, model: nn.Module) -> None:
        save_network(folder, cast(Network, model), self.prepared.columns)

    def _in_use(self, model: nn.Module) -> Predictor:
        """The network as `use` takes it; it goes on learning, so nothing is frozen."""
        return Predictor(cast(Network, model), self.prepared.columns)


def _sized(model: NetworkConfig, data: PreparedTable) -> NetworkConfig:
    """The recipe's network, its inputs and outputs those of the data."""
    found = {"inputs": data.num_inputs, "outputs": data.num_outputs}
    problems = [
        f"model.{name} is {given}, but the data has {found[name]} {name}"
        for name in found
        if (given := getattr(model, name)) not in (None, found[name])
    ]
    if problems:
        raise ConfigError(
            "The model does not fit the data:", problems, do="Leave model.inputs and model.outputs out."
        )
    return model.model_copy(update=found)


def _sources(data: PreparedTable) -> list[dict[str, Any]]:
    """Files, or for many (a folder of images) only how many."""
    if len(data.files) <= 20:
        return [{"source": file, "rows": rows} for file, rows in data.files]
    return [{"source": f"{len(data.files):,} files", "rows": sum(rows for _, rows in data.files)}]


def _parts(data: PreparedTable) -> list[dict[str, Any]]:
    """What each part holds: of each class how many rows, of each number its mean and deviation."""
    columns, found = data.columns, []
    for name, part in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        row: dict[str, Any] = {"part": name, "rows": len(part)}
        if columns.kind == "classes" and len(columns.classes) <= _CLASSES_LISTED:
            counts = np.bincount(part.targets.astype(np.int64), minlength=len(columns.classes))
            row |= dict(zip(columns.classes, counts.tolist(), strict=True))
        elif columns.kind == "numbers" and len(part):
            numbers = columns.numbers(part.targets)
            for number, target in enumerate(columns.targets):
                mean, deviation = numbers[:, number].mean(), numbers[:, number].std()
                row[target] = f"{mean:.4g} ± {deviation:.3g}"
        elif columns.kind == "marks" and len(part):
            row |= {
                n: f"{share:.1%} yes"
                for n, share in zip(columns.targets, part.targets.mean(axis=0), strict=True)
            }
        found.append(row)
    return found
