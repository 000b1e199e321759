"""The verbs that look inside, through the program: their tables, their documents, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import glassformer as gf
from glassformer.cli.main import main
from glassformer.cli.terminal import table
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer

ON_A_TEXT = (
    ["look"], ["explain"], ["lens"], ["heads"], ["ablate", "--what", "L0H0"], ["blame"], ["blame", "--integrated"],
    ["step"], ["view", "neuron", "--layer", "0", "--neuron", "0"], ["view", "positions"],
)  # fmt: skip
"""Every verb that reads one text."""
WITH_A_CHART = (
    ["look"], ["lens"], ["heads"], ["ablate", "--what", "L0H0"], ["blame"], ["step"], ["view", "positions"],
    ["view", "neuron", "--layer", "0", "--neuron", "0"], ["view", "sampling"],
)  # fmt: skip


def _on(verb: list[str], *given: str) -> list[str]:
    """The command with what is read before its options."""
    first = 2 if verb[0] == "view" else 1
    return [*verb[:first], *given, *verb[first:]]


def _saved(path: Path, *, broken: bool = False) -> str:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    model = build(gf.ModelConfig(vocab=257, width=16, layers=2, heads=2, context=32, init="xavier"))
    if broken:
        model.get_parameter("blocks.0.mlp.up.weight").data[0, 0] = torch.nan
    gf.save_model(path, model, tokenizer)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _saved(tmp_path_factory.mktemp("look") / "model")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _saved(tmp_path_factory.mktemp("look") / "broken", broken=True)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "run"
    assert main(["train", "--task", "classify", "--train.steps", "2", "--run", str(path)]) == 0
    return str(path)


@pytest.mark.parametrize("verb", ON_A_TEXT, ids=" ".join)
@pytest.mark.parametrize("text", ["", "x" * 33], ids=["none", "too long"])
def test_a_text_that_does_not_fit_is_one_block_with_the_length_and_the_context(
    verb: list[str], text: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_on(verb, folder, text)) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[:2] == [
        f"error: The text has {len(text)} tokens.", "  Expected 1 to 32, the model's context."
    ]  # fmt: skip
    assert shown.out == ""


@pytest.mark.parametrize("verb", WITH_A_CHART, ids=" ".join)
def test_a_chart_goes_where_it_was_asked_for_or_the_missing_folder_is_named(
    verb: list[str], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, nowhere = tmp_path / "chart.json", tmp_path / "nowhere" / "chart.json"
    assert main([*_on(verb, folder, "the cat"), "--out", str(there)]) == 0
    assert json.loads(there.read_text())
    assert main([*_on(verb, folder, "the cat"), "--out", str(nowhere)]) == 1
    error = capsys.readouterr().err
    assert f"error: There is no folder {nowhere.parent}" in error and "Make the folder" in error
    assert main([*_on(verb, folder, "the cat"), "--out", str(tmp_path / "chart.foo")]) != 0
    assert "cannot be saved as chart.foo" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    [*(each for each in ON_A_TEXT if each[0] in ("look", "lens", "heads", "ablate", "view", "step")),
     ["patch", "--loss"]],
    ids=" ".join,
)  # fmt: skip
def test_weights_that_are_not_finite_are_named(
    verb: list[str], broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(_on(verb, broken, "the cat", *(["the dog"] if verb[0] == "patch" else [])))
    assert "warning: blocks.0.mlp.up.weight: 1 of 1,024 weights are not finite." in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    [each for each in ON_A_TEXT if each[0] in ("look", "lens", "heads", "ablate", "view")] + [["blame"]],
    ids=" ".join,
)
def test_no_rows_are_not_a_table(verb: list[str], folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_on(verb, folder, "the cat"), "--top", "0"]) == 2
    assert "--top" in capsys.readouterr().err


def test_tokens_are_shown_alike_everywhere(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["look"], ["blame"], ["ablate", "--what", "L0H0"], ["step", "--show", "tokens"]):
        assert main(_on(verb, folder, "a b\n")) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert any("·" in line for line in lines) and any("\\n" in line for line in lines), verb


def test_a_column_of_zeros_that_says_which_stays(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"position": 0, "rank of x": 0, "lost": 0, "loss": 1.0}])
    assert capsys.readouterr().out.split()[:4] == ["position", "rank", "of", "x"]
    table([{"position": None, "lost": 0, "loss": 1.0}])
    assert capsys.readouterr().out.split()[0] == "loss"


def test_look_with_a_file_and_a_document_gives_both(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["look", folder, "the cat", "--place", "blocks.0.resid_post", "--json", "--out"]
    assert main([*command, str(tmp_path / "trace.npz")]) == 0
    assert json.loads(capsys.readouterr().out)["places"][0]["place"] == "blocks.0.resid_post"
    assert (tmp_path / "trace.npz").stat().st_size > 0
    assert main([*command, str(tmp_path / "page.html")]) == 2
    assert "no effect with --out page.html" in capsys.readouterr().err


def test_one_token_alone_is_no_fault_of_the_program(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", folder, "a", "--what", "L0H0"]) == 2
    assert "No token here has a loss." in capsys.readouterr().err
    assert main(["ablate", folder, "ab", "--what", "L0H0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["effects"][0]["low"] is None, "one token has no interval"


def test_texts_that_do_not_differ_leave_nothing_to_recover(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["patch", folder, "the cat", "the cat", "--loss"]) == 2
    assert "nothing to recover" in capsys.readouterr().err


def test_draws_and_rates_that_cannot_be_are_refused(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "sampling", folder, "a", "--draws", "100000000000"]) == 2
    assert "100,000,000,000 draws" in capsys.readouterr().err
    for rate in ("nan", "0", "inf"):
        assert main(["step", folder, "the cat", "--rate", rate]) == 2
        assert f"--rate is {float(rate)}" in capsys.readouterr().err


def test_a_plain_network_is_told_apart_from_a_model_of_text(
    network: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    neuron = ["--layer", "0", "--neuron", "0"]
    assert main(["view", "neuron", network, "python:digits", *neuron]) == 2
    assert "--rows python:digits" in capsys.readouterr().err
    assert main(["view", "neuron", folder, "--rows", "python:digits", *neuron]) == 2
    assert "holds a model of text" in capsys.readouterr().err
    assert main(["probe", network, "python:digits"]) == 2
    assert "plain network, which reads no text" in capsys.readouterr().err
    assert main(["look", network, "python:digits"]) == 0
    shown = capsys.readouterr().out
    assert "What it says" in shown and "Tokens" not in shown


def test_a_reader_of_a_pipe_that_goes_away_is_no_failure(folder: str) -> None:
    command = [sys.executable, "-m", "glassformer", "explain", folder, "the cat"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout and program.stderr
        program.stdout.close()
        assert (program.wait(timeout=120), program.stderr.read()) == (141, "")
