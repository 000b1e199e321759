"""The event log survives torn lines, full disks and numbers that JSON lacks."""

from __future__ import annotations

import json
import math
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.run.events import MEANING, Events, plain


@pytest.fixture
def events(tmp_path: Path) -> Events:
    return Events(tmp_path / "events.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.text().filter(lambda key: key not in ("event", "time", "name", "self")), JSON)
    )
)
def test_what_is_appended_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    events = Events(tmp_path_factory.mktemp("events") / "events.jsonl")
    for row in rows:
        events.append("anything", **row)
    events.close()
    assert [{k: v for k, v in row.items() if k not in ("event", "time")} for row in events.read()] == rows


def test_every_line_is_valid_json_and_numbers_that_are_not_finite_come_back(events: Events) -> None:
    events.append(
        "step", step=1, loss=math.nan, grad_norm=math.inf, low=np.float32(-np.inf), good=torch.tensor(2.5)
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(events.path.read_text(), parse_constant=refuse)
    assert (row["loss"], row["grad_norm"], row["low"], row["good"]) == ("NaN", "Infinity", "-Infinity", 2.5)
    back = events.curve("step")[0]
    assert math.isnan(back["loss"]) and back["grad_norm"] == math.inf and back["low"] == -math.inf


def test_arrays_and_tensors_become_lists_and_other_things_are_refused() -> None:
    assert plain({"a": np.arange(2), "b": (torch.ones(2), True)}) == {"a": [0, 1], "b": [[1.0, 1.0], True]}
    with pytest.raises(TypeError, match="cannot hold a complex"):
        plain({"z": 1j})


def test_a_torn_last_line_is_skipped_and_the_next_event_starts_on_a_fresh_line(events: Events) -> None:
    events.append("step", step=1)
    events.append("step", step=2)
    events.close()
    whole = events.path.read_bytes()
    for cut in range(whole.index(b"\n") + 2, len(whole) - 1):
        events.path.write_bytes(whole[:cut])
        again = Events(events.path)
        assert [row["step"] for row in again.read()] == [1]
        again.append("step", step=3)
        again.close()
        assert [row["step"] for row in again.read()] == [1, 3]


def test_lines_of_nonsense_are_skipped(events: Events) -> None:
    events.path.write_bytes(b'\xff\xfe\n[1]\n{"no": "event"}\n\n{"event": "done"}\n')
    assert [row["event"] for row in events.read()] == ["done"]
    assert events.last("done", "stopped") == {"event": "done"}
    assert Events(events.path.with_name("none")).last("done") is None


def test_after_a_resume_the_superseded_steps_are_dropped(events: Events) -> None:
    for step in range(1, 8):
        events.append("step", step=step, loss=float(step))
    events.append("validation", step=7, loss=1.0)
    events.append("resumed", step=4, lost_steps=0)
    for step in (5, 6):
        events.append("step", step=step, loss=step * 10.0)
    assert [row["loss"] for row in events.curve("step")] == [1, 2, 3, 4, 50, 60]
    assert events.curve("validation") == []


def test_a_resume_that_was_not_recorded_supersedes_all_the_same(events: Events) -> None:
    for step in (1, 2, 3, 2, 3):
        events.append("step", step=step)
    assert [row["step"] for row in events.curve("step")] == [1, 2, 3]


def test_a_full_disk_stops_nothing_and_loses_nothing(events: Events) -> None:
    """A real limit on the file's size: the write is cut short, later ones fail, then there is space again."""
    events.append("step", step=1)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (events.path.stat().st_size + 20, before[1]))
    try:
        for step in (2, 3):
            events.append("step", step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [row["step"] for row in events.read()] == [1]
    events.append("done", step=4)
    assert [row["step"] for row in events.read()] == [1, 2, 3, 4]
    assert events.num_lost == 0


def test_a_disk_that_stays_full_costs_the_oldest_lines_and_they_are_counted(tmp_path: Path) -> None:
    events = Events(Path("/dev/null/events.jsonl"))
    for step in range(10_003):
        events.append("step", step=step)
    assert events.num_lost == 3


def test_every_event_is_in_the_documentation_word_for_word() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text("utf-8")
    assert [name for name, fields in MEANING.items() if f"| `{name}` | {fields} |" not in page] == []


def test_samples_of_one_step_after_different_prompts_are_all_kept(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    for step, prompt in ((1, "a"), (1, "b"), (2, "a"), (2, "b")):
        events.append("sample", step=step, prompt=prompt)
    assert [(row["step"], row["prompt"]) for row in events.curve("sample")] == [
        (1, "a"),
        (1, "b"),
        (2, "a"),
        (2, "b"),
    ]
