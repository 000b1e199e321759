"""What became of each disturbance: from the run's events, the exit codes of its processes, and the undisturbed run.

steps lost      the last step before it, less the one that the run went on from: they are done again, to the bit
seconds lost    from the disturbance to the first step beyond where the run was, less the time of that step
identical       every step written down from then to the next disturbance has the loss and the gradient of the
                undisturbed run, to the bit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glassformer.train.drill.compare import STEP_KEYS
from glassformer.train.drill.course import Course, in_words
from glassformer.train.drill.disturbances import Disturbance
from glassformer.train.drill.processes import Start, pause
from glassformer.train.drill.sizes import when

_BEGINS = ("start", "resumed")
Event = Mapping[str, Any]
_Fired = tuple[float, dict[str, Any], Start]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    number: int
    fault: str
    step: int
    """The last step that the run had done."""
    moment: str
    seen: str
    steps_lost: int
    seconds_lost: float
    identical: bool | None
    """None where no step was written down before the next disturbance."""


def account(
    course: Course, events: Sequence[Event], clean: Sequence[Event], *, ranks: int, step_seconds: float
) -> list[Row]:
    """One row for each disturbance in the order in which they came, and for each failure that none brought about."""
    expected = {row["step"]: _numbers(row) for row in clean}
    fired = sorted(
        ((deed["time"], deed, start) for start in course.starts for deed in start.deeds),
        key=lambda item: item[0],
    )
    rows: list[Row] = []
    for index, (at, deed, start) in enumerate(fired):
        one = course.disturbances[deed["number"]]
        part = _Part(
            events,
            at,
            _until(fired, index, ends=one.ends(ranks), ended=_has_ended(fired, index, course, ranks)),
        )
        steps = [event for event in part.events if event["event"] == "step"]
        identical = all(_numbers(event) == expected.get(event["step"]) for event in steps) if steps else None
        if one.ends(ranks):
            seen = "; ".join(_end_seen(start, at, part, course.flips.get(deed["number"])))
            seconds = part.seconds(step_seconds)
        else:
            seen, seconds = _seen(one, part, start), part.pause(step_seconds)
        rows.append(
            Row(
                len(rows) + 1, in_words(one), part.reached, _moment(one, deed), seen,
                part.lost, round(seconds, 2), identical,
            )
        )  # fmt: skip
    for start in course.unexpected:
        said = start.said.strip().splitlines() or ["nothing was said"]
        rows.append(Row(len(rows) + 1, "none", 0, "", f"exit {start.exit}: {said[-1]}", 0, 0.0, None))
    return rows


def _has_ended(fired: Sequence[_Fired], index: int, course: Course, ranks: int) -> bool:
    """Whether its processes were to end already: ranks outlive their launcher for a while."""
    _, _, start = fired[index]
    return any(
        other is start and course.disturbances[deed["number"]].ends(ranks) for _, deed, other in fired[:index]
    )


def _until(fired: Sequence[_Fired], index: int, *, ends: bool, ended: bool) -> float:
    """When the next disturbance comes: of one that ends the processes, in a later start."""
    _, _, start = fired[index]
    later = [at for at, _, other in fired[index + 1 :] if not ends or other is not start]
    return min([start.ended] * ended + later, default=float("inf"))


class _Part:
    """The events from one disturbance to the next, and where the run stood."""

    def __init__(self, events: Sequence[Event], at: float, until: float) -> None:
        self._at, self._until = at, until
        first = next((i for i, event in enumerate(events) if when(event) > at), len(events))
        end = next((i for i in range(first, len(events)) if when(events[i]) > until), len(events))
        self.events = events[first:end]
        begins = next((i for i in range(first, end) if events[i]["event"] in _BEGINS), None)
        self.began = None if begins is None else events[begins]
        """The event with which the run went on."""
        self._after = events[first if begins is None else begins : end]
        self.reached = _reached(events[: first if begins is None else begins])

    @property
    def lost(self) -> int:
        """Steps that are done again."""
        return 0 if self.began is None else max(0, self.reached - self.began.get("step", 0))

    def seconds(self, step_seconds: float) -> float:
        """Until the run is beyond where it was, or something else befalls it."""
        beyond = [when(e) for e in self._after if e["event"] == "step" and e["step"] > self.reached]
        if beyond:
            return max(0.0, beyond[0] - self._at - step_seconds)
        if self._until < float("inf"):
            return self._until - self._at
        return when(self._after[-1]) - self._at if self._after else 0.0

    def pause(self, step_seconds: float) -> float:
        """What the next step took longer than usual."""
        steps = [when(event) for event in self.events if event["event"] == "step"]
        return max(0.0, steps[0] - self._at - step_seconds) if steps else 0.0


def _reached(before: Sequence[Event]) -> int:
    """The last step of the processes that wrote these events last."""
    reached = 0
    for event in before:
        if event["event"] in _BEGINS:
            reached = event.get("step", 0)
        elif event["event"] == "step":
            reached = event["step"]
    return int(reached)


def _end_seen(start: Start, at: float, part: _Part, flip: str | None) -> list[str]:
    """How the processes ended, and how the run went on."""
    how = "were stuck and had to be killed" if start.stuck else f"gone in {start.ended - at:.1f} s"
    code = f"exit {start.exit}" if start.exit >= 0 else "killed"
    told = [f"{code}, all {how}", *start.remarks]
    if flip:
        told.append(flip)
    if part.began is None:
        return [*told, "something else befell it before it went on"]
    told += [f"found in {finding.split(': ')[0]}" for finding in part.began.get("findings", ())]
    went_on = (
        f"went on from step {part.began['step']}" if "step" in part.began else "began anew, nothing was saved"
    )
    return [*told, went_on]


def _seen(one: Disturbance, part: _Part, start: Start) -> str:
    """What the run wrote about it."""
    if one.kind == "stop":
        return f"stood still for {pause(one):.1f} s and went on"
    told = []
    for event in part.events:
        if event["event"] == "fault":
            told.append(f"{event['kind'].replace('_', ' ')} at step {event['step']}: {event['decision']}")
        elif event["event"] == "warning" and "computed again" not in event["message"]:
            told.append(event["message"].split(" (")[0].split(". ")[0])
        elif event["event"] in _BEGINS:
            told.append(f"exit {start.exit}, went on from step {event.get('step', 0)}")
    if not any(event["event"] == "step" for event in part.events):
        told = told or ["the next one came first"]
    return "; ".join(dict.fromkeys(told)) or "nothing"


def _moment(one: Disturbance, deed: Mapping[str, Any]) -> str:
    if one.moment == "start":
        return "while it started"
    if one.moment == "save":
        return "within a save"
    return deed["how"] or f"{one.draws[0]:.0%} into a step"


def _numbers(row: Event) -> list[Any]:
    return [row[key] for key in STEP_KEYS]
