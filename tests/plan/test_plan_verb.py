"""`glassformer plan ...` as somebody types it: exit codes, one document, warnings beside the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_check import plan_of, run_of

from glassformer.cli.main import main

ON = ["--hardware", "h100-sxm", "--count", "64"]


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["plan", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_lists_and_claims_are_one_document_each(capsys: pytest.CaptureFixture[str]) -> None:
    presets = document(capsys, "presets")["presets"]
    hardware = document(capsys, "hardware")["hardware"]
    claims = document(capsys, "claims")["claims"]
    assert isinstance(presets, list) and {"gpt2-small", "deepseek-v3"} <= {one["name"] for one in presets}
    assert isinstance(hardware, list) and len(hardware) >= 30 and all(one["source"] for one in hardware)
    assert isinstance(claims, list) and [one["name"] for one in claims] == [
        "C1",
        "C2",
        "C3",
        "C4",
        "C5",
        "C6",
    ]
    assert all(one["verdict"] in ("supported", "refuted", "depends") for one in claims)


def test_the_answer_goes_to_stdout_and_warnings_to_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "plan.html"
    assert main(["plan", "llama-3.1-8b", "--tokens", "1T", *ON, "--days", "0.5", "--html", str(page)]) == 0
    shown = capsys.readouterr()
    assert "What it takes" in shown.out and "warning" not in shown.out
    assert "warning: " in shown.err and "days are more than the 12 hours given" in shown.err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_one_number_opens_and_a_slip_is_met_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-8b", *ON, "--explain", "goodput"]) == 0
    assert "drawn 400 times" in capsys.readouterr().out
    for arguments, words in (
        (["llama-3.1-8b", *ON, "--explain", "goodputt"], "'goodput'"),
        (["llama-3.1-8bb", *ON], "did you mean"),
        (["llama-3.1-8b", "--hardware", "h1000"], "did you mean"),
        (["llama-3.1-8b", *ON, "--layout", "tensor=5"], "do not make 64"),
        (["--budget", "1e3 FLOPs", *ON], "At least"),
    ):
        assert main(["plan", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_checking_a_run_says_no_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "home"))
    assert main(["plan", "calibration"]) == 0
    assert "No run was checked yet" in capsys.readouterr().out
    plan = plan_of(tmp_path / "plan.json")
    assert main(["plan", "check", str(run_of(tmp_path / "good")), "--plan", str(plan)]) == 0
    assert main(["plan", "check", str(run_of(tmp_path / "slow", seconds=2.0)), "--plan", str(plan)]) == 3
    assert "time of a step" in capsys.readouterr().out
    assert main(["plan", "calibration"]) == 0
    assert "6 of 8 intervals of 80 % held" in capsys.readouterr().out
