"""Asked to stop: the step is finished, everything is saved, exit code 75, and the same command goes on."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from trainer import Trainer

from glassformer.run.folder import Run


def signalled(deed: str, at: str = 'writes: "event": "step"+"step": 5,') -> tuple[dict[str, Any], ...]:
    return ({"at": at, "do": deed},)


@pytest.fixture(scope="module")
def undisturbed(module_trainer: Trainer) -> dict[str, Any]:
    assert module_trainer("undisturbed").exit == 0
    return module_trainer.story("undisturbed")


def summary_of(run: Run) -> str:
    return str(run.summary()["status"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_lets_the_step_finish_saves_and_says_that_the_same_command_goes_on(
    module_trainer: Trainer, undisturbed: dict[str, Any], name: str
) -> None:
    stopped = module_trainer(name, plans=signalled(name))
    run = module_trainer.run(name)
    assert (
        stopped.exit == 75
        and f"{name} was received" in stopped.said
        and "the same command goes on" in stopped.said
    )
    assert stopped.events[-1]["event"] == "stopped" and summary_of(run) == "stopped"
    saved = stopped.all("checkpoint")[-1]["step"]
    assert saved == stopped.all("step")[-1]["step"] in (5, 6)
    resumed = module_trainer(name)
    assert resumed.exit == 0 and resumed.all("resumed")[0]["step"] == saved
    assert module_trainer.story(name) == undisturbed


def test_ctrl_c_twice_ends_at_once_and_what_was_saved_is_whole(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    twice = signalled("SIGINT") + signalled("SIGINT", 'writes: "event": "step"+"step": 6,')
    ended = module_trainer("twice", "--train.checkpoint_every", "3", plans=twice)
    assert ended.exit in (75, 130)  # the first may have been obeyed already
    both = signalled("SIGINT", "asks: open+.step-00000006+optimizer") + signalled(
        "SIGINT", "asks: open+.step-00000006+manifest"
    )
    ended = module_trainer("in a save", plans=both)
    assert ended.exit == 130 and "Traceback" not in ended.said
    for run in ("twice", "in a save"):
        assert module_trainer.run(run).verify() == []
        assert module_trainer(run).exit == 0
        assert module_trainer.story(run) == undisturbed


def test_a_signal_before_the_first_step_stops_before_any_work_is_lost(
    module_trainer: Trainer, undisturbed: dict[str, Any]
) -> None:
    stopped = module_trainer("early", plans=signalled("SIGTERM", "writes: reading the text"))
    assert stopped.exit == 75 and "before the first step: SIGTERM was received" in stopped.said
    assert not stopped.events
    assert module_trainer("early").exit == 0
    assert module_trainer.story("early") == undisturbed


@pytest.mark.parametrize("deed", ["SIGKILL", "SIGTERM"])
def test_a_run_that_ended_before_its_first_step_is_gone_on_with_in_the_same_folder(
    trainer: Trainer, deed: str
) -> None:
    ended = trainer(None, plans=signalled(deed, "writes: choosing how"))
    assert ended.exit == (75 if deed == "SIGTERM" else -signal.SIGKILL)
    assert trainer(None).exit == 0
    assert [path.name for path in (trainer.folder / "runs").iterdir()] == ["tiny-1"]


def test_a_deadline_stops_with_everything_saved(module_trainer: Trainer) -> None:
    long = ("--train.steps", "100000", "--train.log_every", "1000")
    stopped = module_trainer("deadline", *long, "--stop-after", "1s")
    assert stopped.exit == 75 and "--stop-after is over" in stopped.said
    assert (
        module_trainer("deadline", *long, "--stop-after", "0s").all("resumed")[0]["step"]
        == (stopped.all("checkpoint")[-1]["step"])
    )


def test_a_second_process_on_the_same_run_is_refused_and_told_who_the_first_is(
    module_trainer: Trainer,
) -> None:
    first = module_trainer.start("shared", "--train.steps", "100000")
    number = module_trainer.count - 1
    written = module_trainer.folder / f"out-{number}"
    while not (written.exists() and '"event": "step"' in written.read_text(encoding="utf-8")):
        time.sleep(0.02)
    second = module_trainer("shared", "--train.steps", "100000")
    assert second.exit == 1 and f"process {first} on {os.uname().nodename}" in second.said
    fresh = module_trainer("shared", "--train.steps", "100000", "--fresh")
    assert fresh.exit == 1 and f"process {first}" in fresh.said and not fresh.events
    os.kill(first, signal.SIGKILL)
    assert module_trainer.end(first, number).exit == -signal.SIGKILL
    after = module_trainer("shared", "--train.steps", "100000", "--stop-after", "0s")
    assert after.exit == 75
    took_over = [
        event["message"]
        for event in module_trainer.run("shared").events.read()
        if event["event"] == "warning"
    ]
    assert any(f"took over the run from process {first}" in message for message in took_over)


def test_a_program_that_calls_training_gets_its_signal_handlers_back() -> None:
    from glassformer.train.interrupt import Interrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    interrupt = Interrupt()
    with interrupt.listening():
        assert interrupt.reason is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.reason == "SIGUSR1 was received"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before
