"""Tables of what can be named in a plan: published models and accelerators."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from glassformer.plan.hardware import accelerators
from glassformer.plan.presets import presets
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import one_value, shown_interval
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.plan.claims import Claim


def preset_rows() -> list[dict[str, Any]]:
    """A published model a row."""
    return [
        {
            "name": one.name, "model": one.title, "parameters": show_count(one.architecture.parameters.total),
            "a token meets": show_count(one.architecture.active_parameters),
            "tokens": show_count(one.tokens) if one.tokens else None, "length": one.length, "source": one.source,
        }
        for one in presets().values()
    ]  # fmt: skip


def hardware_rows() -> list[dict[str, Any]]:
    """An accelerator a row; peaks in TFLOP/s of the datasheet, dense."""
    rows = []
    for one in accelerators().values():
        peaks = {
            name: one.peaks[name] / 1e12 if name in one.peaks else None
            for name in ("fp32", "bf16", "fp16", "fp8", "fp4")
        }
        reached = one.achievable.get("bf16")
        rows.append(
            {
                "name": one.name, "release": one.release, **peaks,
                "products reach": f"{reached:.0%}" if reached else None,
                "memory_GB": one.memory / 1e9, "memory_GB_per_second": one.bandwidth / 1e9, "domain": one.domain,
                "link_GB_per_second": one.scale_up / 1e9, "outside_GB_per_second": one.scale_out / 1e9,
                "watts": one.power,
                "unverified": ", ".join(sorted(one.unverified)) or None, "source": one.source,
            }
        )  # fmt: skip
    return rows


def claim_rows(claim: Claim) -> list[dict[str, Any]]:
    """A claim's readings with units, as a table for people."""
    return [
        {
            "case": one.case, "computed": _range(one.low, one.high, one.unit), "claimed": _range(one.least, one.most,
            one.unit),
            "holds": "yes" if one.holds else "NO", "counts": "yes" if one.counts else "beside",
        }
        for one in claim.readings
    ]  # fmt: skip


def _range(low: float, high: float, unit: str) -> str:
    """`$8.4M to $22M`, `20 or more MW`."""
    if math.isinf(high):
        return f"{one_value(low, unit)} or more"
    if low == high:
        return one_value(low, unit)
    return shown_interval(Quantity("range", low, low, high, unit))
