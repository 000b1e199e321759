"""`glassformer explain RUN "text"`: one prediction from the text to the update, with the model's own numbers."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import columns, document, styled


def explain(
    model: Path,
    text: str,
    /,
    *,
    target: str | None = None,
    position: int | None = None,
    layer: int = 0,
    head: int | None = None,
    neuron: int | None = None,
    weight: str | None = None,
    rate: float = 0.1,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Explain one prediction: every formula on the way, the numbers put in, and the line of code that computes it.

    Args:
        model: A run, a model folder or a .gguf file.
        text: What is read. Without a target, its last token is the right answer. Of a plain network, rows as predict
            reads them.
        target: The right answer: the next token, the class, the numbers; of an encoder-decoder, what it writes.
        position: Where the prediction is made, -1 at the last token; of a plain network, which row.
        layer: The block that is shown in full.
        head: Its head; left out, the most telling.
        neuron: Its neuron; left out, the one that writes most.
        weight: The weight whose gradient and update are shown, "NAME[i, j]"; left out, one of that neuron's.
        rate: How far the update goes.
        json: One JSON document instead of a text.
    """
    opened = computing.open_any(model)
    found = gf.explain(
        opened, text, layer=layer, head=head, position=position, neuron=neuron, weight=weight, rate=rate, target=target
    )  # fmt: skip
    if json:
        document(found.to_dict(), "explanation")
    else:
        styled(found.printed(columns()))
