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


REFUSED = {"at": 'writes: "event": "warning"+no checkpoint at step 6', "do": "SIGSTOP"}


def refused_for_a_while(
    trainer: Trainer, run: str, refuse: Any, allow: Any, *more: dict[str, Any]
) -> list[str]:
    """The disk refuses the save of step 6, and takes what comes when that has been told; what the run said of it."""
    pid = trainer.start(run, plans=(*more, paused_at(5), REFUSED))
    wait_until_paused(pid)
    refuse()
    go_on(pid)
    wait_until_paused(pid)
    assert [path.name for path in trainer.run(run).checkpoints.glob("step-*")] == ["step-00000003"]
    allow()
    go_on(pid)
    ended = trainer.end(pid)
    saved = [event["step"] for event in ended.all("checkpoint")]
    assert ended.exit == 0 and saved[0] == 3 and 6 not in saved and saved[-1] == 12, ended.said
    assert any(7 <= step <= 9 for step in saved)
    return no_checkpoint(ended)


def test_a_disk_that_is_read_only_for_a_while_costs_a_checkpoint_and_not_the_run(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    checkpoints = module_trainer.folder / "read-only" / "checkpoints"
    with mounted(checkpoints):
        (warning,) = refused_for_a_while(
            module_trainer, "read-only",
            refuse=lambda: remount(checkpoints, "ro"), allow=lambda: remount(checkpoints, "rw"),
        )  # fmt: skip
        assert "step 6" in warning and "Read-only file system" in warning
        assert module_trainer.story("read-only") == undisturbed


def test_a_permission_that_is_lost_for_a_while_costs_a_checkpoint_and_not_the_run(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    checkpoints = module_trainer.folder / "lost" / "checkpoints"
    (warning,) = refused_for_a_while(
        module_trainer, "lost",
        lambda: checkpoints.chmod(0o555), lambda: checkpoints.chmod(0o755),
        {"at": "writes: choosing how", "do": "obey"},
    )  # fmt: skip
    assert "step 6" in warning and "Permission denied" in warning
    report = (module_trainer.folder / "lost" / "report.html").read_text(encoding="utf-8")
    assert "no checkpoint at step 6" in report
    assert module_trainer.story("lost") == undisturbed
