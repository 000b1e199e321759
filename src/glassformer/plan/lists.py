"""Tables of what can be named in a plan: published models and accelerators."""

from __future__ import annotations

from typing import Any

from glassformer.plan.hardware import accelerators
from glassformer.plan.presets import presets
from glassformer.units import show_count


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
        peaks = {name: one.peaks[name] / 1e12 for name in ("fp32", "bf16", "fp16", "fp8", "fp4") if name in one.peaks}
        reached = one.achievable.get("bf16")
        rows.append(
            {
                "name": one.name, "release": one.release, **peaks, "products reach": f"{reached:.0%}" if reached else None,
                "memory_GB": one.memory / 1e9, "memory_GB_per_second": one.bandwidth / 1e9, "domain": one.domain,
                "link_GB_per_second": one.scale_up / 1e9, "outside_GB_per_second": one.scale_out / 1e9, "watts": one.power,
                "source": one.source,
            }
        )  # fmt: skip
    return rows
