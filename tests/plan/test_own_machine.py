"""A recipe on this machine: planned from its profile, kept beside a run, compared with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_here import even

import glassformer as gf
from glassformer.errors import GlassformerError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.count import flops_per_token, parameters
from glassformer.plan.machine import save_profile

MODEL = {"vocab": 500, "width": 96, "layers": 3, "heads": 3, "context": 64}
RECIPE = {
    "name": "small", "tokenizer": {"vocab": 500}, "model": MODEL,
    "train": {"steps": 50, "batch": 8, "accumulate": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "home"))
    save_profile(even())


def test_a_recipe_is_planned_on_this_machine_with_its_own_steps_batch_and_micro_batches() -> None:
    found = gf.plan(RECIPE)
    assert found.title == "small on this machine (here: abacus, 2 threads)" and found.own_machine
    assert found.steps.value == 50 and found.tokens.value == 50 * 8 * 64
    assert found.layout["micro_batch"] == 4 and found.layout["data"] == 1
    config = ModelConfig(**MODEL)
    assert found.parameters.value == parameters(config).total
    assert found.flops.value == pytest.approx(
        flops_per_token(config, "matmul_causal") * found.tokens.value, rel=1e-6
    )
    assert found.flops_full.value == pytest.approx(
        flops_per_token(config, "matmul") * found.tokens.value, rel=1e-9
    )
    assert found.step_seconds.value > 6 * 8 * 64 * parameters(config).non_embedding / 2e10
    assert found.dollars.value < 0.01 and "the machine is yours" in found.dollars.formula


def test_minutes_become_the_steps_that_fit_into_them() -> None:
    found = gf.plan({**RECIPE, "train": {"minutes": 2, "batch": 8}})
    assert found.days_undisturbed.value == pytest.approx(2 / 1440, rel=0.02)
    assert any("minutes" in warning for warning in found.warnings)


def test_here_is_a_name_for_this_machine_and_it_is_one() -> None:
    found = gf.plan(hardware="here", days="2 h")
    assert found.own_machine and found.days.value == pytest.approx(2 / 24, rel=0.1)
    with pytest.raises(UsageError, match="this machine is one"):
        gf.plan(RECIPE, count=2)
    assert gf.plan(RECIPE, hardware="h100-sxm", count=1).own_machine is False


def test_a_plain_network_is_planned_too_and_says_how_little_is_known() -> None:
    digits = gf.plan("demo-digits", {"model.inputs": 64, "model.outputs": 10})
    assert digits.parameters.value == 64 * 256 + 256 + 256 * 10 + 10 or digits.parameters.value > 0
    assert digits.step_seconds.high > 5 * digits.step_seconds.low
    with pytest.raises(GlassformerError, match="not known yet"):
        gf.plan("demo-digits")


def test_an_encoder_that_guesses_hidden_tokens_computes_the_head_for_those_alone() -> None:
    found = gf.plan(
        {
            **RECIPE,
            "task": "mask",
            "model": {**MODEL, "kind": "encoder"},
            "tokenizer": {"vocab": 500},
            "mask": {"share": 0.2},
        }
    )
    config = ModelConfig(**MODEL, kind="encoder")
    assert found.flops_full.value == pytest.approx(
        flops_per_token(config, "matmul", predicted=13 / 64) * found.tokens.value, rel=1e-6
    )


def test_without_a_profile_the_first_thing_to_do_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "new"))
    with pytest.raises(GlassformerError, match="glassformer bench"):
        gf.plan(RECIPE)


def test_a_plan_on_the_terminal_is_one_that_train_and_check_can_read(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\n[tokenizer]\nvocab = 500\n[model]\nwidth = 96\nlayers = 3\nheads = 3\ncontext = 64\n'
        "[train]\nsteps = 50\nbatch = 8\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "glassformer", "plan", str(recipe)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    from glassformer.train.drift import Drift, read_plan

    path = tmp_path / "plan.json"
    path.write_text(done.stdout, encoding="utf-8")
    plan = read_plan(path)
    assert plan["parameters"]["value"] == parameters(ModelConfig(**MODEL)).total
    assert json.loads(done.stdout)["layout"]["value"]["micro_batch"] == 8
    slow = {"event": "step", "step": 1, "tokens_per_second": 512 / (3 * plan["step_seconds"]["value"])}
    drift = Drift(plan, tokens_per_step=512)
    assert [one["what"] for _ in range(5) for one in drift.look(slow)] == ["step_seconds"]
    shown = subprocess.run([*command, "--explain", "days"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "as glassformer bench measured" in shown.stdout
