"""A trained plain network in use: rows in, answers out, with the folder it is kept in.

    config.json   model.safetensors   columns.json   manifest.json

`columns.json` holds what turns a row into inputs and outputs into answers: feature names, means and deviations,
class names, and the temperature of `calibrate.py`. The folder is sealed like every model folder: loading
verifies the SHA-256 of every file and compares names and shapes before any memory is taken. Of a run that is not
finished the newest whole checkpoint is taken, and `Predictor.warnings` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glassformer import configs
from glassformer.errors import CheckpointError, ModelError, UsageError
from glassformer.files import write_bytes
from glassformer.model.mlp import Network
from glassformer.model.network import HEADS, NetworkConfig, parameters, shapes
from glassformer.run import checkpoints, exports
from glassformer.run.folder import RECIPE, Run
from glassformer.run.tensors import read_tensors
from glassformer.text.columns import NUMBERS, Columns
from glassformer.text.table_files import objects, read_sources
from glassformer.text.tables import Table
from glassformer.units import show_count
from glassformer.use.calibrate import Calibration, Temperature, calibration, fit_temperature, scaled
from glassformer.use.load import CONFIG, NETWORK, WEIGHTS, compare, misfit

COLUMNS = "columns.json"

Rows = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | NDArray[Any]
"""A file as in data.paths, columns by name, rows by name, or numbers (row, feature) in the features' order."""

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, repr=False)
class Predictor:
    """A network in evaluation mode and the columns it was trained on."""

    network: Network
    columns: Columns
    path: Path | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        outputs = ", ".join(self.columns.outputs[:5]) + (", ..." if len(self.columns.outputs) > 5 else "")
        return f"Predictor({show_count(parameters(self.network.config))} parameters, {self.columns.kind}: {outputs})"


def predictor(network: Network, columns: Columns, *, path: Path | None = None) -> Predictor:
    """The network, frozen, with its columns, once they are known to fit."""
    expected = (len(columns.input_names), len(columns.outputs), HEADS[columns.kind])
    config = network.config
    if (config.inputs, config.outputs, config.head) != expected:
        raise ModelError(
            f"The network has {config.inputs} inputs, {config.outputs} outputs and head '{config.head}'.",
            expected="Its columns need {} inputs, {} outputs and head '{}'.".format(*expected),
            do="Check that weights, config and columns belong together.",
        )
    return Predictor(network.eval().requires_grad_(False), columns, path)


def predict(model: Predictor, rows: Rows, *, base: Path | None = None) -> list[dict[str, Any]]:
    """One answer for each row.

    classes   {"class": "7", "probability": 0.98, "probabilities": {"0": 0.001, ...}}
    numbers   {"price": 12.5}
    marks     {"funny": 0.9, "sad": 0.2}, the probability of yes
    """
    outputs = answers(model, encoded(model, rows, base))
    names = model.columns.outputs
    if model.columns.kind != "classes":
        return [dict(zip(names, row, strict=True)) for row in outputs.tolist()]
    return [
        {
            "class": names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(names, row.tolist(), strict=True)),
        }
        for row in outputs
    ]


def encoded(model: Predictor, rows: Rows, base: Path | None = None) -> NDArray[np.float32]:
    """(row, input) standardised inputs: what the network reads of the rows."""
    return model.columns.encode(_columns(model, rows, base))


@torch.inference_mode()
def scores(model: Predictor, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(row, output) scores for standardised inputs, such as a part of a prepared table."""
    device = model.network.head.weight.device
    parts = [
        model.network.scores(torch.from_numpy(inputs[first : first + _ROWS_AT_ONCE]).to(device))
        .double()
        .cpu()
        for first in range(0, len(inputs), _ROWS_AT_ONCE)
    ]
    found: NDArray[np.float64] = (
        torch.cat(parts).numpy() if parts else np.empty((0, len(model.columns.outputs)))
    )
    return found


def save_predictions(answers: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write what `predict` found as .csv, .tsv or .parquet; of classes also each one's `probability of X`."""
    import pyarrow
    from pyarrow import csv, parquet

    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".parquet"):
        raise UsageError(
            f"Answers cannot be saved as {path.name}.", expected="A name ending in .csv, .tsv or .parquet."
        )
    rows = [
        {key: value for key, value in answer.items() if key != "probabilities"}
        | {f"probability of {name}": share for name, share in answer.get("probabilities", {}).items()}
        for answer in answers
    ]
    table, buffer = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    if kind == ".parquet":
        parquet.write_table(table, buffer)
    else:
        csv.write_csv(table, buffer, csv.WriteOptions(delimiter="\t" if kind == ".tsv" else ","))
    write_bytes(path, buffer.getvalue().to_pybytes())
    return path


def measure_calibration(model: Predictor, part: Table, *, bins: int = 10) -> Calibration:
    """How well the model's probabilities agree with what happens in a part of a table."""
    _refuse_numbers(model)
    return calibration(answers(model, part.inputs), part.targets, bins=bins)


def calibrate(model: Predictor, part: Table) -> tuple[Predictor, Temperature]:
    """The model with its temperature fitted on a part that it was not trained on."""
    _refuse_numbers(model)
    found = fit_temperature(scores(model, part.inputs), part.targets)
    columns = model.columns.model_copy(update={"temperature": found.value})
    return replace(model, columns=columns), found


def save_network(folder: Path, network: Network, columns: Columns) -> Path:
    """Write a model folder, in one step, from which `load_network` gives the same weights to the bit."""
    config = {"model_type": NETWORK, "architectures": [type(network).__name__]}
    files = {
        CONFIG: {**config, **network.config.model_dump(mode="json")},
        COLUMNS: columns.model_dump(mode="json"),
    }
    others = {
        name: json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
        for name, value in files.items()
    }
    return exports.save_files(folder, {"model": dict(network.named_parameters())}, others)


def load_network(path: str | Path, *, device: str | torch.device = "cpu") -> Predictor:
    """The network of a folder that `save_network` wrote, of a run, or of one of its checkpoints."""
    folder = Path(path).expanduser()
    if not folder.exists():
        raise ModelError(f"There is no {folder}.", do="List your runs with: glassformer runs list")
    if (folder.parent.parent / RECIPE).exists() and folder.parent.name == "checkpoints":
        return _from_checkpoint(Run.open(folder.parent.parent), device, folder)
    if (folder / "model").is_dir():
        folder = folder / "model"
    elif (folder / RECIPE).exists():
        return _from_checkpoint(Run.open(folder), device)
    if missing := [name for name in (CONFIG, WEIGHTS, COLUMNS) if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder} lacks {', '.join(missing)}.",
            expected=f"Expected a folder with {CONFIG}, {WEIGHTS} and {COLUMNS}.",
        )
    if damage := [str(found) for found in exports.verify_model(folder)]:
        raise CheckpointError(
            "The model is not what was written:\n" + "\n".join(f"  - {found}" for found in damage),
            do="\nPut back a copy of the folder, or export it again from its run.",
        )
    fields = _read_json(folder / CONFIG)
    if (kind := fields.pop("model_type", None)) != NETWORK:
        raise ModelError(
            f"{folder / CONFIG} describes a model of type {kind!r}.",
            expected=f"Expected model_type '{NETWORK}', a plain network.",
            do="Load other models with glassformer.load.",
        )
    fields.pop("architectures", None)
    config = configs.build(NetworkConfig, fields, origin=str(folder / CONFIG))
    columns = configs.build(Columns, _read_json(folder / COLUMNS), origin=str(folder / COLUMNS))
    network = _filled(config, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return predictor(network.to(device), columns, path=Path(path))


def _from_checkpoint(run: Run, device: str | torch.device, at: Path | None = None) -> Predictor:
    checkpoint = (
        checkpoints.load(at, only={"model"}) if at
        else checkpoints.load_newest(run.checkpoints, only={"model"}, set_aside=False)
    )  # fmt: skip
    if checkpoint is None or not (run.path / COLUMNS).exists():
        raise ModelError(
            f"{run.path} has no network yet: neither model/ nor a checkpoint with its {COLUMNS}.",
            do="Train until the first checkpoint, or give a run of task classify, regress or marks.",
        )
    columns = configs.build(Columns, _read_json(run.path / COLUMNS), origin=str(run.path / COLUMNS))
    fields = {
        **run.recipe.get("model", {}),
        "inputs": len(columns.input_names),
        "outputs": len(columns.outputs),
    }
    config = configs.build(NetworkConfig, fields, origin=str(run.path / RECIPE))
    network = _filled(config, checkpoint.tensors["model"], str(checkpoint.path))
    if at:
        return predictor(network.to(device), columns, path=at)
    found = tuple(f"Passed over a damaged checkpoint: {finding}." for finding in checkpoint.findings)
    unfinished = f"This run has no finished model yet; these are its weights at step {checkpoint.step}."
    return replace(predictor(network.to(device), columns, path=run.path), warnings=(unfinished, *found))


def _filled(config: NetworkConfig, tensors: Mapping[str, torch.Tensor], origin: str) -> Network:
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if problems := compare(shapes(config), found):
        raise misfit(origin, problems)
    with torch.device("meta"):
        network = Network(config)
    network.load_state_dict(tensors, assign=True)
    return network


def answers(model: Predictor, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(row, output) for standardised inputs: probabilities, or numbers in the data's own units."""
    columns, found = model.columns, scores(model, inputs)
    if columns.kind == "numbers":
        return columns.numbers(found)
    return scaled(found, columns.temperature, yes_or_no=columns.kind == "marks")


def _columns(model: Predictor, rows: Rows, base: Path | None) -> Mapping[str, NDArray[Any]]:
    """The rows as named columns, whatever they were given as."""
    features = model.columns.features
    if isinstance(rows, str | Path):
        return read_sources((str(rows),), base or Path.cwd()).columns
    if isinstance(rows, Mapping):
        return {name: _column(list(values)) for name, values in rows.items()}
    if isinstance(rows, np.ndarray):
        shape = model.columns.shape
        if shape is not None and rows.shape[1:] == shape:
            rows = rows.reshape(len(rows), -1)
        if rows.ndim != 2 or rows.shape[1] != len(features):
            raise UsageError(
                f"The rows have shape {list(rows.shape)}.",
                expected=f"Expected [rows, {len(features)}], the columns {', '.join(features[:5])} ...",
            )
        return dict(zip(features, rows.T, strict=True))
    found: dict[str, NDArray[Any]] = {}
    for name in features:
        found[name] = _column([row.get(name) for row in rows])
    return found


def _column(values: list[Any]) -> NDArray[Any]:
    if all(value is None or isinstance(value, NUMBERS) for value in values):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return objects(values)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_bytes())
        return dict(fields)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file} is not a JSON object: {error}.", do="Put back a copy.") from None


def _refuse_numbers(model: Predictor) -> None:
    if model.columns.kind == "numbers":
        raise UsageError(
            "This network predicts numbers, which come without probabilities.",
            expected="A classifier, or a network with head 'scores'.",
        )
