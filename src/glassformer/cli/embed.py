"""`glassformer embed MODEL --text ...`: texts as vectors."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import document, note, table
from glassformer.errors import UsageError
from glassformer.use.embed import Pooling


def embed(
    model: Path,
    /,
    *,
    text: list[str] | None = None,
    file: list[Path] | None = None,
    pooling: Pooling = "mean",
    raw: bool = False,
    compare: bool = False,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Turn texts into vectors that are near where meanings are. One JSON line a text, or a file.

    Args:
        model: An encoder: a run, or a folder with config.json, model.safetensors and tokenizer.json.
        text: A text; may be given several times.
        file: A file whose lines are texts; may be given several times. Empty lines are left out.
        pooling: mean of all tokens, first (BERT's [CLS]), or the model's own pooler.
        raw: Keep the vectors' lengths; without it each has length 1.
        compare: The cosine of every two texts instead of the vectors, the nearest first.
        out: Write the vectors to this .npy file, a row for each text.
        json: With --compare, JSON lines instead of a table.
    """
    from glassformer.use.embed import compare as cosines
    from glassformer.use.embed import lines, save_vectors

    texts = [*(text or []), *lines(file or [])]
    if not texts:
        raise UsageError("There is no text.", do='Give --text "..." or --file FILE.')
    loaded = computing.open(model)
    vectors = gf.embed(loaded, texts, pooling=pooling, normalize=not raw)
    if out is not None:
        note(f"{save_vectors(out, vectors)}: {len(texts)} x {vectors.shape[1]}")
    if compare:
        rows = cosines(vectors, texts)
        if not json:
            table(rows)
        for row in rows if json else []:
            document(row, "cosine")
    elif out is None:
        for one, vector in zip(texts, vectors.tolist(), strict=True):
            document({"text": one, "vector": vector}, "embedding")
