"""`glassformer scale ladder RECIPE`: a ladder of small models of one's own text, and how well it forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer.cli.overrides import Overrides
from glassformer.cli.terminal import document, facts, heading, note, table
from glassformer.scale.design import Design
from glassformer.train.launch import prepare_process
from glassformer.units import show_seconds

_NO_OVERRIDES = Overrides()


def ladder(
    *what: str,
    budget: str = "2h",
    name: str | None = None,
    folder: Path = Path("ladders"),
    on: Literal["local", "ray"] = "local",
    workers: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    threads: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    dry_run: bool = False,
    json: bool = False,
    overrides: Overrides = _NO_OVERRIDES,
) -> None:
    """Train a ladder of small models, and see how well it forecasts its largest. The same command goes on.

    Args:
        what: A recipe's name, a recipe.toml, or text files, folders or globs; without it, the demo.
        budget: What all of it may take, as predicted by a short probe of this machine: 35m, 2h.
        name: The ladder's folder below ladders; the recipe's name when left out.
        folder: Where ladders are.
        on: local: processes on this machine; ray: tasks of a Ray cluster, that of RAY_ADDRESS or a new one here.
        workers: Rungs that are trained at a time.
        threads: Threads of each; the cores divided among the workers when left out.
        dry_run: Time this machine and show the rungs, and train nothing.
        json: One JSON document instead of tables.
    """
    prepare_process(threads)
    if dry_run:
        from glassformer.scale.ladder import plan_ladder

        plan = plan_ladder(
            what, budget=budget, overrides=overrides.dotted(), workers=workers, threads=threads, progress=note
        )
        _plan(plan, json=json)
        return
    found = gf.ladder(
        what, budget=budget, name=name, folder=folder, overrides=overrides.dotted(), on=on, workers=workers,
        threads=threads, progress=note,
    )  # fmt: skip
    if json:
        document(found.to_dict(), "ladder")
        return
    table(found.rows())
    heading("The learning rate")
    table(found.rate_rows())
    heading("The rung held back")
    facts({**found.facts(), "ladder": found.folder})
    for warning in found.warnings:
        note(f"warning: {warning}")
    for doubt in found.forecaster.law.doubts:
        note(f"warning: {doubt.name}: {doubt.message}")


def _plan(plan: Design, *, json: bool) -> None:
    if json:
        document(plan.to_dict(), "ladder_plan")
        return
    table(plan.rows())
    read = f"{plan.unique_tokens:,} tokens; the rung that reads most reads {plan.epochs:.3g} times as many"
    facts({"predicted": f"{show_seconds(plan.seconds)} with {plan.workers} at a time", "text": read})
    for warning in plan.warnings:
        note(f"warning: {warning}")
