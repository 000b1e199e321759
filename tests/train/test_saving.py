"""Checkpoints beside the work: training goes on, at most one is in flight, and a disk that refuses is asked again.

The disk is made slow, or full, where Python asks it to keep what was written (`os.fsync`), for files of a save alone.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sessions import Breaker, Broken
from trainer import Trainer

from glassformer.run import checkpoints
from glassformer.train.interrupt import Interrupt
from glassformer.train.loop import Session
from glassformer.train.task import Event

SHORT = {"train__steps": 20, "train__checkpoint_every": 5, "train__keep": 9}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Give what befalls each file of a save before it is on the disk."""
    real, befalls = os.fsync, [lambda: None]

    def fsync(handle: int) -> None:
        if ".partial-" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            befalls[0]()
        real(handle)

    def say(what: Callable[[], None]) -> None:
        befalls[0] = what

    monkeypatch.setattr(os, "fsync", fsync)
    yield say


def saved(run: Broken) -> list[int]:
    return [event["step"] for event in run.all("checkpoint")]


def tensors(run: Broken, step: int) -> list[bytes]:
    folder = run.run.checkpoints / f"step-{step:08d}"
    return [file.read_bytes() for file in sorted(folder.glob("*.safetensors"))]


def test_steps_go_on_during_a_save_and_one_that_comes_due_meanwhile_is_left_out_with_a_word(
    breaker: Breaker, disk: Callable[[Callable[[], None]], None]
) -> None:
    waiting = breaker("waiting", **SHORT, train__save_beside=False)
    assert saved(waiting) == [5, 10, 15, 20] and waiting.warned == ""
    gate = threading.Event()
    disk(lambda: None if gate.wait(60) else pytest.fail("nobody opened the gate"))

    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 12:
            gate.set()
            session.saver.join()

    beside = breaker("beside", after=after, **SHORT)
    assert saved(beside) == [5, 15, 20]
    (warning,) = beside.all("warning")
    assert "no checkpoint at step 10: that of step 5 is still being written" in warning["message"]
    assert "1 left out so far" in warning["message"]
    order = [
        (e["event"], e["step"]) for e in beside.run.events.read() if e["event"] in ("step", "checkpoint")
    ]
    assert order.index(("checkpoint", 5)) == order.index(("step", 12)) + 1  # told when it was whole
    told = beside.all("checkpoint")[0]
    assert 0 < told["stall_seconds"] < told["seconds"]
    for step in (5, 15, 20):  # of its own step, though weights changed while it was written
        assert tensors(beside, step) == tensors(waiting, step)
    assert beside.story == waiting.story and beside.run.verify() == []


def test_a_mean_of_checkpoints_does_not_depend_on_how_fast_the_disk_is(
    breaker: Breaker, disk: Callable[[Callable[[], None]], None]
) -> None:
    quick = breaker("quick", **SHORT, train__average=3, train__save_beside=False)
    disk(lambda: time.sleep(0.03))
    slow = breaker("slow", **SHORT, train__average=3)
    assert saved(slow) == [5, 10, 15, 20] and slow.warned == ""
    assert slow.story == quick.story


def test_a_save_that_the_disk_refuses_is_tried_again_ever_later_and_no_good_one_is_removed(
    breaker: Breaker, disk: Callable[[Callable[[], None]], None]
) -> None:
    refusals = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES]
    whole: list[list[int]] = []

    def refuse() -> None:
        if saved(Broken(breaker.folder / "refused")) and refusals:
            number = refusals.pop(0)
            raise OSError(number, os.strerror(number))

    def after(session: Session, event: Event) -> None:
        if event["event"] == "warning":
            assert checkpoints.verify(session.run.checkpoints) == []
            whole.append([one.step for one in checkpoints.list_checkpoints(session.run.checkpoints)])

    disk(refuse)
    every = {"train__steps": 40, "train__checkpoint_every": 8, "train__keep": 1}
    run = breaker("refused", after=after, train__save_beside=False, **every)
    words = [(16, "No space left", 17), (17, "quota exceeded", 19), (19, "Read-only", 23), (23, "denied", 31)]
    for (step, why, again), warning in zip(words, run.all("warning"), strict=True):
        assert f"no checkpoint at step {step}: " in warning["message"] and why in warning["message"]
        assert f"Tried again at step {again}." in warning["message"]
    assert whole == [[8]] * 4
    assert saved(run) == [8, 24, 32, 40]  # a regular one is tried as well
    disk(lambda: None)
    assert breaker("not-refused", **every).story == run.story


def test_an_error_that_ends_a_run_waits_for_the_save_in_flight(
    breaker: Breaker, disk: Callable[[Callable[[], None]], None]
) -> None:
    disk(lambda: time.sleep(0.2))
    with pytest.raises(ZeroDivisionError), breaker.session("ends", **SHORT) as session, session.saver:
        for event in session.events(Interrupt(), None):
            if event["event"] == "step" and event["step"] == 6:
                assert not saved(Broken(session.run.path))
                raise ZeroDivisionError
    ended = Broken(breaker.folder / "ends")
    assert saved(ended) == [5] and ended.run.verify() == []


def test_a_run_killed_while_it_saves_beside_its_steps_comes_to_the_same_end(module_trainer: Trainer) -> None:
    beside = ("--train.save_beside", "true", "--train.steps", "24")
    assert module_trainer("whole", *beside).exit == 0
    moments = ["open+optimizer.safetensors+.partial", "open+manifest.json+.partial", "os.rename+.partial"]
    for number, moment in enumerate(moments, 1):
        plan = {"at": f"asks: {moment}", "do": "SIGKILL", "n": number}
        assert module_trainer("killed", *beside, plans=(plan,)).exit == -9, moment
    last = module_trainer("killed", *beside)
    assert last.exit == 0 and last.all("resumed")
    assert module_trainer.story("killed") == module_trainer.story("whole")
    run = module_trainer.run("killed")
    assert run.verify() == [] and [path.name for path in run.checkpoints.glob(".*")] == []
