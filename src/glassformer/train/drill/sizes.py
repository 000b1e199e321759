"""How long a drill's run is, so that all of it fits into its minutes: from what a pilot of a few steps took.

    minutes = pilot + 2 (start + N step + N / every save + end) + E (restart + every / 2 step)

N steps, a checkpoint every `every` of them, E ends of the processes; twice, since it trains undisturbed and disturbed.
`restart` is measured, too: from the kill of the pilot to its first step after it. N is the most that fits, at most the
recipe's own steps and `STEPS_EACH` for each disturbance; a tenth of the minutes is left for what comes otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from glassformer.errors import RunError, UsageError
from glassformer.stats import median

PILOT_STEPS, PILOT_EVERY, PILOT_KILLED = 6, 3, 5
"""A pilot's steps, its steps between checkpoints, and the one after which it is killed."""
LEAST_STEPS = 12
STEPS_EACH = 8
_SHARE = 0.9
_COMPARE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a pilot took, in seconds."""

    elapsed: float
    """Since the drill began."""
    start: float
    """To the first step, with everything in the cache."""
    step: float
    save: float
    restart: float
    """From a kill to the first step after it, without those that are done again."""
    end: float
    """From the last step to the end of the processes: validation, samples, the report."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of both runs."""

    steps: int
    every: int
    """Steps between checkpoints."""
    seconds: float
    """That everything is expected to take."""


def measure(events: Iterable[Mapping[str, Any]], *, killed: float, began: float, ended: float) -> Measured:
    """From the events of a pilot that was killed at the time `killed`; `began` and `ended` are those of the drill."""
    rows = [(str(event["event"]), when(event), event) for event in events]
    again = max((number for number, (kind, *_) in enumerate(rows) if kind == "resumed"), default=len(rows))
    after = [at for kind, at, _ in rows[again:] if kind == "step"]
    saved = [event["seconds"] for kind, _, event in rows if kind == "checkpoint"]
    between = [
        later[1] - at for (kind, at, _), later in itertools.pairwise(rows) if kind == later[0] == "step"
    ]
    if not after or not saved:
        raise RunError("The pilot wrote no steps or no checkpoint, so nothing can be measured.")
    step = median(between) if between else after[-1] - after[0]
    last = max(at for kind, at, _ in rows if kind == "step")
    restart = max(0.0, after[0] - killed - step)
    return Measured(ended - began, restart, step, max(saved), restart, max(0.0, ended - last))


def fit(
    measured: Measured,
    *,
    minutes: float,
    most: int | None,
    ends: int,
    waits: float,
    disturbances: int,
    orphaned: float = 0.0,
) -> Size:
    """The longest runs that fit. `most` are the recipe's own steps; `ends` how often the command is given again;
    `waits` the seconds that nothing happens but waiting, `orphaned` those that ranks go on without a launcher, further
    than the next disturbance was meant to come. UsageError where not even a short one fits."""
    longest = max(LEAST_STEPS, STEPS_EACH * disturbances) + math.ceil(orphaned / max(measured.step, 1e-6))
    shortest = LEAST_STEPS
    if most is not None:
        longest, shortest = min(longest, most), min(shortest, most)
    size = None
    for steps in range(shortest, longest + 1):
        tried = _size(measured, steps, ends, waits, disturbances)
        if tried.seconds > _SHARE * minutes * 60:
            break
        size = tried
    if size is None:
        need = _size(measured, shortest, ends, waits, disturbances).seconds / _SHARE / 60
        raise UsageError(
            f"{minutes:g} minutes are too short: on this machine {shortest} steps undisturbed, and again with "
            f"{disturbances} disturbances ({measured.restart:.1f} s each time that it starts anew), take about "
            f"{need:.1f} minutes.",
            do=f"Give --minutes {math.ceil(need * 10) / 10:g}, or fewer --kills.",
        )
    return size


def _size(measured: Measured, steps: int, ends: int, waits: float, disturbances: int) -> Size:
    """With checkpoints as often as there are disturbances, but not so often that most of the time is saving."""
    every = max(2, round(steps / (disturbances + 2)), math.ceil(measured.save / max(measured.step, 1e-6)))
    every = max(1, min(every, steps // 3))
    run = measured.start + steps * measured.step + math.ceil(steps / every) * measured.save + measured.end
    again = ends * (measured.restart + every / 2 * measured.step)
    return Size(steps, every, measured.elapsed + 2 * run + again + waits + _COMPARE_SECONDS)


def when(event: Mapping[str, Any]) -> float:
    """An event's time in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()
