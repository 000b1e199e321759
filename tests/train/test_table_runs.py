"""Rows learned by the one trainer: killed and resumed to the bit, judged in the target's own unit, refused in words."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score
from trainer import Trainer

import glassformer as gf
from glassformer.errors import ConfigError, TextError, UsageError
from glassformer.model.network import STEP_WARNING
from glassformer.run.tensors import read_tensors
from glassformer.train.recipe import TableRecipe, load_recipe

RECIPE = """\
name = "rows"
task = "{task}"

[data]
paths = ["rows.csv"]
target = {target}
validation = 0.25
test = 0.25

[model]
hidden = [8]
dropout = 0.2

[train]
steps = 12
batch = 8
accumulate = 2
checkpoint_every = 3
validate_every = 4
sample_every = 6
log_every = 1
"""
LONGER = {"train.steps": 200, "optimizer.learning_rate": 0.03}
TARGETS = {"classify": '"kind"', "regress": '"weight"', "marks": '["funny", "sad"]'}


def write_rows(folder: Path, count: int = 160) -> Path:
    chance = random.Random(0)
    lines = ["age,colour,kind,weight,funny,sad"]
    for _ in range(count):
        age, colour = chance.uniform(1, 90), chance.choice(["red", "green"])
        kind = "old" if age > 45 else "young"
        weight = 50 + age / 2 + 10 * (colour == "red") + chance.gauss(0, 1)
        lines.append(f"{age:.2f},{colour},{kind},{weight:.1f},{int(age > 20)},{int(chance.random() < 0.5)}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for task, target in TARGETS.items():
        (folder / f"{task}.toml").write_text(RECIPE.format(task=task, target=target), encoding="utf-8")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


def trained(rows: Path, task: str, **overrides: Any) -> gf.Run:
    return gf.train(rows / f"{task}.toml", run=rows / "run", overrides=overrides)


@pytest.mark.parametrize("more", [(), ("--optimizer.kind", "muon", "--engine.precision", "bf16")])
def test_a_run_on_rows_killed_at_every_stage_comes_to_the_same_end(
    trainer: Trainer, more: tuple[str, ...]
) -> None:
    write_rows(trainer.folder)
    assert trainer("whole", *more, what="classify.toml").exit == 0
    moments = [
        "asks: os.rename+recipe.toml", "asks: os.rename+columns.json", 'writes: "event": "step"+"step": 5,',
        'writes: "event": "validation"+"step": 8', 'writes: "event": "calibration"', "asks: os.rename+report.html",
    ]  # fmt: skip
    for moment in moments:
        plans = ({"at": moment, "do": "SIGKILL", "n": 1},)
        assert trainer("killed", *more, what="classify.toml", plans=plans).exit == -signal.SIGKILL, moment
    assert trainer("killed", *more, what="classify.toml").exit == 0
    assert trainer.story("killed") == trainer.story("whole")
    assert trainer.run("killed").verify() == []


def test_classes_are_judged_by_accuracy_and_ece_and_the_report_shows_the_calibration(rows: Path) -> None:
    run = trained(rows, "classify", **LONGER)
    during, last = run.events.curve("validation")[0], run.judged()
    assert 0 <= during["accuracy"] <= 1 and "ece" not in during
    model, data = gf.load_network(run.path), gf.open_table(run, rows)
    said = [answer["class"] for answer in gf.predict(model, rows / "rows.csv")]
    truth = [line.split(",")[2] for line in (rows / "rows.csv").read_text().splitlines()[1:]]
    right = np.array(said) == np.array(truth)
    assert last["accuracy"] == right[data.validation.rows].mean() > 0.9
    assert last["test_accuracy"] == right[data.test.rows].mean()
    event = run.events.last("calibration")
    assert event is not None and event["part"] == "test" and event["accuracy"] == last["test_accuracy"]
    assert "Says 70%, right 70%?" in (run.path / "report.html").read_text("utf-8")
    assert run.events.last("done")["accuracy"] == last["accuracy"]  # type: ignore[index] # it is done


def test_numbers_are_judged_in_their_own_unit_as_scikit_learn_does(rows: Path) -> None:
    run = trained(rows, "regress", **LONGER)
    data, columns = gf.open_table(run, rows), (rows / "rows.csv").read_text().splitlines()[1:]
    wanted = np.array([float(line.split(",")[3]) for line in columns])
    said = np.array([answer["weight"] for answer in gf.predict(gf.load_network(run.path), rows / "rows.csv")])
    for part, prefix in ((data.validation, ""), (data.test, "test_")):
        y, p = wanted[part.rows], said[part.rows]
        assert run.judged()[f"{prefix}r2"] == pytest.approx(r2_score(y, p), abs=1e-5)
        assert run.judged()[f"{prefix}rmse"] == pytest.approx(float(np.sqrt(((y - p) ** 2).mean())), rel=1e-5)
    assert run.events.last("calibration") is None
    start = run.events.last("start")
    assert start is not None and (start["unit"], start["loss_unit"]) == ("row", "squared error, standardised")


def test_yes_and_no_are_judged_column_by_column(rows: Path) -> None:
    run = trained(rows, "marks", **LONGER)
    assert run.judged()["accuracy"] > 0.6  # one column can be told, the other is a coin
    event = run.events.last("calibration")
    assert event is not None and event["kind"] == "marks" and event["mistakes"] == []
    sample = run.events.curve("sample")[-1]
    assert "age " in sample["prompt"] and "funny" in sample["text"] and "and it is" in sample["text"]


def test_hidden_layers_before_a_step_keep_the_weights_they_started_with(rows: Path) -> None:
    run = trained(rows, "classify", **{"model.activation": "step", "optimizer.weight_decay": 0.5})
    assert STEP_WARNING in [event["message"] for event in run.events.read() if event["event"] == "warning"]
    start = dict(gf.Network(gf.load_network(run.path).network.config, seed=0).named_parameters())
    end = read_tensors(run.model / "model.safetensors")
    assert all(start[name].equal(end[name]) == name.startswith("layers.") for name in start)


def test_the_network_of_a_run_that_was_stopped_can_be_used_and_says_so(rows: Path) -> None:
    recipe, base = load_recipe(rows / "classify.toml")
    with pytest.raises(gf.GlassformerError, match="Stopped after step"):
        list(gf.training(recipe, base=base, run=rows / "run", stop_after=0.0))
    model = gf.load_network(rows / "run")
    assert "weights at step 1" in model.warnings[0] and len(gf.predict(model, rows / "rows.csv")) == 160


def test_rows_of_ones_own_are_learned_by_the_demos_settings_for_the_task_asked_for(rows: Path) -> None:
    demo = load_recipe(task="classify").recipe
    for task, head in (("classify", "distribution"), ("regress", "number"), ("marks", "scores")):
        recipe = load_recipe(rows / "rows.csv", {"data.target": "kind"}, task=task).recipe
        assert isinstance(recipe, TableRecipe) and recipe.model.head == head
        assert (recipe.task, recipe.name, recipe.train) == (task, "rows", demo.train)
        assert recipe.data.test == 0 and recipe.about.text == ""
    with pytest.raises(UsageError, match=r"Task 'regress' has no demo.*--data.target"):
        load_recipe(task="regress")


def test_settings_without_effect_on_rows_are_refused_all_at_once() -> None:
    values = {
        "task": "regress", "model": {"head": "scores"}, "engine": {"attention": "fused"},
        "train": {"steps": 1, "sample_prompts": ["a"], "z_loss": 1e-4, "label_smoothing": 0.1},
    }  # fmt: skip
    with pytest.raises(ConfigError) as raised:
        load_recipe(values)
    said = str(raised.value)
    for told in (
        "model.head 'number', not 'scores'",
        "sample_prompts",
        "z_loss",
        "label_smoothing",
        "attention",
    ):
        assert told in said, (told, said)


def test_sizes_that_do_not_fit_the_data_are_refused(rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.inputs is 7, but the data has 6 inputs"):
        trained(rows, "classify", **{"model.inputs": 7})


@pytest.mark.parametrize(
    ("content", "target", "told"),
    [
        ("", "y", "cannot be read"),
        ("x,y\n", "y", "has no rows"),
        ("x,y\n1,a\n2,b\n", "z", "There is no column 'z'"),
        ("x,y\n1,a\nnan,b\n", "y", "missing or not finite: 'x' in 1 row (2)"),
        ("x,y\n" + "".join(f"word{n},{n % 2}\n" for n in range(50)), "y", "text with 50 different values"),
        ("x,y\n1,a\n2,a\n", "y", "the same value in every row"),
    ],
)
def test_a_table_that_cannot_be_learned_is_refused_in_words(
    tmp_path: Path, content: str, target: str, told: str
) -> None:
    (tmp_path / "bad.csv").write_text(content, encoding="utf-8")
    with pytest.raises(TextError) as raised:
        gf.train(
            tmp_path / "bad.csv", task="classify", run=tmp_path / "run", overrides={"data.target": target}
        )
    assert told in str(raised.value) and not (tmp_path / "run").exists()


def test_a_class_with_one_row_is_learned_or_warned_about(tmp_path: Path) -> None:
    rows = "".join(f"{n},{'a' if n % 2 else 'b'}\n" for n in range(60))
    (tmp_path / "one.csv").write_text(f"x,y\n{rows}999,c\n", encoding="utf-8")
    changes = {"data.target": "y", "data.validation": 0.9, "train.steps": 2}
    run = gf.train(tmp_path / "one.csv", task="classify", run=tmp_path / "run", overrides=changes)
    said = [event["message"] for event in run.events.read() if event["event"] == "warning"]
    assert any("Classes without a training row: c" in message for message in said)
