"""Run folders elsewhere, of other versions, of other processes, on other clocks; and weights from strangers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer import Trainer

from glassformer.files import write_bytes
from glassformer.run.sealed import _render, read_manifest

STEP_8 = 'writes: "event": "step"+"step": 8,'


def killed(*more: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return (*more, {"at": STEP_8, "do": "SIGKILL"})


def said_in_log(trainer: Trainer, run: str) -> str:
    events = trainer.run(run).events.read()
    return "\n".join(event["message"] for event in events if event["event"] == "warning")


@pytest.fixture(scope="module")
def undisturbed(module_trainer: Trainer) -> dict[str, Any]:
    assert module_trainer("undisturbed").exit == 0
    return module_trainer.story("undisturbed")


@pytest.fixture(scope="module")
def half(module_trainer: Trainer) -> Path:
    """A run that was killed at step 8, to be copied."""
    assert module_trainer("half", plans=killed()).exit == -signal.SIGKILL
    return module_trainer.folder / "half"


# 9: other places


def linked(half: Path, place: Path) -> None:
    shutil.copytree(half, place.with_name("target of a link"))
    place.symlink_to("target of a link")


def elsewhere(half: Path, place: Path) -> None:
    """Checkpoints on another disk."""
    shutil.copytree(half, place)
    (place / "checkpoints").rename(place.with_name("another disk"))
    (place / "checkpoints").symlink_to(place.with_name("another disk"))


@pytest.mark.parametrize("put", [shutil.copytree, linked, elsewhere], ids=["copied", "linked", "elsewhere"])
def test_a_run_that_was_copied_or_linked_goes_on_to_the_same_end(
    module_trainer: Trainer, undisturbed: dict[str, Any], half: Path, put: Any
) -> None:
    name = f"a {put.__name__} Rün"
    put(half, module_trainer.folder / name)
    resumed = module_trainer(name)
    assert resumed.exit == 0 and resumed.all("resumed")[0]["step"] == 6, resumed.said
    assert module_trainer.story(name) == undisturbed and module_trainer.run(name).scrub().whole


# 10: other versions


@pytest.mark.parametrize(("version", "age"), [(0, "older"), (2, "newer")])
def test_a_run_with_a_checkpoint_of_another_format_is_refused_and_left_as_it_is(
    module_trainer: Trainer, half: Path, version: int, age: str
) -> None:
    run = Path(shutil.copytree(half, module_trainer.folder / age))
    newest = run / "checkpoints" / "step-00000006"
    manifest = read_manifest(newest)
    assert manifest is not None
    body = {key: value for key, value in manifest.items() if key != "digest"} | {"format": version}
    write_bytes(newest / "manifest.json", _render(body))
    before = {file: file.read_bytes() for file in newest.iterdir()}
    refused = module_trainer(age)
    assert refused.exit == 3 and f"format {version} is {age} than 1" in refused.said
    assert not refused.all("resumed") and not refused.all("step")
    assert "It was left as it is" in refused.said
    assert {file: file.read_bytes() for file in newest.iterdir()} == before
    assert module_trainer.run(age).scrub().set_aside == []


# 12: a stranger's pickle


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_training_from_a_strangers_pickle_is_refused_with_the_reason_and_it_is_not_run(
    module_trainer: Trainer, name: str
) -> None:
    torch.save({"weight": Bomb()}, module_trainer.folder / name)
    refused = module_trainer(f"from {name}", "--init-from", name)
    assert refused.exit == 3 and not refused.all("step"), refused.said
    assert "is a pickle" in refused.said and "weights_only=True" in refused.said
    assert not (module_trainer.folder / "exploded").exists()
    with pytest.raises(pickle.UnpicklingError):  # the way that the reason names does not run it either
        torch.load(module_trainer.folder / name, weights_only=True)


# 13: locks


def test_a_lock_that_names_a_living_process_which_does_not_hold_it_is_taken_over(
    module_trainer: Trainer, undisturbed: dict[str, Any], half: Path
) -> None:
    """The number of a process that was killed has been given to another one since."""
    shutil.copytree(half, module_trainer.folder / "reused")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        lock = module_trainer.folder / "reused" / "run.lock"
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "pid": other.pid}))
        assert module_trainer("reused").exit == 0
        assert other.poll() is None
        other.communicate(b"\n")
    assert f"took over the run from process {other.pid}" in said_in_log(module_trainer, "reused")
    assert module_trainer.story("reused") == undisturbed


def test_a_lock_of_another_host_that_nobody_holds_is_taken_over_and_the_host_is_named(
    module_trainer: Trainer, half: Path
) -> None:
    shutil.copytree(half, module_trainer.folder / "other host")
    lock = module_trainer.folder / "other host" / "run.lock"
    lock.write_text(json.dumps({"pid": 1, "host": "node-17", "started": "2026-01-31T12:00:00+00:00"}))
    assert module_trainer("other host").exit == 0
    assert "took over the run from process 1 on node-17" in said_in_log(module_trainer, "other host")


# 14: clocks


def test_a_clock_that_jumps_back_and_to_another_time_zone_changes_nothing(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    back = {"at": 'writes: "event": "step"+"step": 4,', "do": "clock -90000"}
    assert module_trainer("clocks", plans=killed(back)).exit == -signal.SIGKILL
    run = module_trainer.run("clocks")
    times = [event["time"] for event in run.events.read()]
    assert times != sorted(times)
    for number, path in enumerate(sorted(run.checkpoints.glob("step-*"), reverse=True)):
        os.utime(path, (4e9 * number, 4e9 * number))  # the newest is of 1970, and the one before of 2096
    forward = {"at": "writes: choosing how", "do": "clock 200000"}
    resumed = module_trainer("clocks", plans=(forward,))
    assert resumed.exit == 0 and resumed.all("resumed")[0]["step"] == 6
    assert module_trainer.story("clocks") == undisturbed
    assert all(0 < row["seconds"] < 600 for row in run.rows())


def test_the_same_command_finds_its_run_by_number_whatever_the_clock_said(trainer: Trainer) -> None:
    assert trainer(None, plans=({"at": "writes: choosing how", "do": "SIGKILL"},)).exit == -signal.SIGKILL
    runs = trainer.folder / "runs"
    for number, seconds in ((2, 4e9), (10, 0)):
        os.utime(shutil.copytree(runs / "tiny-1", runs / f"tiny-{number}"), (seconds, seconds))
    assert "run: runs/tiny-10\n" in trainer(None, "--stop-after", "0s").said
