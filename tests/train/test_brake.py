"""A run that crashes at the same place again and again says so and does not go on, until it is told to."""

from __future__ import annotations

from typing import Any

from trainer import Trainer

from glassformer.train.brake import counted, in_common

THREE = ("--faults.most_crashes", "3", "--faults.crash_steps", "4")


def crash(deed: str, step: int) -> tuple[dict[str, Any], ...]:
    return ({"at": f'writes: "event": "step"+"step": {step},', "do": deed},)


def crash_in_a_save(deed: str) -> tuple[dict[str, Any], ...]:
    return ({"at": "asks: os.mkdir+step-00000006", "do": deed},)


def test_after_so_many_crashes_a_run_says_what_they_have_in_common_and_goes_on_when_told(
    trainer: Trainer,
) -> None:
    assert trainer("undisturbed").exit == 0
    for deed in ("SIGKILL", "SIGPROF", "SIGPROF"):
        assert trainer("loops", *THREE, plans=crash_in_a_save(deed)).exit != 0
    refused = trainer("loops", *THREE)
    assert refused.exit == 1, refused.said
    assert "The run crashed 3 times within 1 steps and does not go on" in refused.said
    assert (
        refused.said.count("after step 6") == 7
    )  # the list (twice where memory ran out), what is common, what to do
    assert "it left no trace" in refused.said and "not even 3 bytes" in refused.said
    assert "In common: all after step 6" in refused.said and "all perhaps for want of memory" in refused.said
    assert "smaller micro-batches (train.accumulate)" in refused.said
    assert trainer("loops", *THREE).exit == 1  # still, and no crash of its own
    assert len(counted(trainer.run("loops").events)) == 3
    last = trainer("loops", *THREE, "--accept-crashes")
    assert last.exit == 0 and counted(trainer.run("loops").events) == []
    assert trainer.story("loops") == trainer.story("undisturbed")


def test_crashes_with_progress_between_and_stops_on_purpose_do_not_count(trainer: Trainer) -> None:
    for step in (1, 6, 11):
        assert trainer("goes on", *THREE, plans=crash("SIGKILL", step)).exit != 0
        assert trainer("goes on", *THREE, "--stop-after", "0s").exit == 75
    assert [c["step"] for c in counted(trainer.run("goes on").events)] == [1, 6, 11]
    assert trainer("goes on", *THREE).exit == 0


def test_what_crashes_have_in_common_is_said() -> None:
    one = {"step": 5, "rank": 1, "machine": "a", "what": "OSError: gone, in read (x.py:3)"}
    assert in_common([one, one | {"what": "OSError: gone, in read (x.py:4)"}]) == [
        "all after step 5", "all of rank 1", "all on a", "all because OSError: gone",
    ]  # fmt: skip
    assert in_common([one, one | {"step": 6, "machine": "b", "what": "MemoryError"}]) == ["all of rank 1"]
