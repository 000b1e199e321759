"""Space that is held is there when it is needed: on real file systems that somebody else fills."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from killed_saver import in_child, save, state_at

from glassformer.errors import RunError
from glassformer.files import free_bytes
from glassformer.run import checkpoints, reserve
from glassformer.run.events import Events
from glassformer.run.folder import Run
from small_disk import fill, mounted, remount

ONE = reserve.bytes_to_save(state_at(1), {"state.json": b"{}"})


def steps(folder: Path) -> list[int]:
    return [listed.step for listed in checkpoints.list_checkpoints(folder)]


def test_what_is_held_is_taken_from_the_disk_and_is_given_back(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        before = free_bytes(disk)
        assert reserve.hold(disk / "checkpoints", 2**20) is None
        assert 2**20 <= before - free_bytes(disk) <= 2**20 + 3 * 4096
        assert reserve.held(disk / "checkpoints") == 2**20
        with reserve.given_up(disk / "checkpoints", 300_000):
            assert reserve.held(disk / "checkpoints") == 2**20 - 300_000
        assert reserve.held(disk / "checkpoints") == 2**20
        reserve.release(disk / "checkpoints")
        assert reserve.held(disk / "checkpoints") == 0 and before - free_bytes(disk) <= 2 * 4096


@pytest.mark.parametrize("keep", [1, 2])
def test_on_a_disk_that_others_filled_every_save_still_finds_its_space(tmp_path: Path, keep: int) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        folder = disk / "checkpoints"
        assert reserve.hold(folder, 2 * ONE) is None
        fill(disk)
        assert free_bytes(disk) == 0
        for step in range(1, 8):
            save(folder, step, keep=keep)
            assert steps(folder) == list(range(max(1, step - keep + 1), step + 1))
            assert checkpoints.verify(folder) == []
            fill(disk)


def test_without_space_held_a_disk_that_others_filled_costs_the_save(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        save(disk / "checkpoints", 1, keep=1)
        fill(disk)
        with pytest.raises(RunError, match="No space left on device"):
            save(disk / "checkpoints", 2, keep=1)
        assert steps(disk / "checkpoints") == [1]


def test_on_a_full_disk_what_retention_removes_anyway_goes_first_and_the_newest_never(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        folder = disk / "checkpoints"
        for step in (1, 2):
            save(folder, step, keep=2)
        fill(disk)
        save(folder, 3, keep=2)
        assert steps(folder) == [2, 3] and checkpoints.verify(folder) == []
        damaged = folder / "step-00000003" / "state.json"
        damaged.write_bytes(b"x")
        fill(disk)
        with pytest.raises(RunError, match="No space left"):
            save(folder, 4, keep=2)  # the newest is not whole, so the older one is all there is
        assert steps(folder) == [2, 3]


def test_a_killed_run_leaves_what_it_held_and_the_next_one_goes_on_holding_it(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        folder = disk / "checkpoints"
        assert reserve.hold(folder, 2 * ONE) is None

        def work() -> None:
            with reserve.given_up(folder, ONE):
                os.kill(os.getpid(), signal.SIGKILL)

        os.waitpid(in_child(work), 0)
        assert ONE - 1 <= reserve.held(folder) <= ONE
        assert checkpoints.list_checkpoints(folder) == [] and checkpoints.load_newest(folder) is None
        assert reserve.hold(folder, 2 * ONE) is None and reserve.held(folder) == 2 * ONE
        fill(disk)
        assert reserve.hold(folder, 2 * ONE) is None


def test_a_disk_without_so_much_room_holds_nothing_or_what_it_held_before(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        folder = disk / "checkpoints"
        with pytest.raises(OSError, match="No space left on device"):
            reserve.hold(folder, 2**21)
        assert not (folder / reserve.RESERVED).exists() and free_bytes(disk) > 1_000_000
        assert reserve.hold(folder, 2**19) is None
        with pytest.raises(OSError, match="No space left on device"):
            reserve.hold(folder, 2**21)
        assert reserve.held(folder) == 2**19


def test_a_file_system_that_cannot_hold_space_says_so(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ramfs") as disk:
        assert reserve.hold(disk / "checkpoints", 2**20) == "Operation not supported"
        assert reserve.held(disk / "checkpoints") == 0
        save(disk / "checkpoints", 1, keep=1)
        assert steps(disk / "checkpoints") == [1] and not (disk / "checkpoints" / reserve.RESERVED).exists()


def test_a_limit_on_the_size_of_files_says_so_and_saves_that_fit_go_on(tmp_path: Path) -> None:
    """Everywhere, whoever runs the tests."""
    said = tmp_path / "said"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
        said.write_text(str(reserve.hold(tmp_path / "checkpoints", 2**20)), encoding="utf-8")
        save(tmp_path / "checkpoints", 1, keep=1)

    _, status = os.waitpid(in_child(work), 0)
    assert status == 0 and said.read_text(encoding="utf-8") == "File too large"
    assert steps(tmp_path / "checkpoints") == [1] and reserve.held(tmp_path / "checkpoints") == 0


def test_a_file_with_the_length_but_no_blocks_holds_nothing_until_the_run_goes_on(tmp_path: Path) -> None:
    """What a copy of the folder may be."""
    (tmp_path / reserve.RESERVED).touch()
    os.truncate(tmp_path / reserve.RESERVED, 2**20)
    assert reserve.held(tmp_path) == 0
    why = reserve.hold(tmp_path, 2**19)
    assert why is not None or reserve.held(tmp_path) == 2**19


def test_on_a_disk_that_is_read_only_for_a_while_nothing_is_lost(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        folder = disk / "checkpoints"
        assert reserve.hold(folder, 2 * ONE) is None
        save(folder, 1, keep=1)
        remount(disk, "ro")
        with pytest.raises(RunError, match="Read-only file system"):
            save(folder, 2, keep=1)
        assert steps(folder) == [1] and reserve.held(folder) == 2 * ONE
        remount(disk, "rw")
        save(folder, 2, keep=1)
        assert steps(folder) == [2]


def test_lines_of_the_log_get_some_of_what_is_held(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="1m") as disk:
        assert reserve.hold(disk / "checkpoints", 2**19) is None
        fill(disk)
        events = Events(disk / "events.jsonl")
        for step in range(1, 1001):
            events.append("step", step=step, loss=0.5)
        assert [event["step"] for event in Events(events.path).read()] == list(range(1, 1001))
        assert events.num_lost == 0
        assert 2**19 - 3 * reserve.ONE_LOG_SHARE <= reserve.held(disk / "checkpoints") < 2**19
        events.close()


def test_what_fresh_moves_aside_holds_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"name": "a"}, {})
    reserve.hold(run.checkpoints, 2**16)
    Run.create(tmp_path / "run", {"name": "b"}, {}, fresh=True)
    assert reserve.held(tmp_path / "run" / "before-1" / "checkpoints") == 0
    assert reserve.held(run.checkpoints) == 0
