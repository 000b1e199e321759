"""`glassformer view neuron|positions|embedding|sampling`: one part of a model, in numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

import glassformer as gf
from glassformer import charts
from glassformer.cli.model import COMPUTING, Computing, Top, warn_not_finite
from glassformer.cli.terminal import document, facts, note, table
from glassformer.errors import UsageError
from glassformer.look.embedding import Vectors
from glassformer.look.visible import visible

view = App(name="view", help="Look at one part: a neuron, the positions, the token vectors, the next token.")

_COLUMNS = 8
"""Of the table of the kernel, which has one for each layer."""


@view.command
def neuron(
    model: Path,
    text: str | None = None,
    /,
    *,
    layer: int,
    neuron: int,
    rows: str | None = None,
    position: int = -1,
    target: str | None = None,
    stack: str | None = None,
    top: Top = 10,
    chart: str | None = None,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Show one neuron as a bill: what it reads, what becomes of the sum, what it writes.

    Args:
        model: A run, a model folder or a .gguf file.
        text: What the model reads.
        layer: Which block, from 0; of a plain network its hidden layers, then the output.
        neuron: Which neuron of it, from 0.
        rows: For a plain network, in place of a text: a table as predict reads it.
        position: Which token (of a plain network, which row) from 0; -1 is the last.
        target: For an encoder-decoder: what it writes.
        stack: For an encoder-decoder: encoder or decoder.
        top: Terms, and tokens, shown.
        chart: Which chart --out saves: terms, positions or tokens.
        out: Save a chart here: .html, .svg, .png or .json.
        json: One JSON document instead of tables.
    """
    from glassformer.use.load import is_network

    read = text if rows is None else rows
    if read is None or (text is not None and rows is not None):
        raise UsageError("What is read is not clear.", expected="A text, or of a plain network --rows.")
    if text is not None and is_network(model):
        raise UsageError(
            f"{model} holds a plain network, which reads rows of numbers.", do=f"Give them so: --rows {text}"
        )
    if rows is not None and not is_network(model):
        raise UsageError(
            f"{model} holds a model of text, and --rows was given.", do="Give a text in its place."
        )
    if rows is None:
        opened: Any = computing.open(model)
        warn_not_finite(opened)
    else:
        opened = computing.open_network(model)
    sheet = gf.neuron(opened, read, layer, neuron, position=position, target=target, stack=stack, top=top)
    _save(sheet, chart, out)
    if json:
        document(sheet.to_dict(), "neuron")
        return
    facts({name: visible(value) if name == "at" else value for name, value in sheet.facts().items()})
    table(sheet.rows())
    if tokens := sheet.token_rows():
        print("promotes")
        table(_seen(tokens))
        print("suppresses")
        table(_seen(sheet.token_rows(suppressed=True)))
    elif writes := sheet.write_rows():
        print("writes")
        table(writes)


@view.command
def positions(
    model: Path,
    text: str | None = None,
    /,
    *,
    target: str | None = None,
    seed: int = 0,
    top: Top = 16,
    chart: str | None = None,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Show what a model knows of order, and with a text how far each layer looks.

    Args:
        model: A run, a model folder or a .gguf file.
        text: What the model reads, to measure its attention on.
        target: For an encoder-decoder: what it writes.
        seed: Draws the vectors that the kernel of rope is measured with.
        top: Rows shown of each table.
        chart: Which chart --out saves: table, similarity, angles, bias, kernel, curves or attention, as there are.
        out: Save a chart here: .html, .svg, .png or .json.
        json: One JSON document instead of tables.
    """
    opened = computing.open(model)
    warn_not_finite(opened)
    found = gf.positions(opened, text, target=target, seed=seed)
    _save(found, chart, out)
    if json:
        document(found.to_dict(), "positions")
        return
    facts(found.facts())
    _first(found.rows(), top)
    kernel = found.kernel_rows()
    _first([dict(list(row.items())[:_COLUMNS]) for row in kernel], top)
    if kernel and len(kernel[0]) > _COLUMNS:
        note(f"{len(kernel[0]) - _COLUMNS} more layers: --json.")
    if found.reach is not None:
        print("where attention looks, on average: weights, and distances in tokens")
        table(found.reach.rows())


@view.command
def embedding(
    model: Path,
    token: list[str] | None = None,
    /,
    *,
    of: Vectors = "embed",
    near: str | None = None,
    top: Top = 16,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Map token vectors onto the two directions in which they differ most.

    Args:
        model: A run, a model folder or a .gguf file.
        token: Tokens by their text; without any, the first hundred that are text.
        of: embed, head or positions.
        near: The nearest to this token instead, by cosine, in the whole vocabulary.
        top: Rows shown.
        out: Save the map here: .html, .svg, .png or .json.
        json: One JSON document instead of a table.
    """
    opened = computing.open(model)
    warn_not_finite(opened)
    found = gf.embedding_map(opened, token, of=of)
    _save(found, None, out)
    neighbours = None if near is None else found.neighbours(near, top)
    if json:
        document({**found.to_dict(), "near": near, "neighbours": neighbours}, "embedding_map")
    elif neighbours is not None:
        table(_seen(neighbours))
    else:
        facts({"vectors": len(found.ids), "explained by c1": found.explained[0], "by c2": found.explained[1]})
        _first(_seen(found.rows()), top)


@view.command
def sampling(
    model: Path,
    text: str = "",
    /,
    *,
    target: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    draws: int = 0,
    top: Top = 20,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Show what each setting does to the next token, and which is drawn.

    Args:
        model: A run, a model folder or a .gguf file.
        text: What comes before the token.
        target: For an encoder-decoder: what it has written so far.
        temperature: 0 always takes the likeliest token, 1 is the model's own distribution.
        top_k: Only the K likeliest tokens.
        top_p: Only the likeliest tokens that together have this probability.
        min_p: Only tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Above 1, tokens that are there already become less likely.
        seed: The token is the one that generate writes first with this seed.
        draws: Also draw with so many seeds, from this one on, and count.
        top: Tokens shown.
        out: Save a chart here: .html, .svg, .png or .json.
        json: One JSON document instead of tables.
    """
    opened = computing.open(model)
    warn_not_finite(opened)
    found = gf.sampling_view(
        opened, text, target=target, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, draws=draws, top=top,
    )  # fmt: skip
    for warning in found.warnings:
        note(f"warning: {warning}")
    _save(found, None, out)
    if json:
        document(found.to_dict(), "sampling_view")
        return
    table(found.stage_rows())
    rows = [{**row, "kept": None, "drawn": "<-" if row["drawn"] else None} for row in _seen(found.rows())]
    table(rows)
    facts(found.facts())
    table([{**row, "drawn": "<- u" if row["drawn"] and found.u is not None else None} for row in
           _seen(found.draw_rows())])  # fmt: skip


def _save(found: Any, chart: str | None, out: Path | None) -> None:
    if out is None and chart is not None:
        raise UsageError("--chart has no effect without --out.", do="Add --out FILE.")
    if out is not None:
        charts.save(found.chart() if chart is None else found.chart(chart), out)
        note(f"The chart is in {out}.")


def _seen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With tokens whose spaces and line ends can be seen."""
    return [{**row, "token": visible(row["token"]), "id": str(row["id"])} for row in rows]


def _first(rows: list[dict[str, Any]], top: int) -> None:
    if rows:
        table(rows[:top])
    if len(rows) > top:
        note(f"{len(rows) - top:,} more rows: --top {len(rows)}, or --json.")
