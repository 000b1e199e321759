"""`glassformer step`: the table, the document and the chart say what the function says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import glassformer as gf
from glassformer.cli.main import main
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    config = gf.ModelConfig(vocab=257, width=16, layers=1, heads=2, context=32, init="xavier")
    path = tmp_path_factory.mktemp("step") / "model"
    gf.save_model(path, build(config), tokenizer)
    return path


def test_the_document_holds_what_the_function_gives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["step", str(folder), "the cat", "--optimizer", "sgd", "--rate", "0.1", "--momentum", "0.5"]
    assert main([*arguments, "--weight", "blocks.0.mlp.up.weight[3,5]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = gf.load(folder)
    sgd = torch.optim.SGD(model.model.parameters(), lr=0.1, momentum=0.5)
    view = gf.step_view(model, "the cat", sgd, weights="blocks.0.mlp.up.weight[3,5]")
    assert found == json.loads(json.dumps(view.to_dict()))
    assert (found["schema"], found["version"]) == ("glassformer.step", 1)


@pytest.mark.parametrize(
    ("show", "word"), [("weights", "gradient"), ("tensors", "relative"), ("tokens", "after")]
)
def test_each_table_is_shown_with_the_summary(
    folder: Path, show: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["step", str(folder), "the cat", "--show", show, "--samples", "3"]) == 0
    shown = capsys.readouterr().out
    assert "AdamW" in shown and "predicted change" in shown and word in shown


def test_the_chart_is_saved_and_nothing_else_changes(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (
        main(["step", str(folder), "the cat", "--optimizer", "adam", "--out", str(tmp_path / "c.json")]) == 0
    )
    spec = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert len(spec["data"]["values"]) == 6
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_setting_without_effect_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["step", str(folder), "the cat", "--momentum", "0.9"]) == 2
    assert "--momentum has no effect with --optimizer adamw" in capsys.readouterr().err
