"""A quantity as people read it: `3.94e25 FLOP`, `84 days`, `$61M`, `12.4 GWh`, and its interval in the same unit."""

from __future__ import annotations

import math

from glassformer.plan.quantity import Quantity
from glassformer.units import show_bytes, show_count, show_seconds

_COUNTED = {"parameters", "tokens", "steps", "accelerators", "rows", "h", "interruptions"}


def shown(quantity: Quantity) -> str:
    """Its value with its unit."""
    return one_value(quantity.value, quantity.unit)


def shown_interval(quantity: Quantity) -> str:
    """`71 to 98 days`; empty where it is exact."""
    if quantity.low == quantity.high or (quantity.unit == "interruptions" and quantity.high < 0.01):
        return ""
    low, high = (one_value(value, quantity.unit) for value in (quantity.low, quantity.high))
    before, unit_low = _split(low)
    after, unit_high = _split(high)
    if unit_low == unit_high and not unit_low.startswith("$"):
        return f"{before} to {after}{unit_high}"
    return f"{low} to {high}"


def one_value(value: float, unit: str) -> str:
    """A number in a unit of this room."""
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "without end"
    if unit == "bytes":
        return show_bytes(value)
    if unit == "s":
        return (
            f"{value * 1000:.3g} ms"
            if value < 1
            else f"{value:.3g} s"
            if value < 100
            else show_seconds(value)
        )
    if unit == "days":
        return _days(value)
    if unit == "$":
        return f"${_money(value)}"
    if unit == "MWh":
        return _scaled(value * 1e6, (("TWh", 1e12), ("GWh", 1e9), ("MWh", 1e6), ("kWh", 1e3), ("Wh", 1.0)))
    if unit == "MW":
        return _scaled(value * 1e6, (("GW", 1e9), ("MW", 1e6), ("kW", 1e3), ("W", 1.0)))
    if unit == "FLOP":
        return f"{value:.3g} FLOP"
    if unit == "FLOP/s":
        return _scaled(
            value,
            (("EFLOP/s", 1e18), ("PFLOP/s", 1e15), ("TFLOP/s", 1e12), ("GFLOP/s", 1e9), ("MFLOP/s", 1e6)),
        )
    if unit == "share":
        return f"{value:.1%}" if value < 0.9995 else f"{value:.2%}"
    if unit == "interruptions" and value < 0.01:
        return "under 0.01 interruptions"
    if unit in _COUNTED:
        number = f"{value:,.0f}" if 10 <= value < 1e5 else f"{value:.2g}" if value < 10 else show_count(value)
        return f"{number} {unit}"
    if unit == "t CO2":
        return _scaled(value * 1e6, (("kt CO2", 1e9), ("t CO2", 1e6), ("kg CO2", 1e3), ("g CO2", 1.0)))
    return f"{value:.4g} {unit}".strip()


def _days(value: float) -> str:
    if value >= 730:
        years = value / 365.25
        return f"{years:.3g} years" if years < 1e5 else f"{years:.2g} years"
    if value >= 2:
        return f"{value:.3g} days"
    hours = value * 24
    if hours >= 2:
        return f"{hours:.3g} hours"
    return f"{hours * 60:.3g} minutes" if hours * 60 >= 2 else f"{hours * 3600:.3g} seconds"


def _money(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    name, size = next(((name, size) for name, size in units if abs(value) >= size), units[-1])
    return f"{value / size:.3g} {name}"


def _split(text: str) -> tuple[str, str]:
    """Number and the rest, with what parts them."""
    place = next(
        (i for i, letter in enumerate(text) if not (letter.isdigit() or letter in ".,e+-")), len(text)
    )
    if place and text[place - 1] == "e":
        place -= 1
    return text[:place], text[place:]


TITLES = {
    "flops": "compute", "flops_full": "compute, full attention", "flops_hardware": "compute done by the hardware",
    "flops_six_n": "compute by 6 N D", "parameters": "parameters", "active_parameters": "parameters a token meets",
    "tokens": "tokens", "steps": "steps", "batch": "rows in a step", "length": "tokens in a row",
    "bytes_per_accelerator": "memory, fullest accelerator", "step_seconds": "time of a step", "days": "days",
    "days_undisturbed": "days, if nothing broke", "accelerator_hours": "accelerator hours", "dollars": "money",
    "dollars_owned": "money, owned", "dollars_project": "money, whole project", "megawatt_hours": "energy",
    "megawatts": "power", "interruptions": "interruptions", "goodput": "goodput (time that counts)",
    "utilisation": "utilisation (MFU)", "tokens_per_second": "tokens a second", "carbon": "carbon", "loss": "loss",
    "accelerators": "accelerators", "mtbf_hours": "time between failures",
    "checkpoint_interval": "work between checkpoints",
    "dollars_one_year": "money, rented for a year", "dollars_three_years": "money, rented for three years",
    "flops_per_token": "compute of one token", "tokens_per_step": "tokens of a step",
    "pue": "PUE (what the building adds)",
    "watts": "power of an accelerator in its node", "billed": "hours billed for an hour of the run",
    "price": "price of an hour",
    "peak": "peak of the datasheet", "achievable": "share of it that products reach at best",
    "stall": "stall of a checkpoint",
    "restart": "time to be back after a failure", "init": "processes find each other",
}  # fmt: skip
"""What a number is called on a page."""

PARTS = {
    "matmul": "matrix products", "pattern": "attention pattern", "bandwidth": "moving memory (norms, ...)",
    "recompute": "computing again", "head": "head and loss", "tensor": "tensor exchange", "data": "data exchange",
    "pipeline": "pipeline sends", "context": "context exchange", "expert": "expert exchange",
    "bubble": "pipeline bubble",
    "optimizer": "optimiser", "stalls": "stragglers and stalls",
}  # fmt: skip
"""What a part of a step is called."""

HELD = {
    "weights": "weights", "gradients": "gradients", "masters": "32-bit masters", "optimizer": "optimiser's states",
    "gathered": "gathered weights", "activations": "activations kept", "working": "the layer at work",
    "logits": "logits",
    "buffers": "buffers", "context": "the program itself", "fragmentation": "allocator's gaps",
}  # fmt: skip
"""What a part of the memory is called."""


def title(name: str) -> str:
    """What a number or part is called."""
    if name.startswith("held_"):
        return HELD.get(name.removeprefix("held_"), name.removeprefix("held_"))
    return TITLES.get(name) or PARTS.get(name) or name.replace("_", " ")


def titled(one: Quantity) -> str:
    """What a number is called: money says which it is."""
    if one.name == "dollars":
        return "money, electricity" if one.formula.startswith("kWh") else "money, rented on demand"
    return title(one.name)


def bare(text: str) -> str:
    """Without the word that the title says already."""
    for word in (" parameters", " interruptions", " tokens", " steps", " accelerators", " rows"):
        text = text.removesuffix(word)
    return text


def number(value: float) -> str:
    """A count without a unit."""
    return show_count(value)
