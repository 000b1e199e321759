"""In what numbers a run computes and keeps: bytes of a parameter's states, and which peak of the hardware counts.

Mixed precision (1710.03740) keeps weights of 16 bits for the products and 32-bit masters for the update. Bytes a
parameter, with AdamW: 16 in all with 16-bit gradients, 18 with 32-bit ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.errors import UsageError, nearest

Peak = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of each number that is kept."""

    name: str
    peak: Peak
    """The row of the hardware table that products are bound by."""
    weight: float
    gradient: float
    master: float
    moment: float = 4.0
    """Of each of the optimiser's numbers."""
    activation: float = 2.0


PRECISIONS: dict[str, Precision] = {
    one.name: one
    for one in (
        Precision("fp32", "fp32", 4, 4, 0, activation=4),
        Precision("tf32", "tf32", 4, 4, 0, activation=4),
        Precision("bf16", "bf16", 2, 4, 4),
        Precision("bf16-grads16", "bf16", 2, 2, 4),
        Precision("autocast", "bf16", 4, 4, 0),
        Precision("bf16-pure", "bf16", 2, 2, 0, moment=2),
        Precision("fp16", "fp16", 2, 2, 4),
        Precision("fp8", "fp8", 2, 4, 4),
        Precision("fp4", "fp4", 2, 4, 4),
    )
}


_ALSO = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "mxfp8": "fp8", "mxfp4": "fp4", "nvfp4": "fp4",
    "amp": "autocast",
}  # fmt: skip


def precision(name: str) -> Precision:
    """Precision by name, in any case; UsageError with the nearest names."""
    wanted = _ALSO.get(name.lower(), name.lower())
    if wanted not in PRECISIONS:
        raise UsageError(f"There is no precision {name!r};", expected=nearest(wanted, PRECISIONS))
    return PRECISIONS[wanted]
