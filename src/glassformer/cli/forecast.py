"""`glassformer scale forecast LAW|RUNS|CSV`: the loss of a larger run, how sure that is, and which run is next."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer.cli.reading import AS_IT_IS, Reading
from glassformer.cli.scale import doubted, keep
from glassformer.cli.terminal import document, heading, note, sentences, table
from glassformer.scale import pictures, words
from glassformer.units import parse_count


def forecast(
    what: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    flops: float | None = None,
    params: str | None = None,
    tokens: str | None = None,
    gain: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 0.01,
    next: bool = False,  # the option's name
    cap: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    reading: Reading = AS_IT_IS,
    out: Annotated[list[Path] | None, Parameter(negative="")] = None,
    json: bool = False,
) -> None:
    """Forecast the loss of a larger run, with an interval that the runs themselves have tested.

    Args:
        what: A law.json that `scale fit` kept; or folders of finished runs, or one .csv with a line for each run.
        flops: Training compute; N and D are then the best there are for it.
        params: Parameters of the run, such as 7B; with --tokens.
        tokens: Its training tokens, such as 2T.
        gain: Say at which compute doubling it lowers the loss by less than this.
        next: Say which run would narrow this forecast most for each FLOP.
        cap: The most that run may cost, in FLOPs; four times the largest so far, when left out.
        out: Keep it: law.json, report.html, or the chart as .png, .svg, .vl.json; may be given several times.
        json: One JSON document instead of tables.
    """
    forecaster = gf.open_forecaster(what, **asdict(reading))
    sizes = {"N": params, "D": tokens}
    given = {name: float(parse_count(text)) for name, text in sizes.items() if text is not None}
    found = forecaster.forecast(flops=flops, **given)
    following = gf.next_runs(forecaster, found, cap=cap) if next or cap is not None else None

    def report(path: Path) -> Path:
        return gf.forecast_report(forecaster, found, path, gain=gain, following=following)

    keep(out, lambda: pictures.fan(forecaster, found), report, forecaster.save)
    if json:
        told = {} if following is None else {"next": following.to_dict()}
        document({**forecaster.to_dict(found, gain), **told}, "forecast")
        return
    sentences(words.of_forecast(forecaster, found, gain))
    table(found.rows())
    heading("The same compute, other sizes")
    table(words.shown(forecaster.allocation(found.C)))
    heading("How the smaller runs forecast the larger ones", forecaster.tested.rows())
    table(words.shown(forecaster.tested.rows()))
    if following is not None:
        heading("Which run next")
        sentences(following.sentences())
        table(words.shown(following.rows()))
    heading("What it is made of")
    sentences([words.title(forecaster.law), words.counting(forecaster.law)])
    for warning in found.warnings:
        note(f"warning: {warning}")
    doubted(forecaster.doubts)
