"""Training on a disk that somebody else fills, that turns read-only, that may not be written to: real file systems."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from trainer import Ended, Trainer

from glassformer.run import reserve
from small_disk import fill, mounted, remount


def paused_at(step: int) -> dict[str, Any]:
    return {"at": f'writes: "event": "step"+"step": {step},', "do": "SIGSTOP"}


def wait_until_paused(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def undisturbed(module_trainer: Trainer) -> dict[str, Any]:
    assert module_trainer("undisturbed").exit == 0
    return module_trainer.story("undisturbed")


def no_checkpoint(ended: Ended) -> list[str]:
    return [event["message"] for event in ended.all("warning") if "no checkpoint" in event["message"]]


@pytest.mark.parametrize("keep", ["1", "2"])
def test_a_disk_that_somebody_fills_after_the_start_costs_no_checkpoint_and_does_not_end_the_run(
    module_trainer: Trainer, undisturbed: dict[str, Any], keep: str
) -> None:
    with mounted(module_trainer.folder / f"disk {keep}") as disk:
        name = f"{disk.name}/run"
        flags = (name, "--train.keep", keep)
        pid = module_trainer.start(*flags, plans=(paused_at(2), {**paused_at(5), "do": "SIGTERM"}))
        wait_until_paused(pid)
        assert reserve.held(disk / "run" / "checkpoints") > 2**20
        fill(disk)
        go_on(pid)
        stopped = module_trainer.end(pid)
        assert stopped.exit == 75 and not no_checkpoint(stopped), stopped.said
        fill(disk)
        went_on = module_trainer(*flags)
        assert went_on.exit == 0 and not no_checkpoint(went_on), went_on.said
        saved = [event["step"] for event in stopped.all("checkpoint") + went_on.all("checkpoint")]
        assert set(saved) >= {3, 6, 9, 12}
        run = module_trainer.run(name)
        assert module_trainer.story(name) == undisturbed
        assert [row["step"] for row in run.rows()] == list(range(1, 13))
        assert run.verify() == [] and not (run.checkpoints / reserve.RESERVED).exists()


def test_a_disk_too_small_for_two_checkpoints_is_refused_before_the_first_step(trainer: Trainer) -> None:
    with mounted(trainer.folder / "disk", size="600k") as disk:
        refused = trainer(f"{disk.name}/run")
        assert refused.exit == 1 and not refused.all("step")
        assert "two checkpoints and the finished model need" in refused.said and "--run" in refused.said
        assert reserve.held(disk / "run" / "checkpoints") == 0


def test_where_space_cannot_be_held_the_run_says_so_and_does_its_steps(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    """A limit on the size of files, which is there everywhere: what is held would be larger, what is saved is not."""
    limit = ({"at": "writes: choosing how", "do": "limit 1000000"},)
    ended = module_trainer("limited", plans=limit)
    assert ended.exit == 0 and len(ended.all("checkpoint")) == 4
    warned = [
        event["message"]
        for event in module_trainer.run("limited").events.read()
        if event["event"] == "warning"
    ]
    assert any("are held (File too large)" in message for message in warned)
    assert module_trainer.story("limited") == undisturbed


def refused_at_6(trainer: Trainer, run: str, pid: int, refuse: Any, allow: Any) -> Ended:
    """The disk refuses the save of step 6 and takes that of step 9 again."""
    wait_until_paused(pid)
    refuse()
    go_on(pid)
    while not any(
        event["event"] == "step" and event["step"] == 7 for event in trainer.run(run).events.read()
    ):
        time.sleep(0.01)
    wait_until_paused(pid)
    assert [path.name for path in trainer.run(run).checkpoints.glob("step-*")] == ["step-00000003"]
    allow()
    go_on(pid)
    return trainer.end(pid)


def test_a_disk_that_is_read_only_for_a_while_costs_a_checkpoint_and_not_the_run(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    checkpoints = module_trainer.folder / "read-only" / "checkpoints"
    with mounted(checkpoints):
        pid = module_trainer.start("read-only", plans=(paused_at(5), paused_at(7)))
        ended = refused_at_6(
            module_trainer, "read-only", pid,
            refuse=lambda: remount(checkpoints, "ro"), allow=lambda: remount(checkpoints, "rw"),
        )  # fmt: skip
        (warning,) = no_checkpoint(ended)
        assert ended.exit == 0 and "step 6" in warning and "Read-only file system" in warning
        assert [event["step"] for event in ended.all("checkpoint")] == [3, 9, 12]
        assert module_trainer.story("read-only") == undisturbed


def test_a_permission_that_is_lost_for_a_while_costs_a_checkpoint_and_not_the_run(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    checkpoints = module_trainer.folder / "lost" / "checkpoints"
    obey = {"at": "writes: choosing how", "do": "obey"}
    pid = module_trainer.start("lost", plans=(obey, paused_at(5), paused_at(7)))
    ended = refused_at_6(
        module_trainer, "lost", pid,
        refuse=lambda: checkpoints.chmod(0o555), allow=lambda: checkpoints.chmod(0o755),
    )  # fmt: skip
    (warning,) = no_checkpoint(ended)
    assert ended.exit == 0 and "step 6" in warning and "Permission denied" in warning
    assert [event["step"] for event in ended.all("checkpoint")] == [3, 9, 12]
    assert module_trainer.story("lost") == undisturbed
