"""A ladder from text to forecast: run, stopped, gone on with, spoilt, refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_ladder import BUDGET, RULES, Here, recipe

import glassformer as gf
from glassformer.errors import RunLocked, Stopped, UsageError
from glassformer.scale.ladder import best_factor, safe_factor


def climb(base: Path, folder: Path, **options: Any) -> gf.Ladder:
    settings: dict[str, Any] = {"budget": BUDGET, "rules": RULES, "on": Here(), **options}
    return gf.ladder(recipe(base), folder=folder, **settings)


@pytest.fixture(scope="module", autouse=True)
def without_charts() -> Any:
    """As without the extra `plots`: reports take no seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vl_convert", None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture(scope="module")
def done(base: Path) -> gf.Ladder:
    return climb(base, base / "ladders")


def test_a_ladder_forecasts_the_rung_it_held_back_from_the_others_alone(done: gf.Ladder) -> None:
    top = done.design.held_back
    fitted = [done.folder / "runs" / path_of(done, rung.name) for rung in done.design.fitted]
    forecaster = gf.Forecaster.of(gf.scale_points(fitted))
    again = forecaster.forecast(N=float(top.parameters), D=float(top.tokens))
    run = gf.Run.open(done.folder / "runs" / top.name).summary()
    assert (run["parameters"], run["tokens"], run["flops"]) == (top.parameters, top.tokens, top.flops)
    assert done.truth == run["val_loss"]
    assert done.forecast.loss == again.loss
    assert done.error == again.loss / run["val_loss"] - 1
    low, high = again.intervals[0.5]
    assert done.inside(0.5) == (low <= run["val_loss"] <= high)


def test_a_plan_is_the_design_of_the_ladder_and_writes_nothing(
    base: Path, done: gf.Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = Here()
    plan = gf.plan_ladder(recipe(base), budget=BUDGET, rules=RULES, on=trainer)
    assert [rung.steps for rung in plan.rungs] == [rung.steps for rung in done.design.rungs]
    assert set(trainer.trained) == {"probe"}
    assert list(tmp_path.iterdir()) == []


def path_of(found: gf.Ladder, name: str) -> str:
    spot = name in {rung.name for rung in found.design.spots}
    return f"{name}-x{found.factor:g}" if spot else name


def test_every_rung_is_a_run_like_any_other_decayed_to_the_end(done: gf.Ladder) -> None:
    digests = set()
    for rung in done.design.rungs:
        run = gf.Run.open(done.folder / "runs" / path_of(done, rung.name))
        assert run.summary()["status"] == "done"
        assert run.summary()["parameters"] == rung.parameters
        assert run.rows()[-1]["learning_rate"] == 0.0
        assert run.recipe["optimizer"]["learning_rate"] == rung.learning_rate * done.factor
        digests.add((run.manifest["data"], run.manifest["tokenizer"], run.recipe["model"]["context"]))
    assert len(digests) == 1


def test_the_learning_rate_is_the_best_of_neighbouring_ones_on_two_rungs(done: gf.Ladder) -> None:
    assert set(done.tried) == {rung.name for rung in done.design.spots}
    for losses in done.tried.values():
        assert {0.5, 1.0, 2.0} <= set(losses)
    assert done.factor == safe_factor(done.tried)
    at_edge = [name for name, losses in done.tried.items() if min(losses, key=losses.__getitem__) in
               (min(losses), max(losses))]  # fmt: skip
    assert [w for w in done.warnings if "edge" in w] == [
        f"the best learning rate of {name} is at the edge of those tried, "
        f"{min(done.tried[name], key=done.tried[name].__getitem__):g} times the rule's"
        for name in at_edge
    ]


def test_the_best_factor_is_that_of_all_rungs_together() -> None:
    assert best_factor({"a": {0.5: 2.0, 1.0: 2.1, 2.0: 3.0}, "b": {0.5: 2.2, 1.0: 2.0, 2.0: 3.0}}) == 1.0
    assert best_factor({"a": {0.5: math.inf, 1.0: math.inf, 2.0: 3.0}}) == 2.0
    assert best_factor({"a": {0.5: math.inf, 1.0: math.inf, 2.0: math.inf}}) == 1.0


def test_the_factor_that_is_taken_is_not_the_highest_that_is_still_good() -> None:
    first, second = (
        {0.5: 3.749, 1.0: 3.739, 2.0: 3.731, 4.0: 4.101},
        {0.5: 3.356, 1.0: 3.356, 2.0: 3.31, 4.0: 3.352},
    )
    assert best_factor({"a": first, "b": second}) == 2.0 and safe_factor({"a": first, "b": second}) == 1.0
    assert safe_factor({"a": {0.5: 3.0, 1.0: 3.01, 2.0: 3.5}}) == 0.5
    assert safe_factor({"a": {0.5: 4.0, 1.0: 3.0, 2.0: 3.5}}) == 1.0
    assert safe_factor({"a": {0.5: math.inf, 1.0: math.inf, 2.0: math.inf}}) == 1.0


def test_what_is_told_is_what_the_file_and_the_table_hold(done: gf.Ladder) -> None:
    saved = json.loads((done.folder / "ladder.json").read_text())
    assert saved["result"]["error"] == done.error
    assert saved["result"]["truth"] == done.truth
    assert [row["loss"] for row in done.rows()] == [done.losses[rung.name] for rung in done.design.rungs]
    assert gf.Design.of(saved["design"]) == done.design
    assert f"{done.error:+.2%}" in done.facts()["error"]
    assert done.noise is not None
    assert 0 < done.noise.loss < 0.1
    assert 0 < done.noise.difference < 0.1


def test_what_models_make_of_their_context_is_measured_and_where_they_make_nothing_of_it_told(
    done: gf.Ladder,
) -> None:
    assert done.noise is not None
    top = done.design.held_back.name
    assert list(done.noise.context_gains)[-1] == top
    assert len(done.noise.context_gains) == 3
    told = any("makes nothing of the further context" in warning for warning in done.warnings)
    assert told == (list(done.noise.context_gains.values())[1] < 0.05)


def test_a_ladder_that_is_stopped_goes_on_to_the_same_losses_to_the_bit(base: Path, done: gf.Ladder) -> None:
    lost = [rung.name for rung in done.design.rungs if not rung.spot][-3:]
    folder, half, rest = copied(base, done, "stopped", *lost), Here(stop_before=lost[1]), Here()
    with pytest.raises(Stopped):
        climb(base, folder, on=half)
    again = climb(base, folder, on=rest)
    assert (half.trained, rest.trained) == (lost[:1], lost[1:])
    assert dict(again.losses) == dict(done.losses)
    assert again.forecast.loss == done.forecast.loss


def test_a_finished_ladder_trains_nothing_again(base: Path, done: gf.Ladder) -> None:
    trainer = Here()
    again = climb(base, base / "ladders", on=trainer)
    assert trainer.trained == []
    assert again.error == done.error
    assert again.seconds > done.seconds


def test_a_rung_that_fails_is_told_and_left_out_of_the_fit(base: Path, done: gf.Ladder) -> None:
    lost = done.design.fitted[0].name
    folder = copied(base, done, "failed", lost)
    trainer = Here(changed={lost: {"optimizer": {"learning_rate": 1e6}, "faults": {"not_finite": "stop"}}})
    found = climb(base, folder, on=trainer)
    assert trainer.trained == [lost]
    assert lost not in found.losses
    assert any(warning.startswith(f"{lost} is left out: ") for warning in found.warnings)
    assert found.forecaster.law.points is not None
    assert len(found.forecaster.law.points) == len(done.design.fitted) - 1
    assert found.forecast.loss != done.forecast.loss


def test_without_the_rung_held_back_there_is_a_forecast_and_no_error(base: Path, done: gf.Ladder) -> None:
    lost = done.design.held_back.name
    found = climb(
        base, copied(base, done, "no-top", lost), on=Here(changed={lost: {"optimizer": {"kind": "no"}}})
    )
    assert found.truth is found.error is found.inside() is None
    assert found.forecast.loss == done.forecast.loss
    assert any("nothing tests the forecast" in warning for warning in found.warnings)
    assert json.loads((found.folder / "ladder.json").read_text())["result"]["error"] is None


def copied(base: Path, done: gf.Ladder, name: str, *without: str) -> Path:
    """The finished ladder in another folder, without some rungs."""
    folder = base / name
    shutil.copytree(done.folder, folder / done.folder.name)
    for rung in without:
        shutil.rmtree(folder / done.folder.name / "runs" / path_of(done, rung))
    return folder


def test_a_ladder_is_not_gone_on_with_for_another_budget_recipe_or_text(base: Path, done: gf.Ladder) -> None:
    with pytest.raises(UsageError, match="was designed for a budget of 10h 00m"):
        climb(base, base / "ladders", budget="5h")
    with pytest.raises(UsageError, match="was designed for another recipe"):
        climb(base, base / "ladders", overrides={"optimizer.weight_decay": 0.3})
    folder = copied(base, done, "other-text")
    text = base / "text.txt"
    before = text.read_text()
    text.write_text(before + "another line")
    try:
        with pytest.raises(UsageError, match="The data and the tokenizer changed since"):
            climb(base, folder)
    finally:
        text.write_text(before)


def test_two_processes_do_not_climb_one_ladder(base: Path, done: gf.Ladder) -> None:
    import fcntl

    with (done.folder / "ladder.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunLocked, match="in use by another process"):
            climb(base, base / "ladders")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer.kind": "lion"}, "There is no rule for the learning rate of lion"),
        ({"data.validation": "0"}, "Nothing is held out"),
    ],
)
def test_what_cannot_be_a_ladder_is_refused_with_the_reason(
    base: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        climb(base, tmp_path, overrides=changes)


def test_a_ladder_is_of_language_models(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this recipe is for task 'classify'"):
        gf.ladder("demo-digits", folder=tmp_path)


def test_without_ray_one_sentence_says_what_to_install(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="--on ray needs Ray, which is not installed") as refused:
        climb(base, tmp_path, on="ray")
    assert refused.value.do == "pip install 'glassformer[cluster]'"
