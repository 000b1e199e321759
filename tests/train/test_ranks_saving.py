"""Checkpoints of divided weights: each rank writes its parts, and any number of ranks goes on from them.

Two real processes with torch's gloo between them; what befalls them befalls them in the middle of a save.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_port
from safetensors.torch import load_file
from test_ranks import ONE, PLAIN, assert_same_curve, place
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from trainer import Ended, Trainer

import glassformer as gf
from glassformer.cli.main import main
from glassformer.errors import CheckpointError, RunError
from glassformer.run import checkpoints

Plan = dict[str, Any]
DIVIDED = (*PLAIN, "--parallel.shard", "all")
BESIDE = (*DIVIDED, "--train.save_beside", "true")
LAST, BEFORE = "step-00000012", "step-00000009"


def ranks(
    trainer: Trainer, run: str, *more: str, plans: dict[int, Plan] | None = None, count: int = 2
) -> list[Ended]:
    """Every rank's end; `plans` say what befalls which."""
    port = free_port()
    begun = []
    for rank in range(count):
        befalls = (plans[rank],) if plans and rank in plans else ()
        pid = trainer.start(run, *more, plans=befalls, **place(rank, count, port))
        begun.append((pid, trainer.count - 1))
    return [trainer.end(pid, number) for pid, number in begun]


def flip(path: Path, at: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def divided(module_trainer: Trainer) -> Trainer:
    """A trainer on whose folder two ranks have trained with divided weights, undisturbed."""
    ended = ranks(module_trainer, "divided", *DIVIDED)
    assert [end.exit for end in ended] == [0, 0], ended[0].said
    return module_trainer


def test_each_rank_writes_its_own_parts_and_none_the_whole(divided: Trainer) -> None:
    folder = divided.run("divided").checkpoints / LAST
    names = [f"{stem}-rank-0000{rank}.safetensors" for stem in ("model", "optimizer") for rank in (0, 1)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "manifest.json", "state.json"])
    parts = [load_file(folder / f"model-rank-0000{rank}.safetensors") for rank in (0, 1)]
    whole = load_file(divided.run("divided").model / "model.safetensors")
    for name, tensor in whole.items():
        assert sum(part[name].numel() for part in parts) == tensor.numel()
        assert all(part[name].shape[0] <= (tensor.shape[0] + 1) // 2 for part in parts)


def test_runs_consolidate_makes_of_any_checkpoint_the_model_folder_that_a_run_ends_with(
    divided: Trainer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = divided.run("divided")
    assert main(["runs", "consolidate", str(run.path), "--out", str(tmp_path / "model"), "--json"]) == 0
    assert '"step": 12' in capsys.readouterr().out
    for file in run.model.iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes(), file.name
    made = gf.consolidate(run, tmp_path / "earlier", step=9)
    assert (made.step, gf.load(made.path).config) == (9, gf.load(run.path).config)
    with pytest.raises(RunError, match=r"no checkpoint of step 7\. It has those of 9, 12"):
        gf.consolidate(run, tmp_path / "never", step=7)


def test_one_process_reads_the_same_tensors_from_the_parts_as_torch_does(divided: Trainer) -> None:
    folder = divided.run("divided").checkpoints / LAST
    ours = checkpoints.load(folder).tensors
    theirs = {name: torch.full_like(tensor, -1) for named in ours.values() for name, tensor in named.items()}
    with pytest.warns(UserWarning, match="single process"):
        load(theirs, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert len(theirs) == len(ours["model"]) + len(ours["optimizer"])
    assert all(torch.equal(t, theirs[name]) for named in ours.values() for name, t in named.items())


SWAPPED = "model-rank-00000.safetensors"
OTHER = "model-rank-00001.safetensors"


def swap(folder: Path) -> None:
    (folder / SWAPPED).rename(folder / "aside")
    (folder / OTHER).rename(folder / SWAPPED)
    (folder / "aside").rename(folder / OTHER)


DAMAGE: dict[str, tuple[Any, str]] = {
    "flipped bit": (lambda f: flip(f / OTHER), f"{OTHER}, tensor "),
    "flipped bit of the optimiser": (
        lambda f: flip(f / "optimizer-rank-00000.safetensors"),
        "optimizer-rank-00000.safetensors, tensor ",
    ),
    "truncated": (lambda f: (f / OTHER).write_bytes((f / OTHER).read_bytes()[:-5]), f"{OTHER}: it has "),
    "missing": (lambda f: (f / OTHER).unlink(), f"{OTHER}: it is missing"),
    "extra": (
        lambda f: shutil.copy(f / OTHER, f / "model-rank-00002.safetensors"),
        "model-rank-00002.safetensors: it is not in the manifest",
    ),
    "of another step": (
        lambda f: shutil.copy(f.parent / BEFORE / OTHER, f / OTHER),
        f"{OTHER}: it is another file: {BEFORE}/{OTHER}",
    ),
    "swapped": (swap, f"{SWAPPED}: it is another file: {OTHER}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_named_and_the_older_checkpoint_is_used(
    divided: Trainer, tmp_path: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(divided.run("divided").checkpoints, tmp_path / "checkpoints"))
    befall, words = DAMAGE[damage]
    befall(folder / LAST)
    assert any(f"{LAST}/{words}" in str(finding) for finding in checkpoints.verify(folder))
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None and (loaded.step, loaded.lost_steps) == (9, 3)
    assert any(words in str(finding) for finding in loaded.findings)
    with pytest.raises(CheckpointError):
        checkpoints.load(folder / f"{LAST}-bad-1")


def test_ranks_killed_in_the_middle_of_a_save_go_on_to_the_bit_and_so_they_do_past_a_flipped_bit(
    divided: Trainer,
) -> None:
    moments = {
        0: {"at": "asks: os.rename+.step-", "do": "SIGKILL", "n": 2},  # all is written, nothing is published
        1: {"at": "asks: open+optimizer-rank-00001+.step-", "do": "SIGKILL"},  # a part is missing
    }
    for rank, plan in moments.items():
        ended = ranks(divided, "killed", *BESIDE, plans={rank: plan})
        assert ended[rank].exit == -9 and ended[1 - rank].exit == 1, ended[1 - rank].said
    stop = {0: {"at": 'writes: "event": "step"+"step": 10,', "do": "SIGTERM"}}
    assert [end.exit for end in ranks(divided, "killed", *BESIDE, plans=stop)] == [75, 75]
    run = divided.run("killed")
    newest, older = sorted(path for path in run.checkpoints.iterdir())[::-1][:2]
    flip(newest / "optimizer-rank-00001.safetensors")
    first, second = ranks(divided, "killed", *BESIDE)
    assert (first.exit, second.exit) == (0, 0), first.said
    (resumed,) = first.all("resumed")
    assert resumed["step"] == int(older.name[-8:]) < int(newest.name[-8:])
    assert f"{newest.name}/optimizer-rank-00001.safetensors, tensor" in resumed["findings"][0]
    assert divided.story("killed") == divided.story("divided")
    assert run.verify() == [] and list(run.checkpoints.glob(".*")) == []


def test_divided_weights_go_over_to_more_ranks_in_groups_to_copies_and_to_one_rank(divided: Trainer) -> None:
    def stop(step: int) -> dict[int, Plan]:
        return {0: {"at": f'writes: "event": "step"+"step": {step},', "do": "SIGTERM"}}

    assert divided("alone", *ONE).exit == 0
    meshes = [(2, "all", 3, 2), (4, "2", 5, 4), (2, "1", 7, 1)]  # what two groups both have, either writes
    for count, shard, step, files in meshes:
        ended = ranks(divided, "moves", *PLAIN, "--train.accumulate", "1", "--parallel.shard", shard,
                      plans=stop(step), count=count)  # fmt: skip
        assert [end.exit for end in ended] == [75] * count, ended[0].said
        saved = divided.run("moves").checkpoints / f"step-{ended[0].all('checkpoint')[-1]['step']:08d}"
        assert len(list(saved.glob("model*"))) == files
    last = divided("moves", *PLAIN, "--parallel.shard", "all")
    assert last.exit == 0 and last.all("resumed")[0]["step"] >= 7
    assert_same_curve(divided, "alone", "moves")


def test_a_disk_of_one_rank_that_refuses_is_told_by_all_and_asked_again(divided: Trainer) -> None:
    limit = {1: {"at": "asks: open+.step-00000003+optimizer-rank-00001", "do": "limit 2000"}}
    first, second = ranks(divided, "refused", *DIVIDED, "--train.steps", "5", plans=limit)
    warning = next(w["message"] for w in first.all("warning") if "no checkpoint" in w["message"])
    assert "no checkpoint at step 3: step-00000003 was not saved by rank 1: File too large" in warning
    assert "Tried again at step 4" in warning
    assert first.exit == 1 and "was not saved by rank 1: File too large" in first.said  # the last must be
    assert second.exit == 1 and "Rank 0 failed" in second.said
