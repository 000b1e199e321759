"""A rank that hangs: the others notice, say where it hung, and end it.

Two real processes, and real hangs: stopped by SIGSTOP, in a call of C for ever, there with the interpreter's lock.
"""

from __future__ import annotations

import json
import signal
import time

import pytest
from test_ranks import PLAIN, ranks
from trainer import Trainer

from glassformer.train.stacks import innermost

QUICK = (*PLAIN, "--parallel.timeout", "2", "--train.steps", "100000", "--train.log_every", "5")
AT_STEP_5 = 'writes: "event": "step"+"step": 5,'


@pytest.mark.parametrize("deed", ["SIGSTOP", "SIGVTALRM", "SIGXCPU"])
def test_a_rank_that_hangs_is_ended_and_every_rank_leaves_its_stacks(trainer: Trainer, deed: str) -> None:
    began = time.monotonic()
    first, second = ranks(trainer, 2, "hangs", *QUICK, deed=deed)
    assert time.monotonic() - began < 40
    assert first.exit == 1 and second.exit == -signal.SIGKILL
    why = "its part of step " if deed == "SIGVTALRM" else "nothing was heard of it for 2 s"
    assert f"Rank 1 failed: it hangs: {why}" in first.said
    mine, theirs = (
        (trainer.folder / "hangs" / "faults" / f"stacks-0-rank-{rank}.txt").read_text("utf-8")
        for rank in range(2)
    )
    for text in (mine, theirs):
        assert "in training" in text and "in _look" in text  # the main thread, and the watchdog's
    assert "distributed_c10d.py" in innermost(mine)  # it waited
    if deed != "SIGSTOP":
        assert innermost(theirs).startswith("stuck (forked_trainer.py:")
        assert ", in stuck (forked_trainer.py:" in first.said
    (end,) = (trainer.folder / "hangs" / "faults" / "ends.jsonl").read_text("utf-8").splitlines()
    assert json.loads(end)["cause"]["what"].startswith("it hangs")


def test_sigquit_shows_where_a_rank_is_and_ends_nothing(trainer: Trainer) -> None:
    ended = ranks(trainer, 2, "asked", *PLAIN, deed="SIGQUIT")
    assert [end.exit for end in ended] == [0, 0]
