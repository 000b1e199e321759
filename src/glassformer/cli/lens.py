"""`glassformer lens RUN "text"`: what each layer would say, and why one token rather than another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import glassformer as gf
from glassformer import charts
from glassformer.cli.model import COMPUTING, Computing, Top
from glassformer.cli.terminal import document, facts, note, table
from glassformer.errors import UsageError
from glassformer.look.visible import visible


def lens(
    model: Path,
    text: str,
    /,
    *,
    target: str | None = None,
    token: str | None = None,
    rather_than: str | None = None,
    per: Literal["head", "layer", "neuron", "token"] | None = None,
    position: int = -1,
    half: bool = False,
    top: Top = 5,
    out: Path | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Show what each layer would say if it were the last, and with --rather-than why one token wins.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: What the model reads.
        target: What an encoder-decoder writes.
        token: The token whose rank is shown, exactly one, with its space; left out, what the model says.
        rather_than: Another token: which components make the model prefer the one to it.
        per: With --rather-than: each head (the default), each layer, each neuron, or each token a head reads.
        position: Which token to stand at, from 0, or from the end: -1 is the last.
        half: Also between attention and feed-forward.
        top: Show so many of each layer's likeliest tokens.
        out: Save the chart here: .html, .svg, .png or .json.
        json: One JSON document instead of tables: every layer, and position.
    """
    if per is not None and rather_than is None:
        raise UsageError("--per has no effect without --rather-than.", do="Give both, or neither.")
    loaded = computing.open(model)
    found = gf.lens(loaded, text, target=target, token=token, half=half, top=top)
    rows = found.rows(position)
    for warning in found.warnings:
        note(f"warning: {warning}")
    why = (
        None
        if rather_than is None
        else gf.attribute(
            loaded, text, token, rather_than, position=position, target=target, per=per or "head"
        )
    )
    if out is not None:
        charts.save(found.chart() if why is None else charts.stacked(found.chart(), why.chart()), out)
        note(f"The chart is in {out}.")
    if json:
        document({**found.to_dict(), "attribution": None if why is None else why.to_dict()})
        return
    facts({"position": rows[0]["position"], "token": visible(rows[0]["token"])})
    table(
        [
            {
                "layer": row["stage"] if half else row["layer"],
                f"rank of {visible(row['chosen'])}": row["rank"],
                "probability": row["probability"],
                "kl": row["kl"],
                "entropy": row["entropy"],
                "would say": "  ".join(
                    f"{visible(one['token'])} {one['probability']:.3f}" for one in row["top"]
                ),
            }
            for row in rows
        ]
    )
    if why is not None:
        word, other = (visible(each or "") for each in why.words)
        table(
            [
                {f"why {word} rather than {other}": row["component"], "adds": row["value"]}
                for row in why.rows()
            ]
        )
        facts({"sum": why.total, "logit difference": why.logit, "remainder": why.remainder})
