"""A table as a user has it: train, predict, calibrate, look at the run, and what is refused."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from as_a_user import Answer

import glassformer as gf

Program = Callable[..., Answer]
TRAIN = (
    "train",
    "rows.csv",
    "--task",
    "classify",
    "--data.target",
    "kind",
    "--data.test",
    "0.3",
    "--data.validation",
    "0.3",
    "--model.hidden",
    "[8]",
)
STEPS = ("--train.steps", "300")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(3)
    lines = ["x,colour,kind,size"]
    for _ in range(300):
        x = chance.gauss(0, 1)
        kind = "up" if x + chance.gauss(0, 0.7) > 0 else "down"
        lines.append(f"{x:.3f},{chance.choice(['red', 'blue'])},{kind},{2 * x + 5:.3f}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_a_table_is_learned_predicted_calibrated_and_shown(folder: Path, run: Program) -> None:
    trained = run(*TRAIN, *STEPS)
    assert trained.exit_code == 0, trained.err
    assert "steps of 64 rows" in trained.err and "says 70%, right 70%?" in trained.err
    assert "test accuracy" in trained.out and "glassformer predict runs/rows-1" in trained.err

    shown = run("predict", "runs/rows-1", "rows.csv")
    assert shown.exit_code == 0 and len(shown.out.strip().splitlines()) == 302 and "probability" in shown.out
    predictions = run("predict", "runs/rows-1", "rows.csv", "--json", "--out", "answers.csv").document[
        "predictions"
    ]
    assert predictions == gf.predict(gf.load_network("runs/rows-1"), "rows.csv")
    with (folder / "answers.csv").open(encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [answer["class"] for answer in predictions]

    measured = run("calibrate", "runs/rows-1", "--json", "--out", "reliability.svg").document
    assert measured["schema"] == "glassformer.calibration" and measured["part"] == "test"
    event = gf.Run.open(Path("runs/rows-1")).events.last("calibration")
    assert event is not None and measured["ece"] == event["ece"] and measured["bins"] == event["bins"]
    assert "as trained" in (folder / "reliability.svg").read_text(encoding="utf-8")
    applied = run("calibrate", "runs/rows-1", "--apply")
    assert "ECE by chance" in applied.out and "Stored with the model" in applied.err
    assert run("runs", "verify").out == "runs/rows-1: whole\n"
    scaled = run("predict", "runs/rows-1", "rows.csv", "--json").document["predictions"]
    assert [a["class"] for a in scaled] == [a["class"] for a in predictions] and scaled != predictions

    assert "accuracy" in run("runs", "list").out
    shown = run("runs", "show", "runs/rows-1")
    assert "rows per second" in shown.out and "tokens" not in shown.out
    document = run("runs", "show", "runs/rows-1", "--json").document
    assert document["tokens"] == 300 * 64 and 0 < document["test_accuracy"] <= 1


def test_a_run_begins_from_the_weights_of_another(folder: Path, run: Program) -> None:
    run(*TRAIN, *STEPS)
    again = run(*TRAIN, "--init-from", "runs/rows-1", "--train.steps", "0", "--run", "again")
    assert again.exit_code == 0 and "4 tensors loaded" in again.err
    assert (folder / "again/model/model.safetensors").read_bytes() == (
        folder / "runs/rows-1/model/model.safetensors"
    ).read_bytes()


def test_a_dry_run_says_how_many_inputs_outputs_and_rows_there_are(folder: Path, run: Program) -> None:
    plan = run(*TRAIN, *STEPS, "--dry-run", "--json").document
    assert (plan["inputs"], plan["outputs"], plan["tokens"]) == (4, 2, 300 * 64)
    assert plan["training_tokens"] + plan["validation_tokens"] + plan["test_rows"] == 300
    assert "training rows" in run(*TRAIN, *STEPS, "--dry-run").out and not (folder / "runs").exists()


def test_a_network_is_refused_in_words_where_text_is_needed_and_the_other_way_round(
    folder: Path, run: Program
) -> None:
    run(*TRAIN, *STEPS)
    for model in ("runs/rows-1", "runs/rows-1/model"):
        refused = run("generate", model, "--prompt", "a")
        assert (
            refused.exit_code == 1 and "plain network" in refused.err and "glassformer predict" in refused.err
        )
    assert "There is no column 'x'" in run("predict", "runs/rows-1", "python:digits").err
    assert run("predict", "runs/nowhere", "rows.csv").exit_code == 1
    numbers = run("train", "rows.csv", "--task", "regress", "--data.target", "size", "--train.steps", "2")
    assert numbers.exit_code == 0 and "R²" in numbers.err
    assert "come without probabilities" in run("calibrate", "runs/rows-2").err


def test_rows_that_changed_are_not_taken_for_those_that_were_learned(folder: Path, run: Program) -> None:
    run(*TRAIN, *STEPS)
    (folder / "rows.csv").write_text((folder / "rows.csv").read_text() + "0.1,red,up,5\n")
    refused = run("calibrate", "runs/rows-1")
    assert refused.exit_code == 1 and "not those runs/rows-1 was trained on" in refused.err
