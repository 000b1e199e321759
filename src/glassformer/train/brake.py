"""A run that crashes at the same place again and again does not begin again for ever: it says why, and stops.

Whoever starts writes down how the one before ended, if that was a crash, as an event `crash`. A crash is

    - an end that left a word in RUN/faults/ends.jsonl which beginning again may mend (attempt.py), or
    - an end that left none: the lock still names the process that was killed.

A stop by signal or deadline, a wrong flag or numbers that diverged are none. `most_crashes` crashes whose steps lie
within `crash_steps` of each other are a loop: CrashLoop, with the list, what they have in common, and what to do.
What was done in between and went further than that does not count against the run.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from glassformer.errors import CrashLoop
from glassformer.run.events import Events
from glassformer.run.folder import Run
from glassformer.train.attempt import ENDS, Cause
from glassformer.train.config import FaultsConfig
from glassformer.train.task import Event

Crash = dict[str, Any]

_NO_TRACE = "it left no trace: it was killed (kill -9, or for want of memory), or the machine went down"
_MEMORY = re.compile(r"MemoryError|[Oo]ut ?[Oo]f ?[Mm]emory|too much memory|want of memory|killed by SIGKILL")


def hold(run: Run, config: FaultsConfig, accept: bool = False) -> Iterator[Event]:
    """Write down a crash, if there was one, and raise CrashLoop where it was one too many; under the run's lock.

    `accept` is the user's word to go on all the same: what was before does not count any more.
    """
    if (crash := _found(run)) is not None:
        yield run.events.append("crash", **crash)
    crashes = counted(run.events)
    if accept and crashes:
        message = f"goes on after {len(crashes)} crashes, as asked"
        yield run.events.append("warning", message=message, accepted_crashes=len(crashes))
        return
    near = crashes[-config.most_crashes :]
    steps = [crash["step"] for crash in near]
    if (
        config.most_crashes
        and len(near) == config.most_crashes
        and max(steps) - min(steps) <= config.crash_steps
    ):
        within = max(steps) - min(steps) + 1
        lines = "\n".join(f"  - {_line(crash)}" for crash in near)
        raise CrashLoop(
            f"The run crashed {len(near)} times within {within} steps and does not go on:\n{lines}",
            expected="In common: " + (", ".join(in_common(near)) or "nothing that is known") + ".",
            do=f"{_advice(near)} Then the same command with --accept-crashes goes on; --fresh begins anew.",
        )


def counted(events: Events) -> list[Crash]:
    """The crashes since the user last accepted some."""
    crashes: list[Crash] = []
    for event in events.read():
        if "accepted_crashes" in event:
            crashes = []
        elif event["event"] == "crash":
            crashes.append(event)
    return crashes


def in_common(crashes: Sequence[Crash]) -> list[str]:
    """What is the same in all of them, in words."""
    found = []
    same: list[tuple[str, Callable[[Crash], Any]]] = [
        ("all after step {}", lambda crash: crash["step"]),
        ("all of rank {}", lambda crash: crash["rank"]),
        ("all on {}", lambda crash: crash["machine"]),
        ("all because {}", lambda crash: crash["what"].partition(", in ")[0]),
    ]
    for words, value in same:
        values = {value(crash) for crash in crashes}
        if len(values) == 1 and (only := values.pop()) is not None:
            found.append(words.format(only))
    if all(_MEMORY.search(crash["what"]) for crash in crashes):
        found.append("all perhaps for want of memory")
    return found


def _found(run: Run) -> Crash | None:
    """What became of the process before this one, where it was a crash that nobody has written down yet."""
    step, seen = 0, 0
    for event in run.events.read():
        seen = event.get("ends", seen)
        if event["event"] == "start":
            step = 0
        elif isinstance(event.get("step"), int):
            step = event["step"]
    lines = _ends(run)
    ends = [end for end in lines[seen:] if end["cause"]["again"]]
    if not ends and run.took_over is None:
        return None
    crash: Crash = {
        "step": step,
        "rank": None,
        "machine": socket.gethostname(),
        "what": _NO_TRACE,
        "at": None,
    }
    if ends:
        end = min(ends, key=_worth)
        cause = Cause(**end["cause"])
        rank = None if cause.rank < 0 else cause.rank
        crash |= {"rank": rank, "machine": end["machine"], "what": cause.what, "at": end["time"]}
    return {**crash, "ends": len(lines)}


def _worth(end: dict[str, Any]) -> tuple[bool, bool, bool, int]:
    """The end that tells most comes first: what hung, and where; what the rank says that was the first to end."""
    cause = end["cause"]
    own = end["rank"] in (None, cause["rank"])
    return (not cause["hangs"], cause["rank"] < 0, not own, -len(cause["what"]))


def _ends(run: Run) -> list[dict[str, Any]]:
    found = []
    try:
        lines = (run.path / ENDS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            end = json.loads(line)
            Cause(**end["cause"])
            found.append(
                {"time": end["time"], "machine": end["machine"], "rank": end["rank"], "cause": end["cause"]}
            )
        except (ValueError, KeyError, TypeError):  # torn, or another version's
            found.append({"time": None, "machine": None, "rank": None, "cause": {"again": False}})
    return found


def _line(crash: Crash) -> str:
    rank = "" if crash["rank"] is None else f", rank {crash['rank']}"
    what = crash["what"].splitlines()[0][:300]
    return f"{crash['at'] or crash['time']} after step {crash['step']}{rank} on {crash['machine']}: {what}"


def _advice(crashes: Sequence[Crash]) -> str:
    whats = [crash["what"] for crash in crashes]
    advice = []
    if all(map(_MEMORY.search, whats)):
        advice.append(
            "If it is memory, take smaller micro-batches (train.accumulate), or look who else uses it."
        )
    if any(what.startswith("it hangs") for what in whats):
        advice.append("faults/stacks-* in the run's folder say where each rank was.")
    if len({crash["machine"] for crash in crashes}) == 1 < len({crash["step"] for crash in crashes}):
        advice.append("If it is the machine, take another.")
    if len({crash["step"] for crash in crashes}) == 1:
        advice.append(f"Look at what comes after step {crashes[0]['step']}: its batch, a save, a validation.")
    return " ".join(advice or ["Mend what is in the list."])
