"""`glassformer scale fit RUNS|CSV`: from small runs to a law of loss, and what is to be said against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter, validators

import glassformer as gf
from glassformer import charts
from glassformer.cli.reading import AS_IT_IS, Reading
from glassformer.cli.terminal import document, heading, note, sentences, table
from glassformer.errors import UsageError
from glassformer.scale import words
from glassformer.scale.honesty import Doubt
from glassformer.scale.points import Points

Approach = Literal[
    "chinchilla",
    "tied",
    "annealed",
    "kaplan",
    "size",
    "data",
    "compute",
    "frontier",
    "isoflop",
    "envelope",
    "repeated",
]

scale = App(name="scale", help="Train ladders of small models, fit laws of loss, and forecast large ones.")
scale.command(
    "glassformer.cli.forecast:forecast",
    name="forecast",
    help="Forecast the loss of a larger run, with an interval that the runs themselves have tested.",
)
scale.command(
    "glassformer.cli.optimum:optimum",
    name="optimum",
    help="Divide compute between parameters and tokens, by a law of one's own or a published one.",
)
scale.command(
    "glassformer.cli.ladder:ladder",
    name="ladder",
    help="Train a ladder of small models, and see how well it forecasts.",
)


@scale.command
def fit(
    what: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    approach: Approach = "chinchilla",
    reading: Reading = AS_IT_IS,
    delta: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 1e-3,
    bootstrap: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 1000,
    exponents: str | None = None,
    profile: Annotated[list[str] | None, Parameter(negative="")] = None,
    out: Annotated[list[Path] | None, Parameter(negative="")] = None,
    json: bool = False,
) -> None:
    """Fit a law of loss to runs, with intervals and with everything that is to be said against it.

    Args:
        what: Folders of finished runs, or one .csv with a line for each run.
        approach: chinchilla: E + A / N^alpha + B / D^beta; tied: with alpha = beta; annealed: with a factor for points
            that were not decayed; kaplan, size, data, compute: Kaplan's; frontier: E + K / C^gamma; isoflop and
            envelope: the best size for a given compute, by parabolas or by training curves; repeated: what further
            epochs over the same text are worth.
        delta: From this residual of the logarithm on, a point counts linearly (Huber).
        bootstrap: Replicates for the intervals; runs are drawn, not points.
        exponents: A published law whose exponents are taken over, such as besiroglu-2024; E, A and B are fitted.
        profile: A number to hold at other values while the rest follows, such as alpha; may be given several times.
        out: Keep it: law.json (what forecasts read), report.html, or the chart as .png, .svg, .vl.json; several times.
        json: One JSON document instead of tables.
    """
    if exponents is not None and approach != "chinchilla":
        raise UsageError(
            f"--exponents are those of a published law, and --approach {approach} has its own.",
            do="Leave one of the two out.",
        )  # fmt: skip
    if profile and approach in ("isoflop", "envelope", "repeated"):
        raise UsageError(
            f"--approach {approach} has no numbers to profile.",
            expected="A law of loss, such as chinchilla.",
        )  # fmt: skip
    points = gf.scale_points(what, **asdict(reading))
    if approach in ("isoflop", "envelope"):
        _allocation(points, approach, bootstrap, out=out, json=json)
    elif approach == "repeated":
        _repeated(points, delta, out=out, json=json)
    elif exponents is not None:
        law = gf.published_law(exponents).recalibrated(points, delta=delta, bootstrap=bootstrap)
        _law(law, profile, out=out, json=json)
    else:
        _law(gf.fit_law(points, approach, delta=delta, bootstrap=bootstrap), profile, out=out, json=json)


def keep(
    out: list[Path] | None,
    chart: Callable[[], charts.Spec],
    report: Callable[[Path], Any],
    save: Callable[[Path], Any] | None,
) -> None:
    """Write each of `out`: a page, a law, or a chart, by the name's ending."""
    for path in out or ():
        if path.suffix == ".html":
            report(path)
        elif path.suffix == ".json" and not path.name.endswith(".vl.json") and save is not None:
            save(path)
        else:
            charts.save(chart(), path)
        note(f"It is in {path}.")


def doubted(doubts: list[Doubt]) -> None:
    """Doubts, each with its effect, on stderr."""
    for doubt in doubts:
        note(f"warning: {doubt}")


def _law(law: gf.Law, profile: list[str] | None, *, out: list[Path] | None, json: bool) -> None:
    keep(out, law.chart, lambda path: gf.law_report(law, path), lambda path: gf.save_law(law, path))
    profiles = [law.profile(number) for number in profile or ()]
    if json:
        document({**law.to_dict(), "profiles": [one.to_dict() for one in profiles]}, "law")
        return
    sentences([words.title(law), words.counting(law)])
    heading("What its numbers say")
    sentences(words.of_law(law))
    table(law.rows())
    for one in profiles:
        heading(f"Profile of {one.number}: held at these values, the other numbers free")
        sentences(one.sentences())
        table(one.rows())
    if law.off:
        heading("Points that lie off, and the law without them")
        table(words.shown(law.off))
    heading("Runs that it hangs on most, and the law without each")
    table(words.shown(law.influential))
    sentences([words.of_fit(law)])
    doubted(law.doubts)


def _allocation(points: Points, method: str, bootstrap: int, *, out: list[Path] | None, json: bool) -> None:
    found = gf.allocation(points, method, bootstrap=bootstrap)
    compared = found.compared(points)
    keep(out, found.chart, lambda path: gf.allocation_report(found, points, path), None)
    if json:
        document({**found.to_dict(), "approaches": compared}, "allocation")
        return
    sentences(found.sentences())
    heading("The budgets")
    table(words.shown(found.rows()))
    heading("What other approaches say of the same points, at a hundred times the largest compute")
    table(words.shown(compared))
    for warning in found.warnings:
        note(f"warning: {warning}")


def _repeated(points: Points, delta: float, *, out: list[Path] | None, json: bool) -> None:
    found = gf.fit_repeats(points, delta=delta)
    keep(out, found.chart, lambda path: gf.repeats_report(found, points, path), None)
    if json:
        document(found.to_dict(), "repeats")
        return
    sentences(found.sentences())
    heading("What so many passes are worth, beside as much fresh text")
    table(words.shown(found.rows()))
    if found.weakly_identified:
        note("warning: weakly identified: these runs fit nearly as well with an R_D* many times as large")
