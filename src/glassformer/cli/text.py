"""`glassformer text report PATH`: what a corpus is, before a step is spent on it."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

import glassformer as gf
from glassformer import charts
from glassformer.cli.overrides import TextOverrides
from glassformer.cli.terminal import document, note, table
from glassformer.errors import UsageError
from glassformer.text.config import DataConfig
from glassformer.text.corpus import read
from glassformer.train.launch import prepare_process

text = App(name="text", help="Look at text before training on it.")
_NO_OVERRIDES = TextOverrides()


@text.command
def report(
    what: str | None = None,
    /,
    *,
    quick: bool = False,
    out: Path | None = None,
    json: bool = False,
    overrides: TextOverrides = _NO_OVERRIDES,
) -> None:
    """Report on text: sizes, faults, copies, repetition, overlap, tokens.

    Args:
        what: A recipe, a file, a folder or a glob; without it, the demo's text.
        quick: Leave out tokens; otherwise the recipe's tokenizer is learned and they are counted.
        out: Save a chart of the sources here: .html, .svg, .png or .json.
        json: One JSON document instead of a table.
    """
    prepare_process()
    recipe, base = gf.load_recipe(what, overrides.dotted())
    if not isinstance(recipe.data, DataConfig):
        raise UsageError(
            f"The recipe {recipe.name} is for task {recipe.task!r}.",
            expected="One that trains on plain text.",
        )
    tokenizer = None
    if not quick:
        forgiving = recipe.data.model_copy(update={"encoding": "bytes", "on_error": "skip"})
        tokenizer = gf.Tokenizer.train(recipe.tokenizer, (one.data for one in read(forgiving, base=base)))
    found = gf.text_report(recipe.data, base=base, tokenizer=tokenizer)
    if out is not None:
        charts.save(charts.bars(found.chart_rows(), "source", "bytes", series="side"), out)
        note(f"The chart is in {out}.")
    if json:
        document(found.to_dict())
        return
    table(found.rows())
    for name, problem in found.encoding_errors:
        print(f"{name}: {problem}")
    for warning in found.warnings:
        print(f"- {warning}")
