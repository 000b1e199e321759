"""The options of `glassformer scale` that say how runs, or a table of them, are read."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class Reading:
    """What `gf.scale_points` is told beside the place."""

    columns: str | None = None
    """What the table calls them: N=params,D=tokens,loss=val_loss,C=flops,U=unique,run=name,warm=undecayed."""
    where: str | None = None
    """Only lines whose columns have these texts: phase=cooled,corpus=c4."""
    unit: str | None = None
    """Of the loss, such as "nats per token" or "bits per byte"."""
    tokenizer: str | None = None
    """Of the loss per token, as you call it: losses of two cannot be compared."""
    best: bool = False
    """Of the runs with one N and one D only the one with the lowest loss (a sweep's winner)."""


AS_IT_IS = Reading()
