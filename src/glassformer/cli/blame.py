"""`glassformer blame RUN "text"`: whose fault the loss is."""

from __future__ import annotations

from pathlib import Path

import glassformer as gf
from glassformer import charts
from glassformer.cli.model import DEVICE, Device, Top
from glassformer.cli.terminal import ANSWER_IS_NO, document, facts, note, table
from glassformer.look.ranking import RANKINGS, Ranking
from glassformer.look.visible import visible


def blame(
    model: Path,
    text: str,
    /,
    *,
    target: str | None = None,
    by: Ranking | None = None,
    top: Top = 10,
    check: bool = False,
    integrated: bool = False,
    out: Path | None = None,
    device: Device = DEVICE,
    json: bool = False,
) -> int:
    """Show the loss of each token of a text, and which weights, heads, neurons and tokens it hangs on.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: What the model reads.
        target: What an encoder-decoder is to write; a classifier's class; the right text, for an encoder.
        by: Only this ranking: weights, heads, neurons, tokens or places.
        top: Show so many rows of each ranking.
        check: Also hold the gradients against finite differences in float64.
        integrated: Instead, divide the probability of the next token among those read (integrated gradients).
        out: Save a chart: .html, .svg, .png or .json; the loss of each token, or the ranking of --by.
        json: One JSON document instead of tables.
    """
    loaded = device.open(model)
    if integrated:
        return _integrated(loaded, text, target, out=out, json=json, unused={"by": by, "check": check})
    found = gf.blame(loaded, text, target=target, check=check)
    if out is not None:
        charts.save(found.chart(by, top), out)
        note(f"The chart is in {out}.")
    shown = [by] if by else list(RANKINGS)
    if json:
        document({"model": str(model), **found.to_dict(by=shown, top=top)}, "blame")
    else:
        _print(found, shown, top, everything=by is None)
    for warning in found.warnings:
        note(f"warning: {warning}")
    return ANSWER_IS_NO if found.check is not None and not found.check.right else 0


def _print(found: gf.Blame, shown: list[Ranking], top: int, *, everything: bool) -> None:
    if everything:
        table([_visible(row) for row in found.rows()])
        facts(
            {
                "loss": f"{found.loss:.4f} nats a {found.per_token.what}, {found.total:.4f} in all",
                "one step": f"of plain gradient descent at learning rate {found.learning_rate:g} lowers it by "
                f"{found.falls_by:.3g}, to first order",
            }
        )
    for ranking in shown:
        if rows := found.by(ranking, top):
            print(f"\nby {ranking}")
            table([_visible(row) for row in rows])
    if found.check is not None:
        print(f"\n{found.check.verdict}")


def _integrated(
    loaded: gf.Loaded,
    text: str,
    target: str | None,
    *,
    out: Path | None,
    json: bool,
    unused: dict[str, object],
) -> int:
    from glassformer.errors import UsageError

    if without := [name for name, value in unused.items() if value]:
        raise UsageError(f"--{without[0]} has no effect with --integrated.", do="Leave one of them out.")
    classes = loaded.config.head == "classes"
    found = gf.integrated_gradients(
        loaded, text, token=target if classes else None, target=None if classes else target
    )
    if out is not None:
        charts.save(found.chart(), out)
        note(f"The chart is in {out}.")
    if json:
        document(found.to_dict(), "integrated")
    else:
        print(f"what speaks for {visible(found.answer)}")
        table([_visible(row) for row in found.rows()])
        print(found.verdict)
    return 0 if found.complete else ANSWER_IS_NO


def _visible(row: dict[str, object]) -> dict[str, object]:
    """With tokens whose spaces and line ends can be seen."""
    return {name: visible(str(value)) if name == "token" else value for name, value in row.items()}
