"""`glassformer predict RUN rows.csv`: what a plain network says of rows."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.terminal import document, note, table


def predict(
    model: Path,
    rows: str,
    /,
    *,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Say what a plain network makes of rows: a class and how sure it is, or numbers.

    Args:
        model: A run of task classify, regress or marks, or its model folder.
        rows: A table with the columns it was trained on (.csv, .tsv, .parquet, .npz), a folder of images, or
            python:digits. Other columns are left alone.
        out: Write the answers here instead: .csv, .tsv or .parquet, a row for each row.
        json: One JSON document instead of a table.
    """
    from glassformer.train.launch import prepare_process

    prepare_process()
    loaded = gf.load_network(model)
    for warning in loaded.warnings:
        note(f"warning: {warning}")
    found = gf.predict(loaded, rows)
    if out is not None:
        gf.save_predictions(found, out)
        note(f"{len(found):,} answers are in {out}.")
    if json:
        document({"predictions": found}, "predictions")
    elif out is None:
        table([{"row": number, **flat(one)} for number, one in enumerate(found, start=1)])


def flat(answer: dict[str, object]) -> dict[str, object]:
    """An answer in one line: the classes it did not choose are left to --json and --out."""
    return {name: value for name, value in answer.items() if name != "probabilities"}
