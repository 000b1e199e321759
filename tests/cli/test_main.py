"""The program as a whole: verbs, exit codes, what an error looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import glassformer as gf
from glassformer.cli.main import build, main


def test_every_verb_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in ("train", "generate", "score", "convert", "runs", "text", "bench", "doctor"):
        assert f" {verb} " in shown


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == gf.__version__


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "--frsh"], "Did you mean --fresh?"),
        (["train", "--modle.width", "3"], "Did you mean --model?"),
        (["train", "--run"], "requires an argument"),
        (["train", "a.toml", "b.toml"], "b.toml"),
        (["generate"], "MODEL requires an argument"),
        (["generate", "runs/x", "--max-tokens", "many"], "many"),
        (["train", "demo", "--stop-after", "soon"], "90s"),
        (["train", "dmo"], "'demo'"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_was_meant(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and told in captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_error_says_what_was_expected_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", "nowhere"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: There is no run nowhere."
    assert len(told) == 3 and all(line.startswith("  ") for line in told[1:])


def test_a_traceback_is_shown_on_request_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["runs", "show", "nowhere"])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("GLASSFORMER_TRACEBACK", "1")
    main(["runs", "show", "nowhere"])
    assert "Traceback" in capsys.readouterr().err


def test_python_dash_m_is_the_same_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glassformer", "runs", "list", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"schema": "glassformer.runs", "version": 1, "runs": []}


def test_colour_follows_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, coloured in ((None, False), ("NO_COLOR", False), ("FORCE_COLOR", True)):
        with monkeypatch.context() as environment:
            if name:
                environment.setenv(name, "1")
            main(["doctor"])
        assert ("\x1b[" in capsys.readouterr().out) == coloured


def test_every_verb_has_help_without_side_effects(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (
        "train",
        "generate",
        "score",
        "convert",
        "runs list",
        "runs show",
        "runs verify",
        "runs consolidate",
        "text report",
        "bench",
        "doctor",
    ):
        assert main([*verb.split(), "--help"]) == 0
        assert "--json" in capsys.readouterr().out
    assert build() is not build()
