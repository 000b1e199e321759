"""`glassformer score RUN --text FILE`: how well a model predicts a text."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import document, facts


def score(
    model: Path,
    /,
    *,
    text: list[Path],
    per_token: bool = False,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Measure how well a model predicts a text: nats a token, bits a byte.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: A file to score; may be given several times, each a document of its own.
        per_token: With --json, also the nats of every token.
        json: One JSON document instead of a table.
    """
    loaded = computing.open(model)
    values = gf.score(loaded, text, per_token=per_token and json).to_dict()
    if json:
        document(values)
    else:
        facts(
            {name: value for name, value in values.items() if name not in ("schema", "version", "per_token")}
        )
