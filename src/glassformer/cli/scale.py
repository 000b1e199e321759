"""`glassformer scale fit RUNS|CSV`: from small runs to a law of loss, and what is to be said against it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter, validators

import glassformer as gf
from glassformer import charts
from glassformer.cli.terminal import document, facts, heading, note, table
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

scale = App(name="scale", help="Fit laws of loss to small runs.")
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
    columns: str | None = None,
    where: str | None = None,
    unit: str | None = None,
    best: bool = False,
    delta: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 1e-3,
    bootstrap: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 1000,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Fit a law of loss to runs, with intervals and with everything that is to be said against it.

    Args:
        what: Folders of finished runs, or one .csv with a line for each run.
        approach: chinchilla: E + A / N^alpha + B / D^beta; tied: with alpha = beta; annealed: with a factor for points
            that were not decayed; kaplan, size, data, compute: Kaplan's; frontier: E + K / C^gamma; isoflop and
            envelope: the best size for a given compute, by parabolas or by training curves; repeated: what further
            epochs over the same text are worth.
        columns: What the table calls them: N=params,D=tokens,loss=val_loss,C=flops,U=unique,run=name,warm=undecayed.
        where: Only lines whose columns have these texts: phase=cooled,corpus=c4.
        unit: Of the loss, such as "nats per token" or "bits per byte".
        best: Of the runs with one N and one D only the one with the lowest loss (a sweep's winner).
        delta: From this residual of the logarithm on, a point counts linearly (Huber).
        bootstrap: Replicates for the intervals; runs are drawn, not points.
        out: Save a chart: .png, .svg, .html or .json.
        json: One JSON document instead of tables.
    """
    points = gf.scale_points(what, columns=columns, where=where, unit=unit, best=best)
    if approach in ("isoflop", "envelope"):
        _allocation(points, approach, bootstrap, out=out, json=json)
    elif approach == "repeated":
        _repeated(points, delta, out=out, json=json)
    else:
        _law(points, approach, delta, bootstrap, out=out, json=json)


@scale.command
def forecast(
    what: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    flops: float | None = None,
    params: str | None = None,
    tokens: str | None = None,
    gain: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 0.01,
    columns: str | None = None,
    where: str | None = None,
    unit: str | None = None,
    best: bool = False,
    json: bool = False,
) -> None:
    """Forecast the loss of a larger run, with an interval that the runs themselves have tested.

    Args:
        what: Folders of finished runs, or one .csv with a line for each run.
        flops: Training compute; N and D are then the best there are for it.
        params: Parameters of the run, such as 7B; with --tokens.
        tokens: Its training tokens, such as 2T.
        gain: Say at which compute doubling it lowers the loss by less than this.
        columns: What the table calls them: N=params,D=tokens,loss=val_loss,C=flops,run=name.
        where: Only lines whose columns have these texts: phase=cooled,corpus=c4.
        unit: Of the loss, such as "nats per token" or "bits per byte".
        best: Of the runs with one N and one D only the one with the lowest loss.
        json: One JSON document instead of tables.
    """
    from glassformer.units import parse_count

    points = gf.scale_points(what, columns=columns, where=where, unit=unit, best=best)
    forecaster = gf.Forecaster.of(points)
    sizes = {"N": params, "D": tokens}
    given = {name: float(parse_count(text)) for name, text in sizes.items() if text is not None}
    found = forecaster.forecast(flops=flops, **given)
    if json:
        document(forecaster.to_dict(found, gain), "forecast")
        return
    facts(found.facts())
    table(found.rows())
    heading("The same compute, other sizes")
    table(forecaster.allocation(found.C))
    heading("How the smaller runs forecast the larger ones", forecaster.tested.rows())
    table(forecaster.tested.rows())
    facts(forecaster.flat_facts(gain))
    for warning in found.warnings:
        note(f"warning: {warning}")
    _doubts([doubt.row() for doubt in forecaster.law.doubts])


def _law(points: Points, form: str, delta: float, bootstrap: int, *, out: Path | None, json: bool) -> None:
    law = gf.fit_law(points, form, delta=delta, bootstrap=bootstrap)
    _save(law.chart(), out)
    if json:
        document(law.to_dict(), "law")
        return
    facts(law.facts())
    table(law.rows())
    if law.off:
        heading("Points that lie off, and the law without them")
        table(law.off)
    _doubts([doubt.row() for doubt in law.doubts])


def _allocation(points: Points, method: str, bootstrap: int, *, out: Path | None, json: bool) -> None:
    found = gf.allocation(points, method, bootstrap=bootstrap)
    _save(found.chart(), out)
    if json:
        document(found.to_dict(), "allocation")
        return
    facts(found.facts())
    table(found.rows())
    for warning in found.warnings:
        note(f"warning: {warning}")


def _repeated(points: Points, delta: float, *, out: Path | None, json: bool) -> None:
    found = gf.fit_repeats(points, delta=delta)
    _save(found.chart(), out)
    if json:
        document(found.to_dict(), "repeats")
        return
    facts(found.facts())
    table(found.rows())
    if found.weakly_identified:
        note("warning: weakly identified: these runs fit nearly as well with an R_D* many times as large")


def _doubts(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        note(f"warning: {row['name']}: {row['message']}")


def _save(chart: charts.Spec, out: Path | None) -> None:
    if out is not None:
        charts.save(chart, out)
        note(f"The chart is in {out}.")
