"""`glassformer heads RUN`: what every attention head does."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer import charts
from glassformer.cli.model import COMPUTING, Computing, Top, warn_not_finite
from glassformer.cli.terminal import document, facts, note, table

_IN_NAME = ("attention", "layer", "head")


def heads(
    model: Path,
    text: str | None = None,
    /,
    *,
    target: str | None = None,
    by: str | None = None,
    top: Top = 10,
    repeats: int = 16,
    length: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Score every attention head: which look at the token before, continue what came before, or do nothing.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: What first_token, current_token, near, distance and entropy are measured on; without it, random tokens.
        target: What an encoder-decoder writes for the text.
        by: The score that heads are ranked by; left out, induction, or of an encoder previous_token.
        top: Heads shown.
        repeats: Rows of random tokens.
        length: Random tokens in each of them; left out, 50, or as many as fit the context twice.
        seed: The random tokens follow from it.
        out: Save a chart of the score, layers x heads: .html, .svg, .png or .json.
        json: One JSON document with every head instead of a table.
    """
    loaded = computing.open(model)
    warn_not_finite(loaded)
    found = gf.heads(loaded, text, target=target, repeats=repeats, length=length, seed=seed)
    ranked = found.ranked(by, top=top)
    if out is not None:
        charts.save(found.chart(by), out)
        note(f"The chart is in {out}.")
    if json:
        document(found.to_dict())
        return
    table([{key: _short(value) for key, value in row.items() if key not in _IN_NAME} for row in ranked])
    facts(
        {
            f"loss on {found.length} random tokens": found.first_half,
            "loss on the same again": found.second_half,
            "from repeated tokens": found.named("repeated tokens"),
            "from random tokens": found.named("random tokens"),
            "from the text": found.named("the text"),
        }
    )


def _short(value: object) -> object:
    """A score to three digits after the point, so that columns of small numbers can be read."""
    return round(value, 3) if isinstance(value, float) else value
