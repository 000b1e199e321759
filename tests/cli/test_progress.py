"""A run as it happens: plain lines off a terminal, a bar on one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glassformer.cli.progress import Progress
from glassformer.run.folder import Run

EVENTS: list[dict[str, Any]] = [
    {"event": "engine", "candidates": [{"name": "fp32", "tokens_per_second": 13e3}, {"name": "bf16", "error": "no"}]},
    {"event": "start", "steps": 4, "parameters": 1_049_728, "tokens_per_step": 2048, "device": "cpu"},
    {"event": "warning", "message": "3 of 622 documents are empty."},
    {"event": "step", "step": 1, "loss": 7.6351, "tokens_per_second": 28200.0, "utilisation": 0.283},
    {"event": "validation", "step": 2, "loss": 5.04891, "bits_per_byte": 2.34},
    {"event": "sample", "step": 2, "prompt": "def ", "text": "f(x):\n    [red]return[/red] :x:"},
    {"event": "checkpoint", "step": 2, "path": "step-00000002", "seconds": 0.03, "bytes": 100},
    {"event": "step", "step": 3, "loss": "NaN", "tokens_per_second": 28200.0, "utilisation": 0.283},
    {"event": "attention", "layer": 0, "head": 0, "tokens": [], "pattern": []},
    {"event": "done", "steps": 4},
]  # fmt: skip


def test_off_a_terminal_every_event_is_a_plain_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(tmp_path) as progress:
        for event in EVENTS:
            progress.event(event)
    captured = capsys.readouterr()
    assert captured.out == "" and "\x1b" not in captured.err and "\r" not in captured.err
    lines = captured.err.splitlines()
    assert lines[:4] == [
        "  fp32: 13k tokens/s", "  bf16: no", "1.05M parameters; 4 steps of 2.05k tokens on cpu",
        "warning: 3 of 622 documents are empty.",
    ]  # fmt: skip
    assert lines[4].startswith("step 1/4  loss 7.635  28.2k tok/s  28% of peak")
    assert lines[5] == "step 2: validation loss 5.0489, 2.340 bits/byte"
    assert lines[6:9] == ["step 2 writes:", "  | def f(x):", "  |     [red]return[/red] :x:"]
    assert lines[10].startswith("step 3/4  loss nan  2.340 bits/byte  28.2k tok/s")


def test_a_resumed_run_knows_how_far_it_has_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tmp_path / "run", {"name": "x"}, {})
    run.events.append("start", steps=400)
    with Progress(run.path) as progress:
        progress.event(
            {"event": "resumed", "step": 200, "lost_steps": 3, "findings": ["step-00000203: damaged"]}
        )
        progress.event(EVENTS[3] | {"step": 210})
    shown = capsys.readouterr().err
    assert "going on from step 200" in shown and "damaged" in shown and "step 210/400" in shown


def test_on_a_terminal_there_is_a_bar_with_the_time_left_even_in_80_columns(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    code = f"""
from pathlib import Path
from glassformer.cli.progress import Progress
with Progress(Path({str(tmp_path)!r})) as progress:
    for event in {EVENTS!r}:
        progress.event(event)
"""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "━" in text and "3/4  loss nan" in text and "of peak" in text and "…" not in text


def test_a_run_on_rows_counts_rows_and_says_what_it_is_judged_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = EVENTS[1] | {"tokens_per_step": 64, "unit": "row"}
    with Progress(tmp_path) as progress:
        for event in (
            begun, {"event": "validation", "step": 2, "loss": 0.5, "accuracy": 0.975, "ece": 0.0123},
            EVENTS[3], {"event": "validation", "step": 3, "loss": 0.5, "rmse": {"a": 1.0}, "r2": 0.25},
            {"event": "sample", "step": 3, "prompt": "x 1\n", "text": "says cat (90%), and it is cat"},
            {"event": "calibration", "verdict": "It can be taken at its word."},
        ):  # fmt: skip
            progress.event(event)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1.05M parameters; 4 steps of 64 rows on cpu"
    assert lines[1] == "step 2: validation loss 0.5000, accuracy 97.50%, ECE 0.012"
    assert lines[2].startswith("step 1/4  loss 7.635  accuracy 97.50%  28.2k rows/s")
    assert lines[3] == "step 3: validation loss 0.5000, R² 0.250"
    assert lines[4:7] == ["step 3:", "  | x 1", "  | says cat (90%), and it is cat"]
    assert lines[7] == "says 70%, right 70%? It can be taken at its word."
