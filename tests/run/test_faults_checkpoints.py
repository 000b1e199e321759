"""Real faults in checkpoints: killed saves, flipped bits, missing and swapped files, nothing good left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_saver import same, save, state_at

from glassformer.errors import CheckpointError
from glassformer.run import checkpoints

NEW, OLD = "step-00000200", "step-00000100"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0b0000_0100
    path.write_bytes(content)


def falls_back(folder: Path, *words: str) -> None:
    """Verify names the fault, and so does loading, which sets the bad one aside and gives the older."""
    assert any(all(word in str(finding) for word in words) for finding in checkpoints.verify(folder))
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None and loaded.step == 100 and loaded.lost_steps == 100
    assert same(loaded.tensors, state_at(100)) and loaded.state == {"step": 100}
    assert any(all(word in str(finding) for word in words) for finding in loaded.findings)
    assert [entry.name for entry in checkpoints.list_checkpoints(folder)] == [OLD, f"{NEW}-bad-1"]
    assert checkpoints.verify(folder) == []


# 1, 2 and 8: killed


@pytest.fixture(scope="module")
def deaths() -> list[dict[str, Any]]:
    program = Path(__file__).with_name("killed_saver.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=False, env=environment
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_save_killed_before_any_of_its_operations_leaves_the_newest_whole_one_loadable(
    deaths: list[dict[str, Any]],
) -> None:
    rows = [row for row in deaths if row["mode"] == "boundaries" and row["keep"] == 1]
    steps = [row["step"] for row in rows]
    assert sum(row["died"] for row in rows) >= 12
    assert steps == sorted(steps) and set(steps) == {100, 200}
    assert all(row["identical"] and not row["findings"] for row in rows)


def test_saving_the_same_step_again_and_being_killed_never_leaves_the_step_missing(
    deaths: list[dict[str, Any]],
) -> None:
    rows = [row for row in deaths if row["mode"] == "boundaries" and row["keep"] == 2]
    assert sum(row["died"] for row in rows) >= 8
    assert all(row["step"] == 100 and row["identical"] and not row["findings"] for row in rows)


def test_a_save_ended_by_the_kernel_at_a_byte_boundary_is_ignored(deaths: list[dict[str, Any]]) -> None:
    rows = [row for row in deaths if row["mode"] == "bytes"]
    assert len(rows) == 12
    assert all(row["died"] and row["step"] == 100 and row["identical"] for row in rows)


def test_saves_killed_at_random_moments_never_lose_a_whole_one_even_when_one_is_kept(
    deaths: list[dict[str, Any]],
) -> None:
    rows = [row for row in deaths if row["mode"] == "moments"]
    assert all(row["identical"] and not row["findings"] and row["step"] >= row["before"] for row in rows)
    assert rows[-1]["step"] > rows[0]["before"]


def test_what_a_killed_save_left_is_listed_and_then_cleaned(deaths: list[dict[str, Any]]) -> None:
    assert any(row["partial"] for row in deaths)
    assert not any(row["left"] for row in deaths)


def test_the_partial_folder_of_a_living_process_is_left_alone(folder: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    partial = folder / f".step-00000300.partial-{sleeper.pid}"
    try:
        partial.mkdir()
        assert checkpoints.clean(folder) == []
    finally:
        sleeper.kill()
        sleeper.wait()
    assert checkpoints.clean(folder) == [partial.name]


def test_retention_keeps_the_newest_and_every_nth(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in range(10, 80, 10):
        checkpoints.save(folder, step, state_at(step), {}, keep=2, keep_every=30)
    assert [entry.step for entry in checkpoints.list_checkpoints(folder)] == [30, 60, 70]


def test_nothing_old_is_removed_when_the_new_one_does_not_read_back(folder: Path) -> None:
    """A disk that returns other bytes than were written: flipped between the rename and the reading back."""
    real = os.fsync

    def flipping(handle: int) -> None:
        real(handle)
        if (folder / "step-00000300").exists():
            flip(folder / "step-00000300" / "model.safetensors", -1)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match="does not read back"):
        patch.setattr(os, "fsync", flipping)
        save(folder, 300, keep=1)
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None and loaded.step == 200 and loaded.lost_steps == 100


# 3 and 4: damaged


@pytest.mark.parametrize(
    ("file", "place", "words"),
    [
        ("model.safetensors", -1, ["tensor half", "CRC-32", "SHA-256"]),
        ("model.safetensors", -10_000, ["tensor weight", "CRC-32", "SHA-256"]),
        ("optimizer.safetensors", -5, ["tensor moment"]),
        ("optimizer.safetensors", 60, ["SHA-256"]),
        ("model.safetensors", 3, ["SHA-256"]),
        ("state.json", 4, ["state.json", "SHA-256"]),
        ("manifest.json", 40, ["manifest.json", "digest"]),
        ("manifest.json", -1, ["manifest.json", "digest"]),
    ],
)
def test_one_flipped_bit_is_named_and_the_older_checkpoint_is_used(
    folder: Path, file: str, place: int, words: list[str]
) -> None:
    flip(folder / NEW / file, place)
    falls_back(folder, f"{NEW}/{file}", *words)


def test_every_single_flipped_bit_of_a_small_checkpoint_is_found(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 1, {"model": {"a": torch.arange(2), "b": torch.ones(())}}, {"lr": 0.1})
    for file in sorted(path.iterdir()):
        for place in range(file.stat().st_size):
            flip(file, place)
            found = checkpoints.verify(tmp_path)
            assert found and found[0].file == file.name, f"{file.name} byte {place}"
            flip(file, place)
    assert checkpoints.verify(tmp_path) == []


def test_a_truncated_file_is_named(folder: Path) -> None:
    os.truncate(folder / NEW / "model.safetensors", 1000)
    falls_back(folder, "model.safetensors", "1,000 bytes")


def test_a_file_of_no_bytes_is_named(folder: Path) -> None:
    os.truncate(folder / NEW / "optimizer.safetensors", 0)
    falls_back(folder, "optimizer.safetensors", "0 bytes")


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / NEW / file).unlink()
    falls_back(folder, file, "missing")


def test_an_extra_file_is_named(folder: Path) -> None:
    shutil.copy(folder / NEW / "model.safetensors", folder / NEW / "model-2.safetensors")
    falls_back(folder, "model-2.safetensors", "not in the manifest")


def test_a_file_of_another_step_is_named_with_that_step(folder: Path) -> None:
    shutil.copy(folder / OLD / "model.safetensors", folder / NEW / "model.safetensors")
    falls_back(folder, "model.safetensors", "its header says", "step 100", "expected", "step 200")


def test_two_swapped_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (100, 200):
        ranks = {f"rank-{rank}": {"moment": torch.full((8,), float(rank))} for rank in (0, 1)}
        checkpoints.save(folder, step, ranks, {})
    one, other = folder / NEW / "rank-0.safetensors", folder / NEW / "rank-1.safetensors"
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    found = [str(finding) for finding in checkpoints.verify(folder)]
    assert "file rank-1" in found[0] and "file rank-0" in found[1]
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None and loaded.step == 100


def test_a_whole_checkpoint_under_another_steps_name_is_named(folder: Path) -> None:
    shutil.rmtree(folder / NEW)
    shutil.copytree(folder / OLD, folder / NEW)
    falls_back(folder, "manifest.json", "belongs to")


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / NEW / "model.safetensors").unlink()
    (folder / NEW / "model.safetensors").mkdir()
    falls_back(folder, "model.safetensors")


def test_a_reader_that_does_not_own_the_run_changes_nothing(folder: Path) -> None:
    flip(folder / NEW / "model.safetensors", -1)
    loaded = checkpoints.load_newest(folder, set_aside=False)
    assert loaded is not None and loaded.step == 100 and loaded.findings
    assert [entry.name for entry in checkpoints.list_checkpoints(folder)] == [OLD, NEW]


# 5: nothing good left


def test_with_every_checkpoint_bad_nothing_starts_silently_however_often_one_tries(folder: Path) -> None:
    for name in (OLD, NEW):
        flip(folder / name / "model.safetensors", -1)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="--fresh") as refused:
            checkpoints.load_newest(folder)
        assert refused.value.exit_code == 3
        assert OLD in str(refused.value) and NEW in str(refused.value)


def test_a_run_whose_last_good_checkpoint_was_taken_away_does_not_start_silently(folder: Path) -> None:
    flip(folder / NEW / "model.safetensors", -1)
    checkpoints.load_newest(folder)
    shutil.rmtree(folder / OLD)
    with pytest.raises(CheckpointError, match="--fresh"):
        checkpoints.load_newest(folder)


def test_a_run_that_never_saved_starts_from_the_beginning(tmp_path: Path) -> None:
    assert checkpoints.load_newest(tmp_path / "checkpoints") is None
