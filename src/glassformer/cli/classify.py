"""`glassformer classify MODEL --text ...`: which class each text is of."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import document, table
from glassformer.errors import UsageError


def classify(
    model: Path,
    /,
    *,
    text: list[str] | None = None,
    file: list[Path] | None = None,
    top: int = 1,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Tell which class each text is of.

    Args:
        model: A classifier: a run, or a folder with config.json, model.safetensors and tokenizer.json.
        text: A text; may be given several times.
        file: A file whose lines are texts; may be given several times. Empty lines are left out.
        top: Show so many classes of each.
        json: JSON lines instead of a table.
    """
    from glassformer.use.embed import lines

    texts = [*(text or []), *lines(file or [])]
    if not texts:
        raise UsageError("There is no text.", do='Give --text "..." or --file FILE.')
    loaded = computing.open(model)
    rows = gf.classify(loaded, texts, top=top)
    if json:
        for row in rows:
            document(row, "class")
    else:
        table(rows)
