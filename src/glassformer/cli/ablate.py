"""`glassformer ablate RUN "text" --what L18H6`: what a model loses without some of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import glassformer as gf
from glassformer import charts
from glassformer.cli.model import COMPUTING, Computing, Top, warn_not_finite
from glassformer.cli.terminal import document, facts, note, table
from glassformer.errors import UsageError
from glassformer.look.visible import visible


def ablate(
    model: Path,
    text: str,
    /,
    *,
    what: Annotated[list[str], Parameter(consume_multiple=True)],
    how: Literal["zero", "mean", "resample"] = "zero",
    over: list[Path] | None = None,
    one_by_one: bool = False,
    seed: int | None = None,
    target: str | None = None,
    top: Top = 10,
    computing: Computing = COMPUTING,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Switch off parts of a model and see what becomes of its loss, token by token.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: The text to read.
        what: Parts: L18H6 (a head), L3N120 (a neuron), L5attn, L5mlp; of an encoder-decoder encoder.L0H1,
            decoder.L0X1 (a head of cross-attention), decoder.L0cross. Several, one after the other.
        how: Put 0 there, the part's mean, or what it says at other positions.
        over: Files with a text on each line, to take the mean or the other positions from; otherwise the text
            itself.
        one_by_one: Each part alone, not all at once.
        seed: Of resample's draw; 0.
        target: Of an encoder-decoder, what is written.
        top: Show so many of the most changed tokens.
        out: Save a chart: .png, .svg, .html or .json.
        json: One JSON document instead of tables, with every token.
    """
    if seed is not None and how != "resample":
        raise UsageError(f"--seed has no effect with --how {how}, which draws nothing.", do="Leave it out.")
    loaded = computing.open(model)
    warn_not_finite(loaded)
    given: dict[str, Any] = {} if seed is None else {"seed": seed}
    if over:
        from glassformer.text.lines import rows

        given["over"] = [row[0].decode("utf-8", "replace") for path in over for row in rows(path, ("text",))]
    found = gf.ablate(loaded, text, what, how=how, one_by_one=one_by_one, target=target, **given)
    if out is not None:
        charts.save(found.chart(), out)
        note(f"The chart is in {out}.")
    if json:
        document(found.to_dict(), "ablated")
        return
    facts({"how": found.how, "over": found.over, "seed": found.seed})
    table(found.rows())
    if found.effects[0].low is not None:
        note(f"change: nats a token, with its 95% interval over {found.interval}.")
    if len(found.effects) == 1:
        shown = found.effects[0].top(top)
        table([{**row, "text": None, "token": visible(row["token"])}
               for row in shown])  # fmt: skip
