"""Real faults around checkpoints: full disks, moved runs, clocks, other versions, pickles, two processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_saver import same, save, state_at

from glassformer.errors import CheckpointError, RunLocked
from glassformer.files import write_bytes
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.run.sealed import _render, read_manifest
from glassformer.run.tensors import read_tensors

NEW, OLD = "step-00000200", "step-00000100"


# 6: no space, no permission

SHORT_OF_SPACE = """
import resource, subprocess, sys
from pathlib import Path

folder, shortage = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, sys.argv[3])
from killed_saver import save
from glassformer.errors import RunError
from glassformer.run import checkpoints

def remount(option):
    subprocess.run(["mount", "-o", "remount," + option, folder], check=True)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))

begin = {
    "limit": lambda: limit(20_000),
    "full": lambda: (folder / "ballast").write_bytes(bytes(180_000)),
    "read-only": lambda: remount("ro"),
}
end = {
    "limit": lambda: limit(-1),
    "full": (folder / "ballast").unlink,
    "read-only": lambda: remount("rw"),
}
save(folder, 100, keep=2)
begin[shortage]()
try:
    save(folder, 200, keep=2)
except RunError as error:
    print(error)
print(*sorted(path.name for path in folder.glob("*step*")))
print(checkpoints.load_newest(folder).step)
end[shortage]()
save(folder, 200, keep=2)
print(checkpoints.load_newest(folder).step)
"""
# A file system of our own needs user namespaces; a limit on the size of files is there everywhere.
OWN_DISK = [
    "unshare",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs -o size=256k t "$0" && exec "$@"',
]
MOUNTABLE = subprocess.run([*OWN_DISK, "/mnt", "true"], capture_output=True, check=False).returncode == 0
SHORTAGES = {"limit": "File too large"}
if MOUNTABLE:
    SHORTAGES |= {"full": "No space left on device", "read-only": "Read-only file system"}


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_disk_that_takes_no_more_costs_one_save_and_the_next_one_works(
    tmp_path: Path, shortage: str
) -> None:
    program = [sys.executable, "-c", SHORT_OF_SPACE, str(tmp_path), shortage, str(Path(__file__).parent)]
    command = program if shortage == "limit" else [*OWN_DISK, str(tmp_path), *program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, left, loaded, after = done.stdout.splitlines()
    assert f"step-00000200 was not saved: {SHORTAGES[shortage]}" in said and "free" in said
    assert (left, loaded, after) == ("step-00000100", "100", "200")


# 9 and 14: other places, other clocks


def test_a_run_moved_copied_or_linked_goes_on(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "first place", {"seed": 1}, {})
    save(run.checkpoints, 100, keep=1)
    moved = (tmp_path / "first place").rename(tmp_path / "zweiter Ört")
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    linked = tmp_path / "linked"
    linked.symlink_to(moved, target_is_directory=True)
    for number, place in enumerate((moved, copied, linked)):
        run = Run.open(place)
        loaded = checkpoints.load_newest(run.checkpoints)
        assert loaded is not None and same(loaded.tensors, state_at(100 + number if place == linked else 100))
        save(run.checkpoints, 102 if place == moved else 101, keep=1)
        assert run.verify() == []
        assert str(tmp_path) not in "".join(
            file.read_text("latin-1") for file in place.rglob("*") if file.is_file()
        )


def test_order_is_by_step_number_whatever_the_clock_says(folder: Path) -> None:
    for file in [*(folder / OLD).iterdir(), folder / OLD]:
        os.utime(file, (4e9, 4e9))
    for file in [*(folder / NEW).iterdir(), folder / NEW]:
        os.utime(file, (0, 0))
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None and loaded.step == 200
    save(folder, 300, keep=2)
    assert [entry.name for entry in checkpoints.list_checkpoints(folder)] == [NEW, "step-00000300"]


# 10 and 11: other versions, other configurations


@pytest.mark.parametrize(("version", "age"), [(0, "older"), (99, "newer")])
def test_a_checkpoint_of_another_format_is_refused_and_left_as_it_is(
    folder: Path, version: int, age: str
) -> None:
    manifest = read_manifest(folder / NEW)
    assert manifest is not None
    body = {key: value for key, value in manifest.items() if key != "digest"} | {"format": version}
    write_bytes(folder / NEW / "manifest.json", _render(body))
    with pytest.raises(CheckpointError, match=f"format {version} is {age}"):
        checkpoints.load_newest(folder)
    assert (folder / NEW).exists()
    assert [finding.damaged for finding in checkpoints.verify(folder)] == [False]


def test_another_configuration_is_refused_with_every_difference() -> None:
    saved = {"model": {"layers": 4, "width": 64}, "tokenizer": "ab12"}
    checkpoints.check_fits(saved, {"model": {"width": 64, "layers": 4}, "tokenizer": "ab12"})
    with pytest.raises(CheckpointError) as refused:
        checkpoints.check_fits(
            saved, {"model": {"layers": 6, "width": 64, "bias": True}, "tokenizer": "cd34"}
        )
    said = str(refused.value)
    assert "model.layers: checkpoint 4, now 6" in said
    assert "model.bias: checkpoint nothing, now True" in said
    assert "tokenizer: checkpoint 'ab12', now 'cd34'" in said
    assert "model.width" not in said and "--init-from" in said


def test_matching_tensors_are_taken_and_every_other_one_is_reported() -> None:
    saved = {"a": torch.ones(2, 2), "b": torch.ones(3), "c": torch.ones(1)}
    wanted = {"a": torch.zeros(2, 2), "b": torch.zeros(4), "d": torch.zeros(1)}
    matching, report = checkpoints.matching_tensors(saved, wanted)
    assert list(matching) == ["a"] and torch.equal(matching["a"], saved["a"])
    outcomes = {row["tensor"]: row["outcome"] for row in report}
    assert outcomes == {"a": "loaded", "b": "other shape", "c": "only in checkpoint", "d": "only in model"}


# 12: a pickle


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "disguised.safetensors"])
def test_a_pickle_is_refused_with_a_sentence_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is a pickle.*weights_only=True"):
        read_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_not_safetensors_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"hello, this is not it")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        read_tensors(tmp_path / "model.safetensors")


# 13: two processes

HOLDER = """
import sys, time
from pathlib import Path
from glassformer.run.folder import Run
with Run.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_run_and_a_killed_ones_lock_is_taken_over(
    tmp_path: Path,
) -> None:
    run = Run.create(tmp_path / "run", {}, {})
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked) as refused, run.lock():
            pass
        assert f"process {holder.pid} on {socket.gethostname()}" in str(refused.value)
        with pytest.raises(RunLocked):
            Run.create(run.path, {}, {}, fresh=True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with run.lock():
        assert run.took_over is not None and f"process {holder.pid} on" in run.took_over
    said = run.events.last("warning")
    assert said is not None and f"process {holder.pid}" in said["message"]
    again = Run.open(run.path)
    with again.lock():
        assert again.took_over is None
