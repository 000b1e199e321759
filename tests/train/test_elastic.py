"""Ranks die, training goes on: all begin again from the last checkpoint, and the numbers are those of an undisturbed run.

Launchers and ranks are real processes; what befalls a rank is a real signal. `launched` leaves the launcher's stderr.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer import Trainer

import glassformer as gf
from glassformer.train.attempt import Cause
from glassformer.train.parallel.starting import why

SOURCE = Path(gf.__file__).parents[1]
QUICK = (
    "--model.dropout", "0", "--train.batch", "8", "--train.steps", "60", "--train.checkpoint_every", "10",
    "--train.validate_every", "100", "--train.sample_every", "100", "--faults.remember_every", "0",
)  # fmt: skip
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def children(pid: int) -> list[int]:
    """The processes that a process has begun, by number."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" ")
        except OSError:
            continue
        if int(rest.rpartition(")")[2].split()[1]) == pid:
            found.append(int(number))
    return sorted(found)


def rank_of(pid: int) -> int:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), -1)


def launched(
    trainer: Trainer,
    run: str,
    *command: str,
    deeds: tuple[tuple[int, Callable[[dict[int, int]], None]], ...] = (),
) -> tuple[int, str]:
    """(exit code, stderr) of a launcher. Each deed is done once its step is in the run's events; it is given the
    process of each rank, and of the launcher as -1."""
    here = {"GLASSFORMER_HOME": str(trainer.home), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    with (trainer.folder / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *QUICK, "--run", run], cwd=trainer.folder,
            env={**os.environ, **here}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        for step, deed in deeds:
            while process.poll() is None and f'"step": {step},' not in story_so_far(trainer, run):
                time.sleep(0.02)
            ranks = {rank_of(pid): pid for pid in children(process.pid)}
            deed({**ranks, -1: process.pid})
        code = process.wait(timeout=120)
        said.seek(0)
        return code, said.read()


def story_so_far(trainer: Trainer, run: str) -> str:
    file = trainer.folder / run / "events.jsonl"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def kill(rank: int) -> Callable[[dict[int, int]], None]:
    return lambda ranks: os.kill(ranks[rank], signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(module_trainer: Trainer) -> Trainer:
    code, said = launched(module_trainer, "undisturbed", "glassformer", "train", "tiny.toml", "--ranks", "2")
    assert code == 0, said
    return module_trainer


def test_ranks_that_are_killed_begin_again_and_the_run_is_the_same_to_the_bit(undisturbed: Trainer) -> None:
    code, said = launched(
        undisturbed,
        "killed",
        "glassformer",
        "train",
        "tiny.toml",
        "--ranks",
        "2",
        deeds=((15, kill(1)), (35, kill(0))),
    )
    assert code == 0, said
    assert (
        "Rank 1 was killed by SIGKILL: all ranks begin again from the last checkpoint (restart 1 of 3)"
        in said
    )
    assert (
        "Rank 0 was killed by SIGKILL: all ranks begin again from the last checkpoint (restart 2 of 3)"
        in said
    )
    resumed = [e for e in undisturbed.run("killed").events.read() if e["event"] == "resumed"]
    assert len(resumed) == 2 and resumed[0]["step"] >= 10 and resumed[1]["step"] >= 30
    assert undisturbed.story("killed") == undisturbed.story("undisturbed")
