"""`glassformer fill MODEL "The <|mask|> sat"`: what could stand where a text is hidden."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import document, table


def fill(
    model: Path,
    text: str,
    /,
    *,
    top: int = 5,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Guess the hidden tokens of a text.

    Args:
        model: An encoder: a run, or a folder with config.json, model.safetensors and tokenizer.json.
        text: The text, with <|mask|> where a token is to be guessed.
        top: Show so many candidates for each.
        json: JSON lines instead of a table.
    """
    loaded = computing.open(model)
    rows = gf.fill(loaded, text, top=top)
    if json:
        for row in rows:
            document(row, "candidate")
    else:
        table([{**row, "place": str(row["place"]), "token": repr(row["token"])} for row in rows])
