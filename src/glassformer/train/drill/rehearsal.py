"""`drill`: rehearse disasters with a short copy of a run, on the machine that is to train it.

    pilot          a few steps, killed once: how long a step, a save, a start and an end take here
    undisturbed    the short copy, to its end
    disturbed      the same again, while disturbances.py befalls it; after each end the same command is given again
    compare        weights, optimiser, samples seen, losses: to the bit

The copy has the recipe's model, data, engine, [parallel] and [faults]; fewer steps, more checkpoints, nothing measured
or sampled between, and ranks that are silent are given up sooner.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from typing import Any

from glassformer.errors import RunError, UsageError
from glassformer.run.folder import Run
from glassformer.train.drill import sizes
from glassformer.train.drill.account import account
from glassformer.train.drill.command import Command, What, texts_of
from glassformer.train.drill.compare import compare
from glassformer.train.drill.course import Course, run_disturbed
from glassformer.train.drill.disturbances import Disturbance, draw, in_order
from glassformer.train.drill.processes import Processes, Setting, Start
from glassformer.train.drill.result import Drill
from glassformer.train.launch import prepare_process
from glassformer.train.recipe import AnyRecipe, load_recipe
from glassformer.train.world import World, check_division

_SILENCE = 90.0
"""Seconds without a sign of life, beside those that a rank may be silent, after which a start is taken for stuck."""
_FIRST_SILENCE = 3600.0
"""The same, of the first start, which may have to read all the text there is."""
_ORPHANED = 6.0
"""Seconds that ranks go on for after their launcher's end, at most."""


def drill(
    what: What = None,
    *,
    task: str | None = None,
    kills: int = 20,
    minutes: float = 5.0,
    ranks: int | None = None,
    seed: int | None = None,
    keep: Path | None = None,
    sabotage: bool = False,
    overrides: Mapping[str, Any] | None = None,
    disturbances: Sequence[Disturbance] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Drill:
    """Rehearse disasters with a short copy of a run.

    `what`, `task` and `overrides` are those of `train`. `kills` SIGKILLs and a few other faults befall it, at moments
    drawn from `seed` (left out, chance; the result says which); `disturbances` are others to take instead. All of it
    is to fit into `minutes`. `ranks` processes take part: left out, as many as `parallel.shard` asks for, or one.
    `keep` is a folder for both runs, which are otherwise removed. With `sabotage` one bit of one weight is changed on
    the way and nobody is told: such a drill must fail.

    Raises UsageError for what cannot be, RunError where the run fails without being disturbed.
    """
    began = time.time()
    if kills < 0:
        raise UsageError(f"kills is {kills}.", expected="Expected 0 or more.")
    if not minutes > 0:
        raise UsageError(f"minutes is {minutes:g}.", expected="Expected more than 0.")
    recipe, _ = load_recipe(what, overrides, task=task)
    count = _ranks(recipe, ranks)
    number = SystemRandom().randrange(10**6) if seed is None else seed

    def plan(steps: int, every: int) -> list[Disturbance]:
        if disturbances is not None:
            return in_order(disturbances)
        return draw(number, kills=kills, ranks=count, steps=steps, every=every, sabotage=sabotage)

    with _folder(keep) as folder, _ended_by_signals(), Processes(count, folder / "starts") as processes:
        progress(f"drill of {recipe.name}: {count} rank{'s' * (count > 1)}, seed {number}")
        command = Command(texts_of(what, recipe, folder), task, dict(overrides or {}), recipe)
        processes.wait_until_ready()
        setting, measured, engine = _pilot(processes, command, folder / "pilot", count, began, progress)
        planned = plan(100, 5)  # as many, whatever the steps
        size = sizes.fit(
            measured, minutes=minutes, most=recipe.train.steps, disturbances=len(planned),
            ends=sum(one.ends(count) for one in planned),
            waits=sum(_wait(one, count, command.timeout) for one in planned),
            orphaned=sum(_ORPHANED for one in planned[:-1] if one.whom == "launcher"),
        )  # fmt: skip
        planned = plan(size.steps, size.every)
        progress(
            f"{size.steps} steps, a checkpoint every {size.every}; about {size.seconds / 60:.1f} minutes in all"
        )
        clean, other = (
            replace(setting, arguments=command.arguments(folder / name, size.steps, size.every, engine, count),
                    run=folder / name, every=size.every)
            for name in ("undisturbed", "disturbed")
        )  # fmt: skip
        undisturbed = _whole(processes, clean)
        progress(f"undisturbed: {undisturbed.ended - undisturbed.began:.1f} s")
        course = run_disturbed(processes, other, planned, size.steps, progress)
        progress("comparing")
        runs = folder / "undisturbed", folder / "disturbed"
        return _result((recipe.name, count, number), size, engine, undisturbed, course, runs, measured, began)


def _pilot(
    processes: Processes,
    command: Command,
    run: Path,
    ranks: int,
    began: float,
    progress: Callable[[str], None],
) -> tuple[Setting, sizes.Measured, dict[str, Any]]:
    """(what the starts of both runs have in common, what things take, the engine that was found best)."""
    steps, every = sizes.PILOT_STEPS, sizes.PILOT_EVERY
    arguments = command.arguments(run, steps, every, {}, ranks)
    setting = Setting(arguments, run, ranks, _FIRST_SILENCE)
    kill = Disturbance("kill", sizes.PILOT_KILLED, ranks - 1, draws=(0.0, 0.0, 0.0))
    first = _last(processes.give(setting, {1: kill}))
    if not first.deeds:
        raise _failed(first)
    _whole(processes, setting)
    events = list(Run.open(run).events.read())
    measured = sizes.measure(events, killed=first.deeds[0]["time"], began=began, ended=time.time())
    chosen = next(event["choice"] for event in reversed(events) if event["event"] == "engine")
    engine = {"precision": chosen["precision"], "compile": "on" if chosen["compiled"] else "off"}
    if chosen["attention"]:
        engine["attention"] = chosen["attention"]
    if command.recipe.parallel.shard != 1:
        engine.pop("compile")
    progress(
        f"pilot: a step takes {measured.step:.3g} s, a save {measured.save:.2g} s, a new start {measured.restart:.1f} s"
    )
    largest = max(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
    setting = replace(
        setting, step_seconds=measured.step, start_seconds=measured.start, largest_bytes=largest,
        silence=_SILENCE + command.timeout + 20 * measured.step + 10 * measured.save, compiled=chosen["compiled"],
    )  # fmt: skip
    return setting, measured, engine


def _result(
    about: tuple[str, int, int], size: sizes.Size, engine: Mapping[str, Any], undisturbed: Start, course: Course,
    runs: tuple[Path, Path], measured: sizes.Measured, began: float,
) -> Drill:  # fmt: skip
    recipe, ranks, seed = about
    clean, other = map(Run.open, runs)
    rows = account(course, list(other.events.read()), clean.rows(), ranks=ranks, step_seconds=measured.step)
    prepare_process()  # comparing loads torch
    deeds = [deed for start in course.starts for deed in start.deeds]
    return Drill(
        recipe=recipe, ranks=ranks, seed=seed, steps=size.steps, checkpoint_every=size.every,
        engine=", ".join(f"{name} {value}" for name, value in engine.items()),
        kills=sum(course.disturbances[deed["number"]].kind == "kill" for deed in deeds), disturbances=tuple(rows),
        comparison=tuple(compare(*runs)) if course.whole else (), left_out=len(course.left),
        whole=course.whole and not course.unexpected and not any(start.stuck for start in course.starts),
        undisturbed_seconds=round(undisturbed.ended - undisturbed.began, 2),
        disturbed_seconds=round(course.starts[-1].ended - course.starts[0].began, 2),
        seconds=round(time.time() - began, 2),
    )  # fmt: skip


def _whole(processes: Processes, setting: Setting) -> Start:
    """A start that nothing befalls; RunError where it fails."""
    start = _last(processes.give(setting, {}))
    if start.exit != 0:
        raise _failed(start)
    return start


def _last(found: Iterator[dict[str, Any] | Start]) -> Start:
    *_, start = found
    assert isinstance(start, Start)
    return start


def _failed(start: Start) -> RunError:
    said = "\n".join(start.said.strip().splitlines()[:12])
    code = f"exit code {start.exit}" if start.exit >= 0 else signal.Signals(-start.exit).name
    return RunError(
        f"The run fails without being disturbed ({code}):", expected=f"\n{said}", do="\nMend that first."
    )


def _wait(one: Disturbance, ranks: int, timeout: float) -> float:
    """Seconds that pass with a rank that stands still, or without a launcher."""
    if one.kind != "stop":
        return _ORPHANED if one.whom == "launcher" else 0.0
    return 1.5 if ranks == 1 else timeout + 10


def _ranks(recipe: AnyRecipe, asked: int | None) -> int:
    """How many processes take part; what does not fit is refused."""
    if World.here().count > 1:
        raise UsageError("A drill starts its ranks itself.", do="Leave torchrun out, and give --ranks.")
    shard = recipe.parallel.shard
    count = asked if asked is not None else 2 if shard == "all" else shard
    if count < 1:
        raise UsageError(f"ranks is {count}.", expected="Expected 1 or more.")
    check_division(recipe, count)
    least = sizes.PILOT_STEPS
    if recipe.train.steps is not None and recipe.train.steps < least:
        raise UsageError(
            f"The recipe {recipe.name} trains {recipe.train.steps} steps; a drill needs {least}."
        )
    return count


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="glassformer-drill-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    folder = keep.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{keep} is there already.", do="Give --keep a folder that is not there yet, or is empty."
        )
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a drill as Ctrl-C does: with its processes, and with what it wrote."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
