"""Repair makes what is damaged again to the bit, keeps what was damaged beside, and says what it cannot mend."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from damage import everything, flip, names
from killed_saver import same, save, state_at

from glassformer.errors import RunError
from glassformer.run import checkpoints
from glassformer.run.exports import save_model, verify_model
from glassformer.run.folder import Run
from glassformer.run.repair import repair
from glassformer.run.sealed import write_sealed
from refusals import obey_modes

NEW, OLD = "step-00000200", "step-00000100"
BAD = f"{NEW}-bad-1"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that came to its end at step 200, with what its model was made of."""
    run = Run.create(tmp_path / "run", {"name": "a", "train": {"steps": 200}}, {"data": "d1"})
    run.events.append("start", steps=200)
    for step in (100, 200):
        save(run.checkpoints, step, keep=2)
        run.events.append("step", step=step, loss=1.0)
    (run.path / "tokenizer.json").write_bytes(b'{"t": 1}')
    save_model(run.model, config={"v": 1}, tensors=state_at(200)["model"], tokenizer=b'{"t": 1}')
    bundle, about = run.path / "faults" / "step-00000150", {"kind": "fault", "step": 150}
    write_sealed(bundle, {"batch": {"ids": torch.arange(5)}}, {"fault.json": b"{}"}, about)
    run.events.close()
    return run


@pytest.fixture
def replica(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "replica"))


def is_as_it_was(run: Run, before: dict[str, bytes]) -> bool:
    """But for what is kept beside, and what the lock wrote."""
    now = {name: content for name, content in everything(run.path).items() if "-bad-" not in name}
    return now == before


def test_a_whole_run_is_left_as_it_is(run: Run, replica: Path) -> None:
    before = everything(run.path)
    done = run.repair(replica)
    assert done.whole and not done.mended and not done.set_aside and everything(run.path) == before
    assert (done.newest, done.lost_steps) == (200, 0)


DAMAGE = {
    "a flipped bit in the model": lambda path: flip(path / "model.safetensors"),
    "a flipped bit in the optimiser": lambda path: flip(path / "optimizer.safetensors", 90),
    "a flipped bit in the state": lambda path: flip(path / "state.json"),
    "a flipped bit in the manifest": lambda path: flip(path / "manifest.json", 70),
    "a truncated file": lambda path: os.truncate(path / "model.safetensors", 100),
    "a file of no bytes": lambda path: os.truncate(path / "optimizer.safetensors", 0),
    "a missing file": lambda path: (path / "model.safetensors").unlink(),
    "all of it": lambda path: [file.write_bytes(b"") for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("scrubbed", [False, True])
def test_a_checkpoint_is_mended_to_the_bit_from_a_replica_also_after_it_was_set_aside(
    run: Run, replica: Path, damage: str, scrubbed: bool
) -> None:
    before = everything(run.path)
    DAMAGE[damage](run.checkpoints / NEW)
    damaged = everything(run.checkpoints / NEW)
    if scrubbed:
        assert run.scrub().set_aside == [NEW]
    done = run.repair(replica)
    assert done.whole and (done.newest, done.lost_steps) == (200, 0)
    assert [row["what"] for row in done.mended] == [NEW] and "replica" in done.mended[0]["how"]
    assert is_as_it_was(run, before) and everything(run.checkpoints / BAD) == damaged
    loaded = checkpoints.load_newest(run.checkpoints)
    assert loaded is not None and loaded.step == 200 and same(loaded.tensors, state_at(200))


def test_damage_in_both_copies_is_mended_when_it_is_not_in_the_same_file(run: Run, replica: Path) -> None:
    before = everything(run.path)
    flip(run.checkpoints / NEW / "model.safetensors")
    flip(run.checkpoints / NEW / "manifest.json")
    flip(replica / "checkpoints" / NEW / "optimizer.safetensors")
    assert run.repair(replica).whole and is_as_it_was(run, before)


def test_damage_in_the_same_file_of_both_copies_costs_the_checkpoint_and_says_how_many_steps(
    run: Run, replica: Path
) -> None:
    for place in (run.checkpoints, replica / "checkpoints"):
        flip(place / NEW / "model.safetensors")
    done = run.repair(replica)
    assert done.set_aside == [NEW] and (done.newest, done.lost_steps) == (100, 100) and done.whole
    assert names(run.checkpoints) == [OLD, BAD]


def test_without_a_replica_a_damaged_checkpoint_is_set_aside(run: Run) -> None:
    flip(run.checkpoints / NEW / "state.json")
    done = run.repair()
    assert done.set_aside == [NEW] and (done.newest, done.lost_steps) == (100, 100) and not done.mended


def test_a_file_that_does_not_belong_there_needs_no_replica(run: Run) -> None:
    before = everything(run.path)
    shutil.copy(run.checkpoints / NEW / "state.json", run.checkpoints / NEW / "state-2.json")
    done = run.repair()
    assert done.whole and done.mended[0]["how"] == "from its undamaged files" and is_as_it_was(run, before)
    assert "state-2.json" in names(run.checkpoints / BAD)


def test_with_all_checkpoints_damaged_those_of_the_replica_bring_the_run_back(
    run: Run, replica: Path
) -> None:
    before = everything(run.path)
    for name in (OLD, NEW):
        flip(run.checkpoints / name / "model.safetensors")
    alone = run.repair()
    assert not alone.whole and alone.newest is None and names(run.checkpoints) == [OLD, NEW]
    assert run.repair(replica).whole and is_as_it_was(run, before)


def test_a_step_that_was_computed_again_since_is_not_brought_back(run: Run, replica: Path) -> None:
    flip(run.checkpoints / NEW / "state.json")
    run.scrub()
    run.events.append("resumed", step=100)
    run.events.append("step", step=150, loss=1.0)
    run.events.close()
    done = run.repair(replica)
    assert not done.mended and names(run.checkpoints) == [OLD, BAD] and done.newest == 100


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_the_finished_model_is_made_again_from_the_last_checkpoint_and_the_runs_own_files(
    run: Run, file: str
) -> None:
    before = everything(run.path)
    flip(run.model / file)
    done = run.repair()
    assert done.whole and verify_model(run.model) == [] and is_as_it_was(run, before)
    source = "the checkpoint of step 200" if file == "model.safetensors" else "the run's own files"
    assert done.mended == [{"what": "model", "how": f"from {source}", "kept": "model-bad-1"}]


def test_a_model_that_is_the_mean_of_checkpoints_is_made_again_from_them(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"train": {"average": 2}}, {"data": "d1"})
    run.events.append("start", steps=200)
    for step in (100, 200):
        checkpoints.save(run.checkpoints, step, {"model": {"w": torch.full((9,), step / 7)}}, {})
    save_model(run.model, config={}, tensors=checkpoints.mean(run.checkpoints, 2)[0], tokenizer=None)
    before = everything(run.model)
    flip(run.model / "model.safetensors")
    assert run.repair().whole and everything(run.model) == before


def test_a_model_of_a_run_whose_last_checkpoint_is_older_is_not_made_from_it(run: Run, replica: Path) -> None:
    before = everything(run.model)
    flip(run.model / "model.safetensors")
    shutil.rmtree(run.checkpoints / NEW)
    done = run.repair()
    assert not done.whole and done.findings[0].tensor is not None and not done.mended
    assert run.repair(replica).whole and everything(run.model) == before


def test_a_bundle_is_mended_from_a_replica(run: Run, replica: Path) -> None:
    before = everything(run.path)
    flip(run.path / "faults" / "step-00000150" / "batch.safetensors")
    assert not run.repair().whole
    assert run.repair(replica).whole and is_as_it_was(run, before)


@pytest.mark.parametrize("file", ["recipe.toml", "manifest.json"])
def test_a_recipe_or_manifest_that_cannot_be_read_is_taken_from_a_replica(
    run: Run, replica: Path, file: str
) -> None:
    before = everything(run.path)
    (run.path / file).write_bytes(b"\x00\xff")
    assert not repair(run.path).whole and (run.path / file).read_bytes() == b"\x00\xff"
    done = repair(run.path, replica)
    assert done.whole and is_as_it_was(run, before)
    assert (run.path / f"{file}-bad-1").read_bytes() == b"\x00\xff"


def test_torn_and_damaged_lines_are_taken_out_or_from_the_replica_and_the_log_is_kept_beside(
    run: Run, replica: Path
) -> None:
    log = run.path / "events.jsonl"
    whole = log.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    spoiled = first + second.replace(b'"step"', b'"st\x00p"', 1).replace(b"}", b"") + third + b'{"event": "st'
    log.write_bytes(spoiled)
    done = run.repair(replica)
    assert log.read_bytes() == whole and (run.path / "events.jsonl-bad-1").read_bytes() == spoiled
    assert done.mended[0]["how"] == "1 lines from the replica, 1 lines taken out"
    log.write_bytes(spoiled)
    assert run.repair().whole and log.read_bytes() == first + third


def test_another_run_is_no_replica(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other", {"name": "b"}, {"data": "d2"})
    flip(run.checkpoints / NEW / "state.json")
    with pytest.raises(RunError, match=r"is not a copy of.*recipe\.toml"):
        run.repair(other.path)
    with pytest.raises(RunError, match="There is no run"):
        run.repair(tmp_path / "nowhere")
    assert names(run.checkpoints) == [OLD, NEW]


def test_a_repair_that_finds_no_room_changes_nothing(run: Run, replica: Path) -> None:
    flip(run.checkpoints / NEW / "state.json")
    before = everything(run.checkpoints)
    run.checkpoints.chmod(0o555)
    pid = os.fork()
    if pid == 0:
        try:
            obey_modes()
            run.repair(replica)
        except RunError as error:
            os._exit(7 if "was not mended: Permission denied" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    run.checkpoints.chmod(0o755)
    assert everything(run.checkpoints) == before
    assert tomllib.loads((run.path / "recipe.toml").read_text())["name"] == "a"
