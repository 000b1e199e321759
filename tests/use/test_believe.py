"""Reliability of a network on rows held out: the right rows, a temperature judged where it was not fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import ModelError, RunError, UsageError
from glassformer.model.mlp import Network
from glassformer.model.network import HEADS, NetworkConfig
from glassformer.run.folder import Run
from glassformer.text.table_config import TableConfig
from glassformer.text.tables import PreparedTable, prepare_table
from glassformer.use.believe import apply_temperature, judge_predictions, open_table, reliability_of
from glassformer.use.calibrate import calibration, fit_temperature
from glassformer.use.predict import Predictor, load_network, predictor, save_network, save_predictions, scores
from glassformer.use.row_words import say, show_row


def table(folder: Path, *, test: float = 0.3, kind: Any = "classes", target: str = "kind") -> PreparedTable:
    rng = np.random.default_rng(1)
    lines = ["x,z,kind,mark,size"]
    for _ in range(400):
        x, z = rng.normal(size=2)
        lines.append(
            f"{x:.2f},{z:.2f},{'up' if x + rng.normal() > 0 else 'down'},{int(z > 0)},{3 * round(x, 2) + 10:.4f}"
        )
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    config = TableConfig(paths=("rows.csv",), target=target, features=("x", "z"), validation=0.3, test=test)  # type: ignore[arg-type] # one name
    return prepare_table(config, kind, base=folder)


def linear(data: PreparedTable, weight: list[list[float]]) -> Predictor:
    """A network whose scores are known: s = W x."""
    config = NetworkConfig(inputs=2, outputs=data.num_outputs, hidden=(), head=HEADS[data.columns.kind])  # type: ignore[arg-type] # of that kind
    network = Network(config)
    network.load_state_dict({"head.weight": torch.tensor(weight), "head.bias": torch.zeros(len(weight))})
    return predictor(network, data.columns)


def test_it_is_measured_on_test_rows_and_the_temperature_fitted_on_validation_rows(tmp_path: Path) -> None:
    data = table(tmp_path)
    model = linear(data, [[-4.0, 0.0], [4.0, 0.0]])  # far too sure
    found = reliability_of(model, data)
    s = scores(model, data.test.inputs)
    plain = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    assert found.part == "test" and found.measured.ece == calibration(plain, data.test.targets).ece
    fitted = fit_temperature(scores(model, data.validation.inputs), data.validation.targets)
    assert found.temperature == fitted and fitted.value > 2
    assert found.scaled is not None and found.scaled.ece < found.measured.ece
    assert "too sure of itself" in found.verdict and f"to {found.scaled.ece:.3f}" in found.advice
    assert {row["scores"] for row in found.rows()} == {"as trained", f"divided by T = {fitted.value:.2f}"}


def test_a_temperature_that_is_stored_already_changes_nothing_of_what_is_measured(tmp_path: Path) -> None:
    data = table(tmp_path)
    model = linear(data, [[-4.0, 0.0], [4.0, 0.0]])
    folder = save_network(tmp_path / "model", model.network, model.columns)
    found = reliability_of(model, data)
    with pytest.raises(ModelError, match="no finished model"):
        apply_temperature(model, found, tmp_path / "unfinished")
    applied = apply_temperature(model, found, folder)
    assert load_network(folder).columns.temperature == found.temperature.value == applied.columns.temperature  # type: ignore[union-attr] # fitted
    assert reliability_of(load_network(folder), data) == found


def test_without_test_rows_nothing_is_judged_on_the_rows_it_was_fitted_on(tmp_path: Path) -> None:
    data = table(tmp_path, test=0.0)
    found = reliability_of(linear(data, [[-4.0, 0.0], [4.0, 0.0]]), data)
    assert found.part == "validation" and found.temperature is not None and found.scaled is None
    assert "data.test" in found.advice


def test_where_no_temperature_fits_the_reason_is_told_and_none_is_stored(tmp_path: Path) -> None:
    data = table(tmp_path, kind="marks", target="mark")
    model = linear(data, [[0.0, 100.0]])
    model.network.head.bias.fill_(100 * data.columns.mean[1] / data.columns.scale[1])  # exactly z > 0
    found = reliability_of(model, data)
    assert found.temperature is None and "every row is right" in found.advice
    with pytest.raises(ModelError, match="no temperature to store"):
        apply_temperature(model, found, tmp_path)


def test_the_mistakes_are_the_wrong_rows_most_sure_first(tmp_path: Path) -> None:
    data = table(tmp_path)
    found = reliability_of(linear(data, [[-1.0, 0.0], [1.0, 0.0]]), data).mistakes
    assert [row["sure"] for row in found] == sorted((row["sure"] for row in found), reverse=True)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    for row in found:
        x, z, kind, *_ = lines[int(row["row"].split()[-1])].split(",")
        assert (kind, row["says"]) == (row["is"], "up" if kind == "down" else "down")
        assert row["shown"] == f"x {float(x):.4g}, z {float(z):.4g}"


def test_a_perfect_predictor_of_numbers_has_no_error_and_one_that_says_the_mean_explains_nothing(
    tmp_path: Path,
) -> None:
    data = table(tmp_path, kind="numbers", target="size")
    slope = 3 * data.columns.scale[0] / data.columns.target_scale[0]
    assert judge_predictions(linear(data, [[slope, 0.0]]), data.test) == pytest.approx(
        {"rmse": 0.0, "r2": 1.0}, abs=1e-3
    )
    mean = judge_predictions(linear(data, [[0.0, 0.0]]), data.train)
    assert mean == pytest.approx({"rmse": data.columns.target_scale[0], "r2": 0.0}, abs=1e-5)
    empty = replace(
        data.test, inputs=data.test.inputs[:0], targets=data.test.targets[:0], rows=data.test.rows[:0]
    )
    assert judge_predictions(linear(data, [[0.0, 0.0]]), empty) == {}


def test_the_rows_of_a_run_are_found_again_or_refused(tmp_path: Path) -> None:
    data = table(tmp_path)
    values = {
        "paths": ["rows.csv"],
        "target": ["kind"],
        "features": ["x", "z"],
        "validation": 0.3,
        "test": 0.3,
    }
    run = Run.create(tmp_path / "run", {"task": "classify", "data": values}, {"data": data.digest})
    assert open_table(run, tmp_path).digest == data.digest
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text() + "0.5,0.5,up,1,2\n")
    with pytest.raises(RunError, match=r"not those .* was trained on"):
        open_table(run, tmp_path)
    text = Run.create(tmp_path / "text", {"data": {}}, {})
    with pytest.raises(UsageError, match="learns from text"):
        open_table(text, tmp_path)


def test_an_image_is_drawn_and_an_answer_is_a_sentence() -> None:
    data = prepare_table(TableConfig(), "classes", base=Path())
    drawn = show_row(data.columns, data.train.inputs[0]).splitlines()
    assert 6 <= len(drawn) <= 8 and any("█" in line for line in drawn) and max(map(len, drawn)) <= 16
    answer = np.full(10, 0.02)
    answer[3] = 0.82
    assert say(data.columns, answer, 3) == "says 3 (82%), and it is 3"
    assert say(data.columns, answer, 5) == "says 3 (82%), but it is 5 (2%)"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_answers_are_saved_with_a_column_for_each_class(tmp_path: Path, suffix: str) -> None:
    from pyarrow import csv, parquet

    answers = [{"class": "a", "probability": 0.75, "probabilities": {"a": 0.75, "b": 0.25}}] * 2
    path = save_predictions(answers, tmp_path / f"answers{suffix}")
    delimiter = csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",")
    found = parquet.read_table(path) if suffix == ".parquet" else csv.read_csv(path, parse_options=delimiter)
    row = {"class": "a", "probability": 0.75, "probability of a": 0.75, "probability of b": 0.25}
    assert found.to_pylist() == [row] * 2
    with pytest.raises(UsageError, match=r"\.parquet"):
        save_predictions(answers, tmp_path / "answers.xlsx")
