"""Scrubbing finds every kind of damage in a run, sets aside what a run can do without, and says where it goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from damage import everything, flip, names
from killed_saver import save

from glassformer.errors import RunError, RunLocked
from glassformer.run import checkpoints, reserve
from glassformer.run.exports import save_model
from glassformer.run.folder import Run
from glassformer.run.scrub import scrub
from glassformer.run.sealed import write_sealed

NEW, OLD = "step-00000200", "step-00000100"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two checkpoints, a model, a bundle and a log."""
    run = Run.create(tmp_path / "run", {"name": "a", "train": {"steps": 200}}, {"data": "d1"})
    run.events.append("start", steps=200)
    for step in (100, 200):
        save(run.checkpoints, step, keep=2)
        run.events.append("step", step=step, loss=1.0)
    save_model(run.model, config={"v": 1}, tensors={"w": torch.ones(9)}, tokenizer=b'{"t": 1}')
    bundle, about = run.path / "faults" / "step-00000150", {"kind": "fault", "step": 150}
    write_sealed(bundle, {"batch": {"ids": torch.arange(5)}}, {"fault.json": b"{}"}, about)
    run.events.close()
    return run


def test_a_whole_run_is_read_and_left_as_it_is(run: Run) -> None:
    before = everything(run.path)
    found = run.scrub()
    assert found.whole and (found.newest, found.lost_steps) == (200, 0)
    assert not found.set_aside and not found.left_overs and not found.torn_lines
    sealed = 4 + 4 + 4 + 3  # of each checkpoint, the model and the bundle
    assert found.num_files == sealed + len(("recipe.toml", "manifest.json", "events.jsonl"))
    assert found.num_bytes == sum(map(len, before.values()))
    assert everything(run.path) == before


PLACES = {
    f"checkpoints/{NEW}/model.safetensors": "tensor half",
    f"checkpoints/{NEW}/optimizer.safetensors": "tensor moment",
    f"checkpoints/{NEW}/state.json": "SHA-256",
    f"checkpoints/{OLD}/manifest.json": "digest",
    "model/model.safetensors": "tensor w",
    "model/config.json": "SHA-256",
    "faults/step-00000150/batch.safetensors": "tensor ids",
    "faults/step-00000150/manifest.json": "digest",
}


@pytest.mark.parametrize("place", PLACES)
def test_one_flipped_bit_anywhere_is_named_and_a_damaged_checkpoint_set_aside(run: Run, place: str) -> None:
    flip(run.path / place)
    there = everything(run.path)
    dry = run.scrub(dry_run=True)
    assert not dry.whole and everything(run.path) == there
    found = run.scrub()
    folder, file = place.split("/")[-2:]
    assert [(one.folder, one.file) for one in found.findings] == [(folder, file)]
    assert PLACES[place] in str(found.findings[0]) and found.set_aside == dry.set_aside
    if place.startswith("checkpoints"):
        assert found.set_aside == [folder] and f"{folder}-bad-1" in names(run.checkpoints)
        assert found.lost_steps == (100 if folder == NEW else 0)
        assert run.scrub().whole and checkpoints.verify(run.checkpoints) == []
    else:
        assert not found.set_aside and not run.scrub().whole


@pytest.mark.parametrize("file", ["recipe.toml", "manifest.json"])
def test_a_recipe_or_manifest_that_cannot_be_read_or_is_missing_is_named(run: Run, file: str) -> None:
    (run.path / file).write_bytes(b"\x00\xff")
    assert [(one.file, one.folder) for one in scrub(run.path).findings] == [(file, "run")]
    (run.path / file).unlink()
    assert "missing" in str(scrub(run.path).findings[0])


def test_a_torn_line_is_told_and_no_damage_and_a_line_that_is_no_event_is(run: Run) -> None:
    log = run.path / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "step", "ti')
    found = run.scrub()
    assert found.whole and found.torn_lines == [4]
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"loss"', b'"lo\x00s"').replace(b"}", b"]}", 1)
    log.write_bytes(b"".join(lines))
    found = run.scrub()
    assert [str(one) for one in found.findings] == ["run/events.jsonl: line 2 is no event"]
    assert 2 not in found.torn_lines


def test_what_killed_saves_left_is_listed_and_removed(run: Run) -> None:
    left = [
        "checkpoints/.step-00000300.partial-1",  # its pid lives, but not here: the lock is ours
        "checkpoints/.step-00000100.removed-4711",
        ".model.partial-4711",
        "faults/.step-00000160.partial-4711",
    ]
    for name in left:
        (run.path / name).mkdir()
        (run.path / name / "half.safetensors").write_bytes(b"x")
    (run.path / ".manifest.json.4711.tmp").write_bytes(b"{")
    reserve.hold(run.checkpoints, 2**16)
    assert ".manifest.json.4711.tmp" in run.scrub(dry_run=True).left_overs
    found = run.scrub()
    assert sorted(found.left_overs) == sorted([*left, ".manifest.json.4711.tmp"]) and found.whole
    assert not [name for name in left if (run.path / name).exists()]
    assert found.held_bytes == reserve.held(run.checkpoints)
    assert run.scrub().left_overs == []


def test_a_swap_that_was_cut_in_half_gets_its_name_back(run: Run) -> None:
    run.model.rename(run.path / ".model.old-4711")
    assert run.scrub().whole and names(run.model) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_where_none_is_whole_all_stay_and_the_run_still_refuses_to_begin_anew(run: Run) -> None:
    for name in (OLD, NEW):
        flip(run.checkpoints / name / "state.json")
    found = run.scrub()
    assert found.newest is None and not found.set_aside and len(found.findings) == 2
    assert names(run.checkpoints) == [OLD, NEW]
    with pytest.raises(RunError, match="--fresh"):
        checkpoints.load_newest(run.checkpoints)


HOLDER = """
import sys, time
from pathlib import Path
from glassformer.run.folder import Run
with Run.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_beside_a_process_that_trains_only_a_dry_run_reads(run: Run) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        (run.checkpoints / f".step-00000300.partial-{holder.pid}").mkdir()
        with pytest.raises(RunLocked, match=str(holder.pid)):
            run.scrub()
        found = run.scrub(dry_run=True)
        assert found.whole and not found.left_overs
    finally:
        holder.kill()
        holder.communicate()


def test_what_is_no_run_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(RunError, match="There is no run"):
        scrub(tmp_path / "nowhere")
    shutil.rmtree(run.path)
    run.path.mkdir()
    with pytest.raises(RunError, match="is not a run"):
        scrub(run.path)
