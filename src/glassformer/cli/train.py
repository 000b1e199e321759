"""`glassformer train`: text or rows in, a trained model out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer.cli.overrides import Overrides
from glassformer.cli.progress import Progress
from glassformer.cli.terminal import counted, document, facts, heading, note, table
from glassformer.errors import Stopped
from glassformer.train import attempt
from glassformer.train.launch import prepare_process
from glassformer.train.parallel.starting import start_ranks
from glassformer.train.recipe import AnyRecipe
from glassformer.train.world import World, check_division, check_ranks

_NO_OVERRIDES = Overrides()
_NEXT = {
    "language": 'Let it write: glassformer generate {} --prompt "..."',
    "mask": 'Let it guess: glassformer fill {} "... <|mask|> ..."',
    "label": 'Let it tell: glassformer classify {} --text "..."',
    "translate": 'Let it translate: glassformer translate {} "..."',
    "classify": "Let it predict: glassformer predict {} rows.csv",
    "regress": "Let it predict: glassformer predict {} rows.csv",
    "marks": "Let it predict: glassformer predict {} rows.csv",
}
"""What to do with a finished run of each task."""
_RESTARTS = 3


def train(
    *what: str,
    task: str | None = None,
    run: Path | None = None,
    fresh: bool = False,
    init_from: Path | None = None,
    accept_data: bool = False,
    accept_crashes: bool = False,
    stop_after: str | None = None,
    plan: Path | None = None,
    track: str | None = None,
    threads: int | None = None,
    ranks: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    restarts: Annotated[int | None, Parameter(validator=validators.Number(gte=0))] = None,
    dry_run: bool = False,
    json: bool = False,
    overrides: Overrides = _NO_OVERRIDES,
) -> int | None:
    """Train a model. The same command again goes on where the run stopped.

    Args:
        what: A recipe's name, a recipe.toml, or text files, folders or globs; without it, the demo.
        task: What to learn from texts or rows of your own: language (when left out), mask, label or translate;
            classify, regress or marks.
        run: The run's folder. Left out: the unfinished run of this recipe, or runs/RECIPE-N.
        fresh: Begin anew; what is in the run's folder is moved into before-N/ there.
        init_from: Start from these weights: a run, a model folder (Hugging Face's too), a .gguf or a .safetensors
            file. For texts of your own, model and tokenizer are those of that model.
        accept_data: Go on although the text changed since the run began; this is recorded.
        accept_crashes: Go on although the run crashed again and again at the same place; this is recorded.
        stop_after: Stop after this long (90s, 55m, 2h) with everything saved; exit code 75.
        plan: A plan of this recipe, from glassformer plan --json: the run tells when it leaves it.
        track: A tracker that gets the curves as well: tensorboard, trackio or wandb.
        threads: Threads to compute with; as many as there are cores.
        ranks: Train in this many processes on this machine, as torchrun --nproc-per-node would start them.
        restarts: Begin all ranks again from the last checkpoint when one dies or hangs, at most so often; 3.
        dry_run: Say what the run would be, and train nothing; with --ranks, also what one of so many ranks, which need
            not be here, would hold in memory and send to others.
        json: Events as JSON lines on stdout; the last one sums up the run.
    """
    from glassformer.units import parse_seconds

    seconds = None if stop_after is None else parse_seconds(stop_after)
    recipe, base = gf.load_recipe(
        what, overrides.dotted(), task=task
    )  # what is wrong with it is told at once
    world = World.here()
    check_ranks(ranks, world, restarts)
    check_division(recipe, ranks or world.count)
    attempt.announce(world.rank)
    launches = not attempt.is_launched() and world.count == 1 and (ranks or 1) + (restarts or 0) > 1
    if not launches:
        prepare_process(threads)
    if init_from is not None:
        from glassformer.train.beginning import recipe_for

        recipe, base = recipe_for(what, overrides.dotted(), task=task, init_from=init_from)
    if dry_run:
        if world.is_first:
            _plan(recipe, base, ranks if world.count == 1 else world.count, json=json)
        return None
    from glassformer.run.sinks import open_sink
    from glassformer.train.beginning import find_unfinished, next_run_folder

    unfinished = None if run or (fresh and not attempt.number()) else find_unfinished(recipe)
    if fresh and (found := run or unfinished) and attempt.made_since(found / "recipe.toml"):
        fresh = False  # ranks that were begun again do not begin the run anew
    folder = run or (None if fresh else unfinished) or next_run_folder(recipe.name)
    if launches:
        given = () if run else ("--run", str(folder))
        most = _RESTARTS if restarts is None else restarts
        return start_ranks(ranks or 1, [*sys.argv[1:], *given], folder, most)
    if not world.is_first:
        return _take_part(
            gf.training(recipe, base=base, run=folder, init_from=init_from, stop_after=seconds, progress=note)
        )
    note(f"run: {folder}")
    sink = None if track is None else open_sink(track, folder)
    try:
        with Progress(folder) as progress:
            listener: Callable[[dict[str, Any]], None] = _print_event if json else progress.event
            for event in gf.training(
                recipe,
                base=base,
                run=folder,
                fresh=fresh,
                init_from=init_from,
                accept_data=accept_data,
                accept_crashes=accept_crashes and not attempt.number(),
                stop_after=seconds,
                plan=plan,
                progress=progress.message,
            ):
                listener(event)
                if sink is not None:
                    sink(event)
    except Stopped:
        if world.count > 1:
            _end_in_peace()
        raise
    if sink is not None and (missed := sink.close()):
        note(missed)
    if not json:
        done = gf.Run.open(folder)
        shown = counted({**done.summary(), **done.judged()}, done.unit)
        facts({**shown, "run": folder, "report": folder / "report.html"})
        note(f"\n{_NEXT[recipe.task].format(folder)}")
    return None


def _take_part(events: Iterator[dict[str, Any]]) -> int | None:
    """As another rank than the first, which shows and says everything; only an error is this rank's to tell."""
    try:
        for _ in events:
            pass
    except Stopped as stopped:
        _end_in_peace()
        return stopped.exit_code
    return None


def _end_in_peace() -> None:
    """All ranks end now, each with its exit code; the launcher would terminate those a moment later than the first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _plan(recipe: AnyRecipe, base: Path, ranks: int | None, *, json: bool) -> None:
    from glassformer.train.start import plan_run

    plan = plan_run(recipe, base, ranks)
    if json:
        document(plan, "plan")
        return
    warnings, rehearsal = plan.pop("warnings"), plan.pop("rehearsal", None)
    facts(counted(plan, recipe.unit))
    if rehearsal is not None:
        from glassformer.train.parallel.rehearsal import tables

        for title, rows in tables(rehearsal):
            heading(title, rows)
            table(rows)
    for warning in warnings:
        note(f"warning: {warning}")


def _print_event(event: dict[str, Any]) -> None:
    document(event, "event")
