"""`glassformer fill MODEL "The <|mask|> sat"`: what could stand where a text is hidden."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import Precision, open_model
from glassformer.cli.terminal import document, table


def fill(
    model: Path,
    text: str,
    /,
    *,
    top: int = 5,
    precision: Precision = "fp32",
    device: str = "auto",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Guess the hidden tokens of a text.

    Args:
        model: An encoder: a run, or a folder with config.json, model.safetensors and tokenizer.json.
        text: The text, with <|mask|> where a token is to be guessed.
        top: Show so many candidates for each.
        precision: bf16 is faster and differs in the third digit.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, ...
        threads: Threads to compute with; as many as there are cores.
        json: JSON lines instead of a table.
    """
    loaded = open_model(model, precision=precision, device=device, threads=threads)
    rows = gf.fill(loaded, text, top=top)
    if json:
        for row in rows:
            document(row, "candidate")
    else:
        table([{**row, "place": str(row["place"]), "token": repr(row["token"])} for row in rows])
