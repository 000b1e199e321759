"""A run that was planned says when it leaves its plan, once, and when it is back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_table_runs import write_rows

import glassformer as gf
from glassformer.errors import UsageError
from glassformer.train.drift import Drift, read_plan

PARAMETERS = 6 * 8 + 8 + 8 * 2 + 2


def plan(parameters: float = PARAMETERS, **fields: Any) -> dict[str, Any]:
    seconds = {"value": 1e-6, "low": 5e-7, "high": 2e-6}
    return {"schema": "glassformer.run_plan", "version": 1, "parameters": {"value": parameters},
            "step_seconds": seconds, "tokens_per_step": 8, **fields}  # fmt: skip


def step(number: int, seconds: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "tokens_per_second": 100 / seconds}


def test_a_slow_step_is_told_once_and_once_more_when_it_is_quick_again() -> None:
    seconds = {"value": 1.0, "low": 0.8, "high": 1.25}
    drift = Drift({"step_seconds": seconds, "tokens_per_step": 100}, tokens_per_step=100)
    told = [
        fields
        for number, took in enumerate([1, 1, 9, 1, 1, *[2.0] * 6, *[1.0] * 6], start=1)
        for fields in drift.look(step(number, took))
    ]
    assert [(one["step"], one["inside"], one["value"]) for one in told] == [(7, False, 2.0), (14, True, 1.0)]
    assert told[0]["message"] == "a step takes 2 s; planned were 1, 0.8 to 1.25 s"


def test_a_run_with_a_larger_batch_than_planned_is_held_to_a_larger_time() -> None:
    seconds = {"value": 1.0, "low": 0.8, "high": 1.25}
    drift = Drift({"step_seconds": seconds, "tokens_per_step": 50}, tokens_per_step=100)
    assert not [fields for number in range(9) for fields in drift.look(step(number, 2.0))]


def test_the_loss_is_compared_with_what_was_expected_after_so_many_tokens() -> None:
    rows = [{"tokens": 100.0, "value": 8.0, "low": 7.0, "high": 9.0},
            {"tokens": 10_000.0, "value": 2.0, "low": 1.9, "high": 2.1}]  # fmt: skip
    drift = Drift({"step_seconds": {}, "loss_at": rows}, tokens_per_step=100)
    told = [
        fields
        for number, loss in ((1, 8.5), (10, 4.05), (100, 2.5))
        for fields in drift.look({"event": "validation", "step": number, "loss": loss})
    ]
    assert [one["step"] for one in told] == [100]
    assert told[0]["what"] == "loss" and told[0]["planned"] == pytest.approx(2.0)


def test_a_run_keeps_its_plan_tells_its_drift_and_goes_on_telling_after_a_stop(tmp_path: Path) -> None:
    rows, path = write_rows(tmp_path), tmp_path / "plan.json"
    path.write_text(json.dumps(plan()), encoding="utf-8")
    run = gf.train(rows / "classify.toml", run=rows / "run", plan=path)
    told = [event for event in run.events.read() if event["event"] == "drift"]
    assert [(one["what"], one["inside"]) for one in told] == [("step_seconds", False)]
    assert read_plan(run.path / "plan.json") == plan()
    assert (run.events.last("cost") or {})["peak_bytes"] > 0
    again = Drift.of(run, 8)
    assert again and not [x for number in range(9) for x in again.look(step(number, 100.0))]


def test_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    rows, path = write_rows(tmp_path), tmp_path / "plan.json"
    path.write_text(json.dumps(plan(4.06e11)), encoding="utf-8")
    with pytest.raises(UsageError, match="of a model with 406,000,000,000 parameters"):
        gf.train(rows / "classify.toml", run=rows / "run", plan=path)
    path.write_text('{"schema": "glassformer.law"}', encoding="utf-8")
    with pytest.raises(UsageError, match="is not a plan"):
        read_plan(path)
