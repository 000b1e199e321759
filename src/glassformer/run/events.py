"""events.jsonl: what happened in a run, one JSON object a line, only ever added to.

    {"event": "step", "time": "2026-01-31T12:00:00.125+00:00", "step": 12, "loss": 3.21, ...}

- A line is written by one `write` to a file opened for appending, so a killed process can tear only the last
  one. A torn line is normal: readers skip it and the next append starts on a fresh line.
- JSON has no NaN. A float that is not finite is written as the string "NaN", "Infinity" or "-Infinity"
  (as protobuf does); `curve` turns these back into floats.
- Rows of the `step` kind are left to the system to write out; every other event is forced to the disk.
- A full disk does not stop a run: lines get some of the space that the run holds (`reserve.py`); where there is none
  they wait in memory (at most `MOST_WAITING`) for the next append.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glassformer.run import reserve

MEANING = {
    "start": "training begins: recipe, parameters",
    "text_report": "what the corpus is: report",
    "engine": "how this machine is used: asked, choice, candidates [{name, step_seconds, tokens_per_second, "
    "error, first: {loss, grad_norm} of its first step}]",
    "step": "one update: step, loss, grad_norm, learning_rate, tokens and seconds so far, tokens_per_second, "
    "utilisation",
    "validation": "loss on what is held out: step, loss, bits_per_byte of text, and what the task judges by",
    "sample": "text the model wrote, or what it says of a row: step, prompt, text",
    "attention": "one attention pattern: layer, head, tokens, pattern (rows are queries), keys where these are other "
    "tokens",
    "calibration": "how far probabilities can be taken at their word: part, accuracy, confidence, ece, "
    "ece_by_chance_high, verdict, bins, temperature, mistakes",
    "checkpoint": "one is whole on the disk: step (of its state), path, bytes, seconds, stall_seconds (those that "
    "training waited for it)",
    "averaged": "the finished model is the mean of several checkpoints: step, steps",
    "resumed": "training goes on from a checkpoint: step, lost_steps, findings",
    "crash": "the process before ended without a save: step (the last that is known), rank, machine, what, at (when), "
    "ends (so many lines of faults/ends.jsonl are accounted for)",
    "ranks": "a rank holds the others up, or a look at their speed from time to time: step, slowest (a rank), machine, "
    "seconds (its own part of a step), others (theirs), step_seconds, ratio, share, slow",
    "fault": "an update that was refused, or noted: step, kind, loss, grad_norm, usual, decision, step_back, blamed (a "
    "step), sample_ids, place, tensors, samples, ranks, verified, bundle, message",
    "memory": "a step did not fit into memory and is computed in smaller micro-batches from now on: step, rank, error, "
    "rows (in each), asked_rows, accumulate, message",
    "drift": "the run left its plan, or is back in it: what (step_seconds, loss), step, value, planned, low, high, "
    "inside, message",
    "warning": "something to know: message",
    "cost": "what the run took: flops, seconds, tokens, peak_bytes (of the first rank's process, or its GPU, while "
    "training), joules where the machine tells",
    "done": "the end as planned: steps and the summary",
    "stopped": "an early end, resumable: steps and the summary",
}
"""The events of a training run and their fields."""

MOST_WAITING = 10_000

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Events:
    """The events of one run. Anyone may read; only the process that holds the run's lock appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_lost = 0
        """Lines given up because the disk stayed full."""
        self._handle: int | None = None
        self._torn = False
        self._waiting: list[bytes] = []

    def append(self, name: str, **fields: Any) -> dict[str, Any]:
        """Add one event and return it as a reader will see it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event: dict[str, Any] = plain({"event": name, "time": now, **fields})
        self._waiting.append(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[0]
            self.num_lost += 1
        try:
            self._write_or_make_room()
            if name != "step" and self._handle is not None:
                os.fsync(self._handle)
        except OSError:
            pass  # full or read-only for now: the lines wait; checkpoints are what raises the alarm
        return event

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole event from the beginning, streamed; torn lines are skipped."""
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event

    def last(self, *names: str) -> dict[str, Any] | None:
        """The newest event that has one of these names."""
        found = None
        for event in self.read():
            if event["event"] in names:
                found = event
        return found

    def curve(self, name: str) -> list[dict[str, Any]]:
        """Rows of one kind of event in order of their step, as the run that counts made them.

        What a crashed process wrote beyond the checkpoint from which the run went on is superseded: `resumed`
        at step k, or a row for the same or an earlier step, drops the later rows before it. Samples of one step
        after different prompts stand side by side.
        """
        rows: list[dict[str, Any]] = []
        for event in self.read():
            if event["event"] == "resumed":
                while rows and rows[-1]["step"] > event["step"]:
                    rows.pop()
            elif event["event"] == name and "step" in event:
                while rows and _supersedes(event, rows[-1]):
                    rows.pop()
                rows.append(
                    {key: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for key, v in event.items()}
                )
        return rows

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _write_or_make_room(self) -> None:
        try:
            self._write_waiting()
        except OSError as error:
            checkpoints = self.path.parent / "checkpoints"
            if error.errno not in reserve.FULL or not reserve.held(checkpoints):
                raise
            reserve.give_up(checkpoints, reserve.ONE_LOG_SHARE)
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._handle).st_size
            self._torn = size > 0 and os.pread(self._handle, 1, size - 1) != b"\n"
        while self._waiting:
            line = b"\n" + self._waiting[0] if self._torn else self._waiting[0]
            self._torn = os.write(self._handle, line) < len(line)
            if self._torn:
                raise OSError(errno.ENOSPC, "the disk took only a part of a line")
            del self._waiting[0]


class Unwritten(Events):
    """The events of a process that takes part in a run which another one writes: none stays."""

    def append(self, name: str, **fields: Any) -> dict[str, Any]:
        return {"event": name, **fields}

    def read(self) -> Iterator[dict[str, Any]]:
        yield from ()


def _supersedes(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    same = new["step"] == old["step"] and new.get("prompt") == old.get("prompt")
    return bool(same or new["step"] < old["step"])


def plain(value: Any) -> Any:
    """`value` in JSON's own types; numbers of NumPy and torch become Python's, NaN and infinity strings."""
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a NumPy or torch number or array, without importing either
        return plain(value.tolist())
    raise TypeError(f"An event cannot hold a {type(value).__name__}: {value!r}")
