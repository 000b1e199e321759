"""`glassformer probe RUN "text"`: every checkpoint of a run, measured; when something formed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import glassformer as gf
from glassformer import charts
from glassformer.cli.model import DEVICE, Device, Top
from glassformer.cli.terminal import document, heading, note, sparkline, table
from glassformer.errors import UsageError

What = Literal["loss", "norms", "heads", "lens"]


def probe(
    run: Path,
    text: str,
    /,
    *,
    what: list[What] | None = None,
    measure: str | None = None,
    target: str | None = None,
    top: Top = 10,
    out: Path | None = None,
    device: Device = DEVICE,
    json: bool = False,
) -> None:
    """Measure every checkpoint of a run on a text, and say when something in the model formed.

    Args:
        run: The folder of a run that has kept its checkpoints (train.keep).
        text: What each of them reads.
        what: loss, norms, heads or lens; may be given several times; left out, all that the model has.
        measure: List and draw this one alone, such as induction or kl_to_the_end.
        target: What an encoder-decoder is to write.
        top: How many of the measures that changed most to list.
        out: Draw the measure over the steps (left out, the loss): .png, .svg, .html or .json.
        json: One JSON document with every value.
    """
    found = gf.probe(run, text, what=what, target=target, device=device.prepare())
    for finding in found.passed_over:
        note(f"warning: passed over {finding}")
    if out is not None:
        charts.save(found.chart(measure or "loss"), out)
        note(f"The chart is in {out}.")
    if json:
        document(found.to_dict())
        return
    rows = found.formed(top, measure)
    if len(found.steps) < 2:
        raise UsageError(
            f"{run} has one checkpoint, so nothing is seen to change.",
            expected="At least two.",
            do="Its values are in --json. Keep more: train --train.checkpoint_every 20 --train.keep 30",
        )
    heading(
        f"What changed most over {len(found.steps)} checkpoints, steps {found.steps[0]} to {found.steps[-1]}"
    )
    series = found.series()
    table([{**row, "over_time": sparkline(series[row["measure"], row["where"]])}
           for row in rows])  # fmt: skip
