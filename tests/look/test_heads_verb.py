"""`glassformer heads`: the terminal, the document and the chart say what `gf.heads` returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import glassformer as gf
from glassformer.cli.main import main
from glassformer.model.stacks import build

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind="bytes"), [b""])
    config = gf.ModelConfig(vocab=257, width=32, layers=2, heads=4, context=48, init="xavier")
    return gf.save_model(tmp_path_factory.mktemp("made") / "model", build(config), tokenizer)


def test_the_document_is_what_the_function_returns(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--repeats", "3", "--length", "10", "--seed", "4", "--json", "--device", "cpu"]
    assert main(["heads", str(model), TEXT, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    found = gf.heads(gf.load(model), TEXT, repeats=3, length=10, seed=4).to_dict()
    heads = [{key: pytest.approx(value, abs=1e-5) for key, value in row.items()} for row in found["heads"]]
    assert told["schema"] == "glassformer.heads" and told["heads"] == heads and len(heads) == 8
    assert told["second_half"] == pytest.approx(found["second_half"], abs=1e-5)
    assert told["measured_on"] == found["measured_on"] and "".join(told["tokens"]) == TEXT


def test_the_table_ranks_by_the_score_that_was_asked_for_and_says_where_each_comes_from(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heads", str(model), TEXT, "--by", "first_token", "--top", "3", "--repeats", "2"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].split()[:3] == ["name", "first", "token"]
    names = [line.split()[0] for line in lines if line.startswith(" L")]
    ranked = gf.heads(gf.load(model), TEXT, repeats=2).ranked("first_token", top=3)
    assert names == [row["name"] for row in ranked]
    assert any(line.startswith("from the text") and "entropy" in line for line in lines)
    assert any(line.startswith("loss on 24 random tokens") for line in lines)


def test_the_chart_is_saved_and_a_score_that_is_not_there_answered_with_the_nearest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads.json"
    assert main(["heads", str(model), "--by", "entropy", "--repeats", "2", "--out", str(out)]) == 0
    title = json.loads(out.read_text(encoding="utf-8"))["title"]
    assert title == "entropy, measured on random tokens"
    assert main(["heads", str(model), "--by", "indction", "--repeats", "2"]) == 2
    assert "'induction'" in capsys.readouterr().err
