"""Numbers with units, for people: `12,345,678 -> 12.3M`, `90 s -> 1m 30s`, `"15T" -> 15_000_000_000_000`."""

from __future__ import annotations

import re

from glassformer.errors import UsageError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BINARY = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tb": 10**12,
    "tib": 2**40,
}
_ROUNDS_UP = 0.9995
"""999,999 shown with three digits is 1M, not 1000k."""
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
}
_FLOPS = {
    prefix + ending: size
    for prefix, size in {
        "": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24,
    }.items()
    for ending in ("flop", "flops")
} | {"": 1.0}  # fmt: skip


def show_count(number: float) -> str:
    """`12345678 -> '12.3M'` (decimal prefixes)."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * _ROUNDS_UP:
            return (
                f"{number / size:.3g}{letter}"
                if abs(number) / size < 1000
                else f"{number / size:.0f}{letter}"
            )
    return f"{number:.3g}" if isinstance(number, float) and number != int(number) else f"{int(number)}"


def show_bytes(number: float) -> str:
    """`3_221_225_472 -> '3.0 GiB'` (binary prefixes)."""
    for size, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(number) >= size:
            return f"{number / size:.1f} {name}"
    return f"{int(number)} B"


def show_seconds(seconds: float) -> str:
    """`90.2 -> '1m 30s'`, `0.25 -> '0.25s'`."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"


def show_flops(flops: float) -> str:
    """`1.234e15 -> '1.23 PFLOP'` (floating-point operations, not a rate)."""
    for size, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if abs(flops) >= size * _ROUNDS_UP:
            return f"{flops / size:.3g} {name}"
    return f"{flops:.3g} FLOP"


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    found = re.fullmatch(
        r"\s*((?:[0-9][0-9_,]*\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower()
    )
    if not found or found[2] not in units:
        raise UsageError(f"{text!r} is not {what}.", expected=f"Expected something like {example}.")
    return float(found[1].replace(",", "").replace("_", "")) * units[found[2]]


def parse_count(text: str | int | float) -> int:
    """`'15T' -> 15_000_000_000_000`; plain numbers pass through."""
    return (
        int(_parse(text, _DECIMAL, "a count", "1000, 20k, 1.5M or 15T"))
        if isinstance(text, str)
        else int(text)
    )


def parse_bytes(text: str | int) -> int:
    """`'4 GiB' -> 4_294_967_296`."""
    return (
        int(_parse(text, _BINARY, "a size in bytes", "512MB or 4GiB")) if isinstance(text, str) else int(text)
    )


def parse_seconds(text: str | int | float) -> float:
    """`'55m' -> 3300.0`; a plain number is seconds."""
    return (
        _parse(text, {"": 1.0, **_SECONDS}, "a duration", "90s, 55m or 2h")
        if isinstance(text, str)
        else float(text)
    )


def parse_flops(text: str | int | float) -> float:
    """`'3.8e25' -> 3.8e25`, `'2 ZFLOP' -> 2e21`."""
    return (
        _parse(text, _FLOPS, "a number of FLOPs", "1e24 or 500 EFLOP")
        if isinstance(text, str)
        else float(text)
    )


def parse_dollars(text: str | int | float) -> float:
    """`'$5M' -> 5e6`; `5M`, `5M$`, `5M USD` and `5M dollars` are the same."""
    if not isinstance(text, str):
        return float(text)
    plain = re.sub(
        r"^\s*(us)?\$|\$\s*$|\b(usd|dollars?)\s*$|(?<=[0-9kmbt])(usd|dollars?)\s*$", "", text.lower()
    )
    try:
        return _parse(plain, _DECIMAL, "an amount", "")
    except UsageError:
        raise UsageError(
            f"{text!r} is not an amount of US dollars.",
            expected="Expected something like 20000, $5M or 1.5B USD.",
        ) from None
