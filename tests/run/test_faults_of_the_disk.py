"""The disk refuses a save: by permission, by quota, by a mode that changes on the way. Real refusals by the kernel."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_saver import die_before, in_child, same, save, state_at

from glassformer.run import checkpoints, reserve
from refusals import obey_modes, out_of_quota
from small_disk import fill, mounted


def said_in_child(folder: Path, work: Callable[[], None]) -> str:
    """What the error of `work` says, which runs in a process of its own."""
    said = folder.parent / "said"

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            said.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")

    said.unlink(missing_ok=True)
    os.waitpid(in_child(guarded), 0)
    return said.read_text(encoding="utf-8") if said.exists() else ""


def newest(folder: Path) -> int:
    loaded = checkpoints.load_newest(folder)
    assert loaded is not None and same(loaded.tensors, state_at(loaded.step))
    return loaded.step


@pytest.mark.parametrize("keep", [1, 2])
def test_a_permission_that_is_lost_costs_one_save_and_the_next_one_works(tmp_path: Path, keep: int) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1, keep=keep)
    folder.chmod(0o555)

    def work() -> None:
        obey_modes()
        save(folder, 2, keep=keep)

    assert "step-00000002 was not saved: Permission denied" in said_in_child(folder, work)
    folder.chmod(0o755)
    assert newest(folder) == 1
    assert said_in_child(folder, work) == "" and newest(folder) == 2


def test_an_old_one_that_may_not_be_removed_stays_and_the_new_one_counts(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1, keep=1)
    (folder / "step-00000001").chmod(0o555)

    def work(step: int) -> None:
        obey_modes()
        save(folder, step, keep=1)

    for step in (2, 3):
        assert said_in_child(folder, lambda step=step: work(step)) == "" and newest(folder) == step
    for left in folder.glob(".*"):
        left.chmod(0o755)
    save(folder, 4, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]


def test_a_folder_that_cannot_even_be_read_costs_the_save_and_not_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1, keep=1)
    folder.chmod(0)

    def work() -> None:
        obey_modes()
        save(folder, 2, keep=1)

    said = said_in_child(folder, work)
    assert said.startswith("RunError: step-00000002 was not saved: Permission denied")
    folder.chmod(0o755)
    assert newest(folder) == 1


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the filter names calls by number"
)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_quota_that_is_used_up_costs_the_save_and_never_the_last_good_one(
    tmp_path: Path, keep: int
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(folder, step, keep=keep)

    def work() -> None:
        out_of_quota()
        save(folder, 3, keep=keep)

    assert "step-00000003 was not saved: Disk quota exceeded" in said_in_child(folder, work)
    assert newest(folder) == 2
    assert [listed.kind for listed in checkpoints.list_checkpoints(folder)] == ["checkpoint"]
    save(folder, 3, keep=keep)
    assert newest(folder) == 3


@pytest.mark.parametrize(("keep", "held"), [(1, 1.0), (2, 0.0)])
def test_killed_at_any_operation_of_a_save_on_a_full_disk_there_is_always_a_whole_one(
    tmp_path: Path, keep: int, held: float
) -> None:
    """With one kept, the new one lies in space that was held; with two, the older has to go first."""
    steps: list[int] = []
    died = True
    while died:
        with mounted(tmp_path / "disk", size="1m") as disk:
            folder = disk / "checkpoints"
            for step in (1, 2):
                save(folder, step, keep=keep)
            reserve.hold(folder, int(held * reserve.bytes_to_save(state_at(1), {"state.json": b"{}"})))
            fill(disk)

            def work(folder: Path = folder) -> None:
                die_before(len(steps), folder)
                save(folder, 3, keep=keep)

            _, status = os.waitpid(in_child(work), 0)
            died = os.WIFSIGNALED(status)
            assert died or status == 0
            steps.append(newest(folder))
            assert len([one for one in checkpoints.list_checkpoints(folder) if one.kind == "checkpoint"]) >= 1
    assert len(steps) >= 15 and steps == sorted(steps) and set(steps) == {2, 3}
