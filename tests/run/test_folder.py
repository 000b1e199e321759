"""A run folder: made, opened, locked, listed, summed up."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from glassformer.errors import RunError, RunLocked
from glassformer.run.folder import SUMMARY, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "first", {"model": {"width": 8, "kv_heads": None}}, {"data": "d1"})


def test_a_run_opens_as_it_was_made_and_settings_without_a_value_are_left_out(run: Run) -> None:
    opened = Run.open(run.path)
    assert opened.recipe == run.recipe == {"model": {"width": 8}}
    assert opened.manifest == {"data": "d1"}
    assert tomllib.loads((run.path / "recipe.toml").read_text()) == opened.recipe


def test_a_run_that_is_there_is_not_overwritten_and_fresh_keeps_it_beside(run: Run) -> None:
    run.events.append("step", step=1, loss=1.0)
    with pytest.raises(RunError, match="--fresh"):
        Run.create(run.path, {}, {})
    for number in (1, 2):
        fresh = Run.create(run.path, {"number": number}, {}, fresh=True)
        assert fresh.rows() == [] and fresh.recipe == {"number": number}
    assert Run.open(run.path / "before-1").rows()[0]["loss"] == 1.0
    assert Run.open(run.path / "before-2").recipe == {"number": 1}


def test_opening_what_is_not_a_run_says_what_is_near(run: Run) -> None:
    with pytest.raises(RunError, match=r"is not a run.*In it are the runs first"):
        Run.open(run.path.parent)
    with pytest.raises(RunError, match="There is no run"):
        Run.open(run.path / "nowhere")


def test_a_place_that_cannot_be_written_is_refused_with_a_sentence() -> None:
    with pytest.raises(RunError, match=r"cannot be written.*--run"):
        Run.create(Path("/dev/null/run"), {}, {})


def test_a_recipe_that_was_damaged_is_refused_with_a_sentence(run: Run) -> None:
    (run.path / "recipe.toml").write_text("= 3")
    with pytest.raises(RunError, match="cannot be read"):
        Run.open(run.path)


def test_runs_are_listed_by_name(run: Run) -> None:
    Run.create(run.path.with_name("another"), {}, {})
    run.path.with_name("not a run").mkdir()
    assert [found.name for found in Run.list(run.path.parent)] == ["another", "first"]
    assert Run.list(run.path / "nowhere") == []


def test_the_lock_is_let_go_after_an_error_and_nobody_is_said_to_have_been_killed(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock() as held, pytest.raises(RunLocked), Run.open(run.path).lock():
        pass
    assert held.took_over is None and run.events.last("warning") is None


def test_a_summary_has_every_key_from_the_start_and_fills_up(run: Run) -> None:
    assert run.summary() == {"run": "first", "status": "new", **dict.fromkeys(SUMMARY)}
    with run.lock():
        run.events.append("start", parameters=1234)
        run.events.append(
            "step", step=10, loss=2.5, tokens=640, tokens_per_second=320.0, utilisation=0.4, seconds=2.0
        )
        run.events.append("validation", step=10, loss=2.6, bits_per_byte=1.9)
        summary = run.summary()
        assert summary["status"] == "running"
        assert summary["steps"] == 10 and summary["train_loss"] == 2.5 and summary["tokens"] == 640
        assert (
            summary["val_loss"] == 2.6
            and summary["val_bits_per_byte"] == 1.9
            and summary["parameters"] == 1234
        )
    assert run.summary()["status"] == "killed"
    run.events.append("done", steps=10, train_loss=2.4, flops=1e12, seconds=2.5)
    summary = run.summary()
    assert summary["status"] == "done" and summary["train_loss"] == 2.4 and summary["flops"] == 1e12


def test_a_notebook_shows_the_summary_with_units(run: Run) -> None:
    run.events.append("done", steps=10, tokens=12_345_678, seconds=90.2, train_loss=2.41234, flops=1.5e15)
    shown = run._repr_html_()
    assert all(text in shown for text in ("first", "12.3M", "1m 30s", "2.412", "1.5 PFLOP"))
