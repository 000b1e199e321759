"""What people give to the planner, as numbers: `15T`, `60 days`, `$5M`, `1e24`, `80GB`, `16384`.

    tokens("15T") -> 1.5e13        duration("60 days") -> 5,184,000 s        dollars("$5M") -> 5e6
    flops("1e24") -> 1e24          memory("80GB") -> 8e10 bytes              whole("16384") -> 16,384

Each refuses what is not more than zero, not finite, or in the units of something else, and says by its name what was
given. `budget` takes money, time or FLOPs and says which it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from glassformer.errors import UsageError
from glassformer.units import parse_bytes, parse_count, parse_dollars, parse_flops, parse_seconds

Given = str | int | float
_NOUNS = r"\s*\b(tokens?|parameters?|params?|gpus?|tpus?|accelerators?|chips?|rows?|sequences?|steps?)\s*$"


class Budget(NamedTuple):
    """What may be spent."""

    kind: Literal["dollars", "seconds", "flops"]
    value: float


def tokens(given: Given, name: str = "tokens") -> float:
    """A count that may be huge."""
    return _number(given, name, _count, "A count such as 15T, 300B or 2.1e12.")


def whole(given: Given, name: str) -> int:
    """A count of things that do not come in parts."""
    found = _number(given, name, _count, "A whole number such as 8 or 16384.")
    if found != int(found):
        raise UsageError(f"{name} is {given!r}.", expected="A whole number such as 8 or 16384.")
    return int(found)


def duration(given: Given, name: str = "days") -> float:
    """Seconds; a plain number is days, which is what training takes."""
    expected = "A duration such as 60 days, 12h or 55m."
    if isinstance(given, str) and re.fullmatch(r"\s*[0-9.,_]+\s*M\s*", given):
        raise UsageError(f"{name} is {given!r}: millions, or minutes?", expected=expected)
    if isinstance(given, str) and not re.search(r"[a-z]\s*$", given.lower()):
        return _number(given, name, lambda text: 86400.0 * _count(text), expected)
    plain = isinstance(given, str)
    return _number(
        given, name, lambda text: parse_seconds(text) if plain else 86400.0 * float(text), expected
    )


def dollars(given: Given, name: str = "budget") -> float:
    """US dollars."""
    return _number(given, name, parse_dollars, "US dollars such as $5M, 20000 or 1.5B USD.")


def flops(given: Given, name: str = "FLOPs") -> float:
    """Floating-point operations."""
    return _number(given, name, parse_flops, "FLOPs such as 1e24 or 500 EFLOP.")


def memory(given: Given, name: str = "memory") -> float:
    """Bytes."""
    return _number(given, name, lambda text: float(parse_bytes(str(text))), "Bytes such as 80GB or 16GiB.")


def budget(given: Given, name: str = "budget") -> Budget:
    """Money, time or FLOPs by the unit; a plain number is dollars, or FLOPs from 1e15 on."""
    kinds: dict[str, tuple[Literal["dollars", "seconds", "flops"], Callable[[Given, str], float]]] = {
        "a duration": ("seconds", duration),
        "FLOPs": ("flops", flops),
    }
    unit = _kind(given) if isinstance(given, str) else ""
    kind, read = kinds.get(unit, ("dollars", dollars))
    value = read(given, name)
    if kind == "dollars" and not unit and value >= 1e15:
        return Budget("flops", value)
    return Budget(kind, value)


def _number(given: Given, name: str, read: Callable[[Given], float], expected: str) -> float:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise UsageError(f"{name} is {given!r}.", expected=expected)
    text = given.strip() if isinstance(given, str) else given
    if isinstance(text, str) and re.match(r"[$\s]*-", text):
        raise UsageError(f"{name} is {given!r}.", expected="More than 0.")
    try:
        found = float(read(text))
    except UsageError:
        kind = _kind(str(given))
        told = f", which is {kind}." if kind else "."
        raise UsageError(f"{name} is {given!r}{told}", expected=expected) from None
    except (ValueError, OverflowError):
        raise UsageError(f"{name} is {given!r}.", expected=expected) from None
    if not math.isfinite(found) or found <= 0:
        raise UsageError(f"{name} is {given!r}.", expected="More than 0, and finite.")
    return found


def _count(text: Given) -> float:
    """A decimal count, with the noun that people write after it; parts of one are kept."""
    if not isinstance(text, str):
        return float(text)
    plain = re.sub(_NOUNS, "", text.lower())
    found = re.fullmatch(r"[0-9.,_]+(e[+-]?[0-9]+)?", plain.strip())
    if found:
        return float(plain.replace(",", "").replace("_", ""))
    return float(parse_count(plain))


def _kind(text: str) -> str:
    """What a text is, by its unit; empty where it has none."""
    unit = text.lower()
    if "$" in unit or re.search(r"(usd|dollars?)\s*$", unit):
        return "money"
    if re.search(r"flops?\s*$", unit):
        return "FLOPs"
    if re.search(r"[0-9]\s*[kmgt]i?b\s*$", unit):
        return "a size in bytes"
    if re.search(r"[0-9]\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?|w|weeks?)\s*$", text):
        return "a duration"
    if re.search(_NOUNS, unit):
        return "a count"
    return ""
