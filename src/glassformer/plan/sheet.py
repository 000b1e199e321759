"""A plan as lines of text, for a terminal: each line with its kind (title, section, numbers, note), which decides how
it looks there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from glassformer.plan.plan import MAIN, Plan
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import HELD, PARTS, bare, one_value, shown, shown_interval, titled

Line = tuple[str, str]
"""(kind, text)"""
_BAR = 34


def sheet(plan: Plan, width: int = 100) -> Iterator[Line]:
    """The whole answer on one screen."""
    yield "title", plan.title
    yield from _folded("sentence", plan.sentence(), width)
    yield "section", "\nWhat it takes" + " " * 35 + "80 % between"
    yield from (("numbers", _number(plan.quantities[name])) for name in MAIN if name in plan.quantities)
    yield "section", f"\nWhere a step goes: {shown(plan.step_seconds)}"
    yield from _bars(plan.split(), "seconds", "s", PARTS)
    yield "section", f"\nWhat an accelerator holds: {plan.memory_sentence()}"
    yield from _bars(plan.memory_rows(), "bytes", "bytes", HELD)
    yield "section", "\nHow it is divided"
    yield from _folded("sentence", plan.layout_sentence(), width)
    yield from _table(list(plan.layouts))
    if plan.unfit:
        yield from _folded("note", plan.unfit, width)
    yield "section", "\nWhat goes wrong on the way"
    yield from _folded("sentence", plan.failure_sentence(), width)
    if said := plan.size_sentence():
        yield "section", "\nIs it the right size?"
        yield from _folded("sentence", said, width)
    if plan.nearest:
        yield "section", "\nPublished runs like it"
        yield from _table(plan.nearest)
    yield "note", "\nglassformer plan ... --explain NAME opens a number; --html plan.html opens all of them."


def opened(quantities: Sequence[tuple[int, Quantity]], width: int = 100) -> Iterator[Line]:
    """One number down to what it was computed from; what stands above already is not opened again."""
    seen: set[str] = set()
    closed = None
    for depth, one in quantities:
        if closed is not None and depth > closed:
            continue
        closed = None
        begin, interval = "   " * depth, shown_interval(one)
        again = one.name in seen and bool(one.inputs or one.formula)
        words = f"{begin}{titled(one)}: {shown(one)}" + (f"   ({interval})" if interval else "")
        yield "title" if not depth else "numbers", words + ("   (above)" if again else "")
        if again:
            closed = depth
            continue
        seen.add(one.name)
        for kind, text in (("formula", one.formula), ("source", one.source)):
            if text:
                sign = "= " if kind == "formula" else "from: "
                yield from _folded(kind, f"{sign}{text}", width, begin + "   ")


def _number(one: Quantity) -> str:
    return f"  {titled(one):<30}{bare(shown(one)):<18}{bare(shown_interval(one))}".rstrip()


def _bars(
    rows: Sequence[Mapping[str, Any]], value: str, unit: str, names: Mapping[str, str]
) -> Iterator[Line]:
    whole = sum(row[value] for row in rows)
    most = max((row[value] for row in rows), default=0.0)
    for row in rows:
        if row[value] < 0.001 * whole:
            continue
        name = names.get(row["part"], row["part"].replace("_", " "))
        eighths = round(8 * _BAR * row[value] / most)
        drawn = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        yield (
            "numbers",
            f"  {name:<30}{drawn:<{_BAR + 1}}{row[value] / whole:>6.1%}  {one_value(row[value], unit)}",
        )


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    if not rows:
        return
    names = [
        name
        for name in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(name) for row in rows)
    ]
    cells = [
        [str(name).replace("_", " ") for name in names],
        *([_cell(row.get(name)) for name in names] for row in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    for number, row in enumerate(cells):
        yield (
            "note" if number == 0 else "numbers",
            "  " + "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip(),
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )


def _folded(kind: str, text: str, width: int, begin: str = "") -> Iterator[Line]:
    for line in wrap(text, width, initial_indent=begin, subsequent_indent=begin):
        yield kind, line
