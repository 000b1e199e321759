"""Killed at any moment, the same command again, and nothing shows it: losses, samples, consumed text, weights.

Every process here is a real one and is ended by a real SIGKILL: at chosen moments of its life, and at random ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from trainer import Trainer

VARIANTS: dict[str, tuple[str, ...]] = {
    "adamw fp32": (),
    "muon bf16": ("--optimizer.kind", "muon", "--engine.precision", "bf16"),
    "adafactor autocast": ("--optimizer.kind", "adafactor", "--engine.precision", "autocast"),
}
MOMENTS = [
    "writes: learning a tokenizer",
    "writes: encoding with",
    "asks: os.rename+tokens",
    "asks: os.mkdir+killed",
    "asks: os.rename+recipe.toml",
    "asks: os.rename+tokenizer.json",
    "writes: choosing how",
    "writes: using fp32",
    'writes: "event": "start"',
    'writes: "event": "step"+"step": 1,',
    "asks: open+.step-00000003+optimizer.safetensors",
    "asks: os.rename+.step-00000003",
    'writes: "event": "checkpoint"',
    'writes: "event": "validation"+"step": 4',
    'writes: "event": "sample"+"step": 4',
    "asks: open+.step-00000006+manifest.json",
    'writes: "event": "step"+"step": 7,',
    "asks: os.rename+step-00000003",  # an older one is thinned out
    'writes: "event": "step"+"step": 12,',
    "asks: os.rename+.step-00000012",
    "asks: open+model.safetensors+model",
    'writes: "event": "attention"',
    'writes: "event": "cost"',
    "asks: os.rename+report.html",
]
"""In the order in which a run comes to them."""


def killed(at: str, n: int = 1) -> tuple[dict[str, Any], ...]:
    return ({"at": at, "do": "SIGKILL", "n": n},)


@pytest.fixture(scope="module")
def undisturbed(module_trainer: Trainer) -> dict[str, dict[str, Any]]:
    """What each variant comes to when nothing happens to it."""
    stories = {}
    for number, (name, flags) in enumerate(VARIANTS.items()):
        assert module_trainer(f"undisturbed-{number}", *flags).exit == 0
        stories[name] = module_trainer.story(f"undisturbed-{number}")
    return stories


def test_the_same_command_twice_gives_the_same_numbers(
    module_trainer: Trainer, undisturbed: dict[str, dict[str, Any]]
) -> None:
    assert module_trainer("twice").exit == 0
    assert module_trainer.story("twice") == undisturbed["adamw fp32"]
    assert undisturbed["adamw fp32"]["model"] != undisturbed["muon bf16"]["model"]


def test_a_run_killed_at_every_chosen_moment_in_turn_comes_to_the_same_end(
    module_trainer: Trainer, undisturbed: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for moment in MOMENTS:
        ended = module_trainer("killed", plans=killed(moment), GLASSFORMER_HOME=str(tmp_path))
        assert ended.exit == -signal.SIGKILL, (moment, ended.said)
    assert module_trainer("killed", GLASSFORMER_HOME=str(tmp_path)).exit == 0
    assert module_trainer.story("killed") == undisturbed["adamw fp32"]
    run = module_trainer.run("killed")
    assert (
        run.verify() == [] and (run.path / "report.html").exists() and (run.path / "tokenizer.json").exists()
    )
    assert [path.name for path in run.checkpoints.rglob(".*")] == []
    assert len([event for event in run.events.read() if event["event"] == "start"]) == 1


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "adamw fp32"])
def test_every_way_to_compute_goes_on_to_the_bit(
    module_trainer: Trainer, undisturbed: dict[str, dict[str, Any]], variant: str
) -> None:
    run, flags = f"again-{variant}", VARIANTS[variant]
    for moment in (
        '"event": "step"+"step": 2,',
        '"event": "step"+"step": 5,',
        '"event": "validation"+"step": 8',
    ):
        assert module_trainer(run, *flags, plans=killed(f"writes: {moment}")).exit == -signal.SIGKILL
    assert module_trainer(run, *flags).exit == 0
    assert module_trainer.story(run) == undisturbed[variant]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_random_moments_comes_to_the_same_end(module_trainer: Trainer, seed: int) -> None:
    longer = ("--train.steps", "60", "--train.checkpoint_every", "7", "--train.seed", str(seed), "--optimizer.kind",
              "muon", "--engine.precision", "bf16", "--train.save_beside", "true")  # fmt: skip
    began = time.monotonic()
    assert module_trainer(f"whole-{seed}", *longer).exit == 0
    whole = time.monotonic() - began
    chance, exits = random.Random(seed), []
    while not exits or exits[-1] != 0:
        pid = module_trainer.start(f"random-{seed}", *longer)
        if len(exits) < 5:
            time.sleep(whole * (chance.uniform(0.1, 0.9) if exits else 0.2))
            os.kill(pid, signal.SIGKILL)
        exits.append(module_trainer.end(pid).exit)
    assert -signal.SIGKILL in exits
    assert module_trainer.story(f"random-{seed}") == module_trainer.story(f"whole-{seed}")


def test_a_run_that_was_moved_and_renamed_goes_on(
    module_trainer: Trainer, undisturbed: dict[str, dict[str, Any]]
) -> None:
    assert module_trainer("here", plans=killed('writes: "event": "step"+"step": 8,')).exit == -signal.SIGKILL
    (module_trainer.folder / "elsewhere").mkdir()
    (module_trainer.folder / "here").rename(module_trainer.folder / "elsewhere" / "Zoë's run")
    resumed = module_trainer("elsewhere/Zoë's run")
    assert resumed.exit == 0 and resumed.all("resumed")[0]["step"] == 6
    assert module_trainer.story("elsewhere/Zoë's run") == undisturbed["adamw fp32"]


def test_a_run_trained_to_its_end_is_trained_no_further(
    module_trainer: Trainer, undisturbed: dict[str, dict[str, Any]]
) -> None:
    assert module_trainer("ended").exit == 0
    again = module_trainer("ended")
    assert again.exit == 0 and not again.all("step") and again.events[-1]["event"] == "done"
    assert module_trainer.story("ended") == undisturbed["adamw fp32"]


def test_one_flipped_bit_costs_the_steps_since_the_checkpoint_before_and_says_so(
    module_trainer: Trainer, undisturbed: dict[str, dict[str, Any]]
) -> None:
    module_trainer("flipped", plans=killed('writes: "event": "step"+"step": 8,'))
    file = module_trainer.run("flipped").checkpoints / "step-00000006" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0b100
    file.write_bytes(content)
    resumed = module_trainer("flipped")
    (event,) = resumed.all("resumed")
    assert resumed.exit == 0 and (event["step"], event["lost_steps"]) == (3, 3)
    assert "step-00000006/optimizer.safetensors" in event["findings"][0]
    assert module_trainer.story("flipped") == undisturbed["adamw fp32"]


def test_without_a_whole_checkpoint_training_does_not_begin_again_unasked(module_trainer: Trainer) -> None:
    module_trainer("broken", plans=killed('writes: "event": "step"+"step": 8,'))
    run = module_trainer.run("broken")
    for file in run.checkpoints.glob("*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    refused = module_trainer("broken")
    assert (
        refused.exit == 3
        and "No checkpoint of this run is whole" in refused.said
        and "--fresh" in refused.said
    )
    assert (
        not refused.all("step")
        and sorted(path.name for path in run.checkpoints.glob("step-*"))[0] == "step-00000003"
    )
    fresh = module_trainer("broken", "--fresh")
    assert fresh.exit == 0 and len(fresh.all("step")) == 12
    assert (run.path / "before-1" / "checkpoints" / "step-00000006").is_dir()
