"""A run that was really trained, spoiled on disk, scrubbed and mended from the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from as_a_user import Answer

import glassformer as gf

Program = Callable[..., Answer]
NAME = "runs/tiny-1"


def flip(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_by_scrub_and_brought_back_by_repair(
    project: Path, run: Program
) -> None:
    shutil.copytree(NAME, "backup")
    whole = run("runs", "scrub", NAME)
    assert whole.exit_code == 0 and whole.out.startswith(f"{NAME}: whole (") and " read)" in whole.out
    newest = project / NAME / "checkpoints/step-00000006"
    before = (newest / "optimizer.safetensors").read_bytes()
    flip(newest / "optimizer.safetensors")
    (newest.parent / ".step-00000008.partial-4711").mkdir()
    dry = run("runs", "scrub", NAME, "--dry-run")
    assert dry.exit_code == 3 and "would be set aside: step-00000006" in dry.out and newest.exists()
    scrubbed = run("runs", "scrub")
    assert scrubbed.exit_code == 3 and "runs repair" in scrubbed.err
    for told in ("damaged (", "step-00000006/optimizer.safetensors, tensor ", "set aside: step-00000006",
                 "removed: checkpoints/.step-00000008.partial-4711", "goes on from step 4: 2 steps lost"):  # fmt: skip
        assert told in scrubbed.out
    assert not newest.exists()
    mended = run("runs", "repair", NAME, "--from", "backup")
    assert mended.exit_code == 0 and "mended: step-00000006, from the replica" in mended.out
    assert (newest / "optimizer.safetensors").read_bytes() == before
    again = run("runs", "scrub", "--json").document
    assert again["whole"] and again["runs"][0]["newest"] == 6 and again["runs"][0]["findings"] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_of_a_trained_run_is_made_again_from_its_last_checkpoint(
    project: Path, run: Program, precision: str
) -> None:
    name = NAME if precision == "fp32" else "runs/tiny-2"
    if precision == "bf16":
        assert run("train", "tiny.toml", "--engine.precision", "bf16", "--run", name).exit_code == 0
    weights = project / name / "model/model.safetensors"
    before = weights.read_bytes()
    flip(weights)
    assert run("generate", name).exit_code == 3
    done = run("runs", "repair", name, "--json").document
    assert done["whole"] and done["mended"] == [
        {"what": "model", "how": "from the checkpoint of step 6", "kept": "model-bad-1"}
    ]
    assert weights.read_bytes() == before and run("generate", name, "--max-tokens", "3").exit_code == 0
    assert gf.Run.open(project / name).scrub().whole


def test_what_cannot_be_mended_is_exit_code_3_and_the_same_train_command_writes_the_model_anew(
    project: Path, run: Program
) -> None:
    config = project / NAME / "model/config.json"
    before = (project / NAME / "model/model.safetensors").read_bytes()
    flip(config)
    answer = run("runs", "repair", NAME)
    assert answer.exit_code == 3 and "model/config.json" in answer.out and "glassformer train" in answer.err
    assert run("train", "tiny.toml", "--run", NAME).exit_code == 0
    assert (project / NAME / "model/model.safetensors").read_bytes() == before
    assert run("runs", "scrub", NAME).exit_code == 0


def test_a_run_without_a_readable_recipe_can_still_be_scrubbed_and_mended(
    project: Path, run: Program
) -> None:
    shutil.copytree(NAME, "backup")
    before = (project / NAME / "recipe.toml").read_bytes()
    flip(project / NAME / "recipe.toml", before.index(b"="))
    assert run("runs", "scrub").exit_code == 3  # found among all runs, though it cannot be opened
    assert run("runs", "repair", NAME, "--from", "backup").exit_code == 0
    assert (project / NAME / "recipe.toml").read_bytes() == before
    refused = run("runs", "repair", NAME, "--from", "texts")
    assert refused.exit_code == 1 and "is not a run" in refused.err
