"""A run beside its plan: what holds, what does not, and the table of all checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import glassformer as gf
from glassformer.errors import RunError, UsageError
from glassformer.plan.check import calibration_rows, calibration_sentence, told_rows

STEPS, TOKENS = 40, 1024


def run_of(folder: Path, *, seconds: float = 0.5, done: bool = True, loss: float = 3.0) -> Path:
    """A finished run whose steps took so long."""
    recipe = {"name": "made", "task": "language", "train": {"steps": STEPS}}
    run = gf.Run.create(folder, recipe, {"machine": {"cpu": "A processor", "cores": 2}})
    log = run.events.append
    log("start", steps=STEPS, parameters=1000, tokens_per_step=TOKENS, flops_per_token=6000)
    for step in range(5, STEPS + 1, 5):
        log("step", step=step, loss=4.0, tokens_per_second=TOKENS / seconds)
    log("validation", step=STEPS, loss=loss)
    if done:
        log(
            "cost",
            flops=STEPS * TOKENS * 6000,
            seconds=STEPS * seconds,
            tokens=STEPS * TOKENS,
            peak_bytes=10**9,
        )
        log("done", steps=STEPS)
    run.events.close()
    return folder


def plan_of(path: Path, **changes: Any) -> Path:
    def number(value: float, share: float = 0.0) -> dict[str, float]:
        return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}

    made = {
        "schema": "glassformer.run_plan", "version": 1, "title": "made", "tokens_per_step": TOKENS,
        "step_seconds": number(0.5, 0.2), "bytes_per_accelerator": number(1e9, 0.05), "parameters": number(1000),
        "flops_full": number(2 * STEPS * TOKENS * 6000), "tokens": number(2 * STEPS * TOKENS), "loss": number(3.1, 0.1),
    }  # fmt: skip
    path.write_text(json.dumps({**made, **changes}), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "home"))


def test_a_run_that_went_as_planned_holds_and_is_kept_in_the_run_and_in_the_table(tmp_path: Path) -> None:
    """The plan was of twice as many tokens; FLOPs and time are compared for those that were trained."""
    run, plan = run_of(tmp_path / "run"), plan_of(tmp_path / "plan.json")
    found = gf.check_plan(run, plan)
    assert found.holds and found.planned_before
    assert [one["name"] for one in found.numbers] == [
        "step_seconds", "training_time", "bytes_per_accelerator", "flops_full", "parameters", "loss"
    ]  # fmt: skip
    assert all(one["error"] == pytest.approx(0, abs=0.05) for one in found.numbers)
    assert json.loads((run / "plan-check.json").read_text(encoding="utf-8")) == found.to_dict()
    assert len(calibration_rows()) == 6 and calibration_rows()[0]["machine"] == "A processor, 2 cores"
    assert calibration_sentence().startswith("4 of 4 intervals of 80 % held; a step's time was off by 0.0%")


def test_a_slow_run_does_not_hold_and_says_which_number(tmp_path: Path) -> None:
    found = gf.check_plan(run_of(tmp_path / "run", seconds=0.9), plan_of(tmp_path / "plan.json"))
    assert [one["name"] for one in found.numbers if not one["inside"]] == ["step_seconds", "training_time"]
    assert [row["inside"] for row in found.rows] == ["NO", "NO", "yes", "yes", "yes", "yes"]
    assert found.rows[0]["off by"] == "+80.0%" and "4 of 6" in found.sentence()


def test_a_run_that_is_checked_again_replaces_its_line_and_others_stand_beside_it(tmp_path: Path) -> None:
    run, plan = run_of(tmp_path / "run"), plan_of(tmp_path / "plan.json")
    for _ in range(3):
        gf.check_plan(run, plan)
    gf.check_plan(run_of(tmp_path / "other", seconds=0.55), plan)
    table = tmp_path / "home" / "data" / "plan" / "checks.jsonl"
    with table.open("a") as lines:
        lines.write('{"torn')
    assert {row["run"] for row in calibration_rows()} == {"run", "other"} and len(calibration_rows()) == 12
    assert told_rows(calibration_rows())[0]["planned"] == "500 ms"


def test_the_plan_in_the_runs_folder_is_taken_where_none_is_given(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    plan_of(run / "plan.json", parameters={"value": 1100, "low": 1100, "high": 1100})
    found = gf.check_plan(run)
    assert found.planned_before and [one["name"] for one in found.numbers if not one["inside"]] == [
        "parameters"
    ]


def test_what_is_no_finished_run_or_no_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finished"):
        gf.check_plan(run_of(tmp_path / "run", done=False))
    with pytest.raises(RunError, match="no run"):
        gf.check_plan(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is not a plan"):
        gf.check_plan(run_of(tmp_path / "done"), plan_of(tmp_path / "other.json", schema="glassformer.law"))
    assert calibration_sentence([]).startswith("No run was checked yet")
