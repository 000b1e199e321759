"""Ranks die, training goes on: all begin again from the last checkpoint, and nothing differs from an undisturbed run.

Launchers and ranks are real processes; what befalls a rank is a real signal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from test_ranks import place, ranks
from trainer import Trainer

import glassformer as gf
from glassformer.train.attempt import Cause
from glassformer.train.parallel.joining import NO_WORD
from glassformer.train.parallel.starting import why

SOURCE = Path(gf.__file__).parents[1]
QUICK = (
    "--model.dropout", "0", "--train.batch", "8", "--train.steps", "60", "--train.checkpoint_every", "10",
    "--train.validate_every", "100", "--train.sample_every", "100",
)  # fmt: skip
Deed = Callable[[dict[int, int]], None]


def children(pid: int) -> dict[int, int]:
    """The processes that a launcher has begun, by rank."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == pid:
                variables = (stat.parent / "environ").read_bytes().split(b"\0")
                found |= {int(v[5:]): int(number) for v in variables if v.startswith(b"RANK=")}
        except OSError:
            continue
    return found


def launched(
    trainer: Trainer, run: str, *command: str, deeds: tuple[tuple[int, Deed], ...]
) -> tuple[int, str]:
    """(exit code, stderr) of a launcher. Each deed is done once its step is in the run's events; it is given the
    process of each rank, and of the launcher as -1."""
    here = {"GLASSFORMER_HOME": str(trainer.home), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    events = trainer.folder / run / "events.jsonl"
    with (trainer.folder / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *QUICK, "--run", run], cwd=trainer.folder,
            env={**os.environ, **here}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        for step, deed in deeds:
            while process.poll() is None and not (
                events.exists() and f'"step": {step},' in events.read_text("utf-8")
            ):
                time.sleep(0.02)
            deed({**children(process.pid), -1: process.pid})
        code = process.wait(timeout=120)
        said.seek(0)
        return code, said.read()


def sends(number: signal.Signals, rank: int) -> Deed:
    return lambda pids: os.kill(pids[rank], number)


def twice(pids: dict[int, int]) -> None:
    """Ctrl-C, and once more."""
    os.kill(pids[-1], signal.SIGINT)
    time.sleep(0.05)
    os.kill(pids[-1], signal.SIGINT)


@pytest.fixture(scope="module")
def whole(module_trainer: Trainer) -> Trainer:
    assert [end.exit for end in ranks(module_trainer, 2, "undisturbed", *QUICK)] == [0, 0]
    return module_trainer


def assert_the_same_command_ends_the_same(trainer: Trainer, run: str) -> None:
    assert [end.exit for end in ranks(trainer, 2, run, *QUICK)] == [0, 0]
    assert trainer.run(run).verify() == []
    assert trainer.story(run) == trainer.story("undisturbed")


def test_when_a_rank_is_killed_all_begin_again_to_the_bit_and_when_the_launcher_is_they_end(
    whole: Trainer,
) -> None:
    command = ("glassformer", "train", "tiny.toml", "--fresh", "--ranks", "2")
    left: list[int] = []

    def kill_the_launcher(pids: dict[int, int]) -> None:
        left.extend(pids.pop(rank) for rank in (0, 1))
        os.kill(pids[-1], signal.SIGKILL)

    deeds = ((15, sends(signal.SIGKILL, 0)), (35, kill_the_launcher))
    code, said = launched(whole, "killed", *command, deeds=deeds)
    assert (
        "Rank 0 was killed by SIGKILL: all ranks begin again from the last checkpoint (restart 1 of 3)"
        in said
    )
    assert code == -signal.SIGKILL and "restart 2" not in said and "Traceback" not in said, said
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < end
        time.sleep(0.1)
    events = list(whole.run("killed").events.read())
    assert [e["step"] for e in events if e["event"] == "resumed"] == [10]
    (crash,) = [e for e in events if e["event"] == "crash"]
    assert (crash["rank"], crash["what"]) == (0, "it was killed by SIGKILL") and crash["step"] >= 15
    assert [path.name for path in whole.run("killed").path.glob("before-*")] == []  # --fresh once, at most
    assert_the_same_command_ends_the_same(whole, "killed")


def test_torchrun_begins_again_after_a_crash_and_not_after_a_stop(whole: Trainer) -> None:
    command = (
        "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3", "-m", "--",
        "glassformer", "train", "tiny.toml",
    )  # fmt: skip
    deeds = ((15, sends(signal.SIGKILL, 1)), (35, sends(signal.SIGUSR1, 1)))
    code, said = launched(whole, "torchrun", *command, deeds=deeds)
    assert code == 1 and "SIGUSR1 was received" in said
    events = [e["event"] for e in whole.run("torchrun").events.read()]
    assert events.count("crash") == events.count("resumed") == events.count("stopped") == 1
    assert_the_same_command_ends_the_same(whole, "torchrun")


@pytest.mark.parametrize(("deed", "ends"), [(sends(signal.SIGTERM, -1), 75), (twice, 130)])
def test_a_signal_to_the_launcher_of_one_process_stops_it_saved_and_ctrl_c_twice_at_once(
    trainer: Trainer, deed: Deed, ends: int
) -> None:
    slow = (
        "--model.width",
        "256",
        "--model.layers",
        "4",
        "--model.context",
        "64",
    )  # a step outlasts both signals
    command = ("glassformer", "train", "tiny.toml", "--restarts", "1", *slow)
    code, said = launched(trainer, "alone", *command, deeds=((11, deed),))
    assert code == ends and "restart" not in said and "Traceback" not in said, said
    assert trainer.run("alone").verify() == []


def test_ctrl_c_twice_at_one_rank_ends_all_at_once_and_what_was_saved_is_whole(whole: Trainer) -> None:
    port, moments = free_port(), ("optimizer", "manifest")
    plans = tuple({"at": f"asks: open+.step-00000020+{moment}", "do": "SIGINT"} for moment in moments)
    second = whole.start("twice", *QUICK, **place(1, 2, port)), whole.count - 1
    first = whole.start("twice", *QUICK, plans=plans, **place(0, 2, port)), whole.count - 1
    assert [whole.end(*first).exit, whole.end(*second).exit] == [130, 130]
    assert_the_same_command_ends_the_same(whole, "twice")


def test_what_is_begun_again_is_decided_by_all_that_ended() -> None:
    def ended(codes: list[int], *causes: Cause) -> tuple[int, bool]:
        found = why(dict(enumerate(codes)), causes)
        return found.exit_code, found.again

    def said(rank: int, what: str, code: int, again: bool) -> Cause:
        return Cause(rank, what, code, again)

    lost, stopped = said(-1, NO_WORD, 1, True), said(0, "Stopped", 75, False)
    assert ended([1, -9], lost) == (1, True)
    assert why({0: 1, 1: -9}, [lost]).what == "it was killed by SIGKILL"
    assert ended([75, 75], stopped, stopped) == (75, False)
    assert ended([75, -9], stopped) == (1, True)  # it stopped because it was told to when the other was gone
    assert ended([75, 1], stopped) == (1, True)  # the other said nothing
    assert ended([1, 1], said(1, "MemoryError", 1, True), said(1, "MemoryError", 1, True)) == (1, True)
    assert ended([1, 1], said(1, "diverged", 1, False), lost) == (1, False)
    assert ended([2, -15]) == (2, False)
    assert ended([-15, -15]) == (143, False)
    assert ended([130, 130], said(0, "it was interrupted", 130, False)) == (130, False)
    hangs: list[Any] = [
        Cause(1, "it hangs", 1, True, True),
        Cause(1, "it hangs, in f (x.py:1)", 1, True, True),
    ]
    assert why({0: 1, 1: -9}, hangs).what == "it hangs, in f (x.py:1)"
