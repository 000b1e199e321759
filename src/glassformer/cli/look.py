"""`glassformer look RUN "text"`: every number of one pass."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing, Top
from glassformer.cli.terminal import document, facts, heading, note, table
from glassformer.errors import UsageError


def look(
    model: Path,
    text: str,
    /,
    *,
    place: list[str] | None = None,
    target: str | None = None,
    top: Top = 10,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Look into one pass of a model: what comes next, how wrong each token was, any place by its name.

    Args:
        model: A run, one of its checkpoints, a folder with a model, or a .gguf file.
        text: What it reads; for a plain network a table of rows, as for predict.
        place: A place to show, or a pattern such as "blocks.*.attn.pattern"; may be given several times.
        target: What an encoder-decoder is to write.
        top: How many of the likeliest tokens to list.
        out: Write the trace here: .npz or .json (all numbers), .png or .svg (the first place), or .html (a page).
        json: One JSON document instead of tables; with --place, with all its numbers.
    """
    loaded = computing.open_any(model)
    if out is not None and out.suffix.lower() == ".html":
        if json or place:
            given = "--json" if json else "--place"
            raise UsageError(
                f"{given} has no effect with --out {out.name}: a page has every picture.",
                do="Leave it out, or name a file that ends in .npz, .json, .png or .svg.",
            )
        gf.write_page(loaded, text, out, target=target)
        note(f"The page is in {out}.")
    elif out is not None or place:
        trace = gf.look(loaded, text, place, target=target)
        for warning in trace.warnings:
            note(f"warning: {warning}")
        if out is not None:
            what = f"{len(trace):,} places" if out.suffix in (".npz", ".json") else next(iter(trace))
            note(f"{gf.save_trace(trace, out)} holds {what}.")
        if json:
            document(trace.to_dict())
        elif out is None:
            table([{**row, "axes": ", ".join(row["axes"]), "shape": " x ".join(map(str, row["shape"]))}
                   for row in trace.rows()])  # fmt: skip
    else:
        _tables(gf.summary(loaded, text, target=target, top=top), json)


def _tables(found: gf.Summary, json: bool) -> None:
    for warning in found.warnings:
        note(f"warning: {warning}")
    if json:
        document(found.to_dict(), "look")
        return
    for title, rows in (
        ("Tokens", found.tokens),
        ("What it says" if found.entropy is None else "What comes next", found.answers),
    ):
        if rows:
            heading(title)
            table(rows)
    if found.entropy is not None:
        facts({"entropy (nats)": found.entropy})
    heading("How large the vectors are (mean norm over positions)", found.layers)
    table(found.layers)
