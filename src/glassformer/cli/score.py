"""`glassformer score RUN --text FILE`: how well a model predicts a text."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import Precision, open_model
from glassformer.cli.terminal import document, facts


def score(
    model: Path,
    /,
    *,
    text: list[Path],
    per_token: bool = False,
    precision: Precision = "fp32",
    device: str = "auto",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Measure how well a model predicts a text: nats a token, bits a byte.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: A file to score; may be given several times, each a document of its own.
        per_token: With --json, also the nats of every token.
        precision: bf16 is faster and differs in the third digit.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, ...
        threads: Threads to compute with; as many as there are cores.
        json: One JSON document instead of a table.
    """
    loaded = open_model(model, precision=precision, device=device, threads=threads)
    values = gf.score(loaded, text, per_token=per_token and json).to_dict()
    if json:
        document(values)
    else:
        facts(
            {name: value for name, value in values.items() if name not in ("schema", "version", "per_token")}
        )
