"""Answers with names, from rows in any shape, and a folder that gives the same to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import CheckpointError, ConfigError, ModelError, TextError, UsageError
from glassformer.model.mlp import Network
from glassformer.model.network import HEADS, NetworkConfig
from glassformer.text.table_config import TableConfig
from glassformer.text.tables import PreparedTable, prepare_table
from glassformer.use.predict import (
    Predictor,
    calibrate,
    load_network,
    measure_calibration,
    predict,
    predictor,
    save_network,
    scores,
)

TARGETS = {"classes": "kind", "numbers": ("weight", "height"), "marks": ("funny", "sad")}


def rows_of(count: int = 120) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "age": float(rng.normal(40, 10)), "colour": str(rng.choice(["red", "green", "blue"])),
            "kind": str(rng.choice(["cat", "dog", "bee"])), "weight": float(rng.normal(70, 5)),
            "height": float(rng.normal(1.7, 0.1)), "funny": int(rng.integers(2)), "sad": int(rng.integers(2)),
        }
        for _ in range(count)
    ]  # fmt: skip


def prepared(folder: Path, kind: Any = "classes") -> PreparedTable:
    rows = rows_of()
    text = "\n".join(",".join(str(value) for value in row.values()) for row in rows)
    (folder / "rows.csv").write_text(",".join(rows[0]) + "\n" + text + "\n")
    config = TableConfig(
        paths=("rows.csv",), target=TARGETS[kind], features=("colour", "age"), validation=0.4
    )
    return prepare_table(config, kind, base=folder)


def network_for(data: PreparedTable, **changes: Any) -> Network:
    head = HEADS[data.columns.kind]
    given = {"inputs": data.num_inputs, "outputs": data.num_outputs, "head": head, "hidden": (5,), **changes}
    return Network(NetworkConfig.model_validate(given), seed=1)


def made(folder: Path, kind: Any = "classes") -> Predictor:
    data = prepared(folder, kind)
    return predictor(network_for(data), data.columns)


def test_rows_in_any_shape_give_the_same_answers(tmp_path: Path) -> None:
    model, rows = made(tmp_path), rows_of()
    expected = predict(model, rows)
    assert len(expected) == 120
    by_name = {name: [row[name] for row in rows] for name in ("age", "colour", "kind")}
    for given in (by_name, tmp_path / "rows.csv", "rows.csv"):
        assert predict(model, given, base=tmp_path) == expected


def test_a_class_comes_with_its_probability_and_those_of_all_others(tmp_path: Path) -> None:
    model, rows = made(tmp_path), rows_of()[:7]
    inputs = torch.from_numpy(
        model.columns.encode(
            {k: np.array([r[k] for r in rows], object if k == "colour" else float) for k in ("age", "colour")}
        )
    )
    chances = model.network(inputs)
    for answer, chance in zip(predict(model, rows), chances, strict=True):
        assert answer["class"] == ("bee", "cat", "dog")[int(chance.argmax())]
        assert answer["probability"] == max(answer["probabilities"].values())
        assert list(answer["probabilities"].values()) == pytest.approx(chance.tolist(), abs=1e-6)


def test_numbers_are_in_the_units_of_the_data(tmp_path: Path) -> None:
    model = made(tmp_path, "numbers")
    for parameter in model.network.parameters():
        parameter.zero_()
    model.network.head.bias[0] = 1.0  # one standard deviation above the mean
    weights = [row["weight"] for row in rows_of()]
    answer = predict(model, rows_of()[:1])[0]
    assert list(answer) == ["weight", "height"]
    train = prepared(tmp_path, "numbers").train.rows
    values = np.array(weights)[train]
    assert answer["weight"] == pytest.approx(values.mean() + values.std(), rel=1e-6)


def test_marks_are_probabilities_of_yes_by_name(tmp_path: Path) -> None:
    model = made(tmp_path, "marks")
    answers = predict(model, rows_of())
    assert all(list(answer) == ["funny", "sad"] and 0 < answer["sad"] < 1 for answer in answers)


def test_pictures_are_given_as_they_are() -> None:
    data = prepare_table(TableConfig(), "classes", base=Path())
    model = predictor(network_for(data), data.columns)
    from sklearn.datasets import load_digits

    digits = load_digits()
    assert predict(model, digits.images[:9]) == predict(model, digits.data[:9])
    assert np.allclose(scores(model, data.train.inputs[:1]), scores(model, data.columns.encode(
        dict(zip(data.columns.features, digits.data[data.train.rows[:1]].T, strict=True)))), atol=1e-6)  # fmt: skip
    with pytest.raises(UsageError, match=r"shape \[9, 63\]"):
        predict(model, digits.data[:9, :63])


@pytest.mark.parametrize("kind", TARGETS)
def test_a_saved_network_is_the_same_to_the_bit(tmp_path: Path, kind: str) -> None:
    model = made(tmp_path, kind)
    save_network(tmp_path / "run" / "model", model.network, model.columns)
    for path in (tmp_path / "run" / "model", tmp_path / "run"):
        again = load_network(path)
        assert again.columns == model.columns and again.network.config == model.network.config
        assert predict(again, rows_of()) == predict(model, rows_of())
        assert not any(p.requires_grad for p in again.network.parameters()) and not again.network.training
    assert repr(again).startswith("Predictor(") and kind in repr(again)


def test_a_temperature_changes_probabilities_not_classes_and_is_kept(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    model = predictor(network_for(data), data.columns)
    chances = model.network(torch.from_numpy(data.train.inputs)).cumsum(dim=1).numpy()
    drawn = (np.random.default_rng(0).random((len(chances), 1)) > chances[:, :2]).sum(axis=1)
    part = replace(data.train, targets=drawn)  # each class as often as the model says
    with torch.no_grad():
        model.network.head.weight.mul_(20)  # and now it is far too sure of itself
    (scaled_model, found) = calibrate(model, part)
    assert (
        found.value == pytest.approx(20, abs=4 * found.standard_error)
        and scaled_model.columns.temperature == found.value
    )
    before, after = (predict(m, rows_of()) for m in (model, scaled_model))
    assert [a["class"] for a in before] == [a["class"] for a in after]
    assert max(a["probability"] for a in after) < max(a["probability"] for a in before)
    eces = [measure_calibration(m, part).ece for m in (model, scaled_model)]
    assert eces[1] < eces[0]
    save_network(tmp_path / "model", scaled_model.network, scaled_model.columns)
    assert predict(load_network(tmp_path / "model"), rows_of()) == after


def test_numbers_have_no_calibration(tmp_path: Path) -> None:
    data = prepared(tmp_path, "numbers")
    model = predictor(network_for(data), data.columns)
    for ask in (calibrate, measure_calibration):
        with pytest.raises(UsageError, match="without probabilities"):
            ask(model, data.validation)


def test_rows_that_do_not_fit_the_columns_are_refused_by_name(tmp_path: Path) -> None:
    model = made(tmp_path)
    for rows, words in (
        ([{"age": 1.0, "colour": "mauve"}], "'mauve', which no row of the training data had"),
        ([{"age": None, "colour": "red"}], "'age' in 1 row"),
        ([{"colour": "red"}], "'age' in 1 row"),
        ({"age": [1.0]}, "no column 'colour'"),
        ({"age": [1.0, 2.0], "colour": ["red"]}, "Equally many"),
        ([{"age": "old", "colour": "red"}], "holds 'old' in row 1"),
        ([{"age": [1], "colour": "red"}], r"holds \[1\] in row 1"),
    ):
        with pytest.raises(TextError, match=words):
            predict(model, rows)


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    model = made(tmp_path)
    folder = save_network(tmp_path / "model", model.network, model.columns)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors, tensor"):
        load_network(folder)
    weights.write_bytes(whole)
    (folder / "manifest.json").unlink()  # as a folder from elsewhere
    load_network(folder)
    config = json.loads((folder / "config.json").read_text())
    for change, error, words in (
        ({"hidden": [6]}, ModelError, "expected"),
        ({"hidden": [10**12]}, ModelError, "has shape"),
        ({"model_type": "llama"}, ModelError, "type 'llama'"),
        ({"width": 3}, ConfigError, "no such key"),
        ({"inputs": 9}, ModelError, "has shape"),
        ({"head": "scores"}, ModelError, "head 'distribution'"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match=words):
            load_network(folder)
    (folder / "columns.json").unlink()
    with pytest.raises(ModelError, match=r"lacks columns\.json"):
        load_network(folder)
