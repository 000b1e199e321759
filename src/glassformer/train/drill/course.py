"""The disturbed run: the same command again and again, each time armed with what is next to befall it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from glassformer.run import checkpoints
from glassformer.train.drill.disturbances import Disturbance
from glassformer.train.drill.processes import Processes, Setting, Start

_MOST_UNEXPECTED = 3
"""So many ends that nothing brought about, and the drill gives up."""


@dataclass(slots=True)
class Course:
    """What was done to a run."""

    disturbances: dict[int, Disturbance]
    starts: list[Start] = field(default_factory=list)
    flips: dict[int, str] = field(default_factory=dict)
    """Number of the disturbance -> which bit."""
    left: dict[int, Disturbance] = field(default_factory=dict)
    """What the run was over too soon for."""
    unexpected: list[Start] = field(default_factory=list)
    """Starts that ended in a failure which nothing here brought about."""
    whole: bool = False
    """The run came to its end."""


def run_disturbed(
    processes: Processes,
    setting: Setting,
    disturbances: Sequence[Disturbance],
    steps: int,
    tell: Callable[[str], None] = lambda message: None,
) -> Course:
    """The run of `steps` steps to its end, everything in `disturbances` having befallen it. `tell` gets a line for
    each."""
    course = Course(dict(enumerate(disturbances, 1)))
    course.left = dict(course.disturbances)
    folder = setting.run / "checkpoints"
    while not course.whole and len(course.unexpected) < _MOST_UNEXPECTED:
        done, ended = _newest(folder), False
        course.left = _moved(course.left, done, steps - setting.every)
        for found in processes.give(setting, _next(course.left, setting.ranks), done=done):
            if isinstance(found, Start):
                start = found
                continue
            one = course.left.pop(found["number"])
            ended = ended or one.ends(setting.ranks)
            tell(f"{found['number']} of {len(disturbances)}: {in_words(one)}{_how(found['how'])}")
            if one.kind == "bit flip":
                course.flips[found["number"]] = ""
        course.starts.append(start)
        course.whole = start.exit == 0
        if not course.whole and not (ended or _stopped_for_nan(start, course.disturbances)):
            course.unexpected.append(start)
        for number in [number for number, bit in course.flips.items() if not bit]:
            course.flips[number] = flip_bit(folder, course.disturbances[number])
    return course


def in_words(one: Disturbance) -> str:
    """What is done to whom."""
    return {
        "kill": f"SIGKILL of {one.target}",
        "stop": f"SIGSTOP of {one.target}",
        "NaN": f"NaN on {one.target}",
        "weight": f"a changed weight on {one.target}",
    }.get(one.kind, one.kind)


def flip_bit(folder: Path, one: Disturbance) -> str:
    """Change one bit of one file of the newest checkpoint; which one, in words."""
    whole = [listed for listed in checkpoints.list_checkpoints(folder) if listed.kind == "checkpoint"]
    if len(whole) < 2:
        return "no bit, for there was no second checkpoint to fall back on"
    newest = folder / whole[-1].name
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[int(one.draws[1] * len(files))]
    bit = int(one.draws[2] * path.stat().st_size * 8)
    with path.open("r+b") as stream:
        stream.seek(bit // 8)
        (byte,) = stream.read(1)
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))
    return f"bit {bit % 8} of byte {bit // 8:,} of {newest.name}/{path.relative_to(newest)}"


def _next(left: Mapping[int, Disturbance], ranks: int) -> dict[int, Disturbance]:
    """What the next start is armed with: all up to the first that ends it."""
    armed = {}
    for number, one in left.items():
        armed[number] = one
        if one.ends(ranks):
            break
    return armed


def _moved(left: Mapping[int, Disturbance], done: int, last: int) -> dict[int, Disturbance]:
    """The same, spread over what is left of the run where it is further than it should be: ranks go on for some
    seconds after their launcher's end."""
    first = min((one.step for one in left.values()), default=last)
    if first > done or first >= last or done + 1 >= last:
        return dict(left)
    scale = (last - done - 1) / (last - first)
    return {
        number: replace(one, step=done + 1 + round((min(one.step, last) - first) * scale))
        for number, one in left.items()
    }


def _newest(folder: Path) -> int:
    steps = [listed.step for listed in checkpoints.list_checkpoints(folder) if listed.kind == "checkpoint"]
    return max(steps, default=0)


def _stopped_for_nan(start: Start, disturbances: Mapping[int, Disturbance]) -> bool:
    """By policy a number that is not finite may end a run; the same command goes on."""
    return any(disturbances[deed["number"]].kind == "NaN" for deed in start.deeds)


def _how(how: str) -> str:
    return f" ({how})" if how else ""
