"""`glassformer scale optimum LAW|RUNS|CSV|NAME`: how many parameters on how many tokens, and how much it matters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer import charts
from glassformer.cli.reading import AS_IT_IS, Reading
from glassformer.cli.scale import keep
from glassformer.cli.terminal import document, facts, heading, note, sentences, table
from glassformer.scale import words
from glassformer.units import parse_count


def optimum(
    what: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    flops: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    params: str | None = None,
    tokens: str | None = None,
    loss: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    serve: str | None = None,
    unique: str | None = None,
    reading: Reading = AS_IT_IS,
    out: Annotated[list[Path] | None, Parameter(negative="")] = None,
    json: bool = False,
) -> None:
    """Divide compute between parameters and tokens, by a law of one's own or a published one.

    Args:
        what: A law.json; or a published law, such as besiroglu-2024; or folders of finished runs, or one .csv.
        flops: Compute to divide; with --serve, of training and answering together.
        params: Or the parameters, such as 7B: the compute that they are the best for.
        tokens: Or the tokens, such as 2T.
        loss: Or a loss: the least compute that reaches it.
        serve: Tokens that the model will answer with, such as 10T: 2 N FLOPs for each.
        unique: Tokens of text that there are, such as 25B; beyond, text is repeated and worth less.
        out: Keep the chart of how flat it is: .html, .png, .svg or .json; may be given several times.
        json: One JSON document instead of tables.
    """
    law = gf.open_law(what, **asdict(reading))
    found = gf.optimum(
        law, flops=flops, N=_count(params), D=_count(tokens), loss=loss, serve=_count(serve) or 0.0,
        unique=_count(unique),
    )  # fmt: skip
    keep(out, found.chart, lambda path: charts.save(found.chart(), path), None)
    if json:
        document(found.to_dict(), "optimum")
        return
    sentences(found.sentences())
    heading("The same cost, other sizes", found.rows())
    table(words.shown(found.rows()))
    if isinstance(law, gf.Published):
        heading("The law")
        facts(law.facts())
    for warning in found.warnings:
        note(f"warning: {warning}")


def _count(text: str | None) -> float | None:
    return None if text is None else float(parse_count(text))
