"""What a verb shows: results on stdout, everything else on stderr.

rich decides about colour (`NO_COLOR`, `FORCE_COLOR`, a terminal or not). Off a terminal a table is as wide as
it needs to be, so that nothing is cut from what another program reads.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glassformer.run.events import plain

_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 1000
_COLOURS = {
    "ok": "green",
    "done": "green",
    "warn": "yellow",
    "stopped": "yellow",
    "running": "cyan",
} | dict.fromkeys(("fail", "killed", "damaged"), "red")


_STYLES = {
    "section": "bold blue",
    "title": "bold",
    "sentence": "",
    "formula": "cyan",
    "numbers": "",
    "note": "dim",
    "source": "dim",
}
"""How the kinds of lines of a text look."""

_WHICH = ("position", "row", "layer", "head", "neuron", "place", "id", "step", "rank")
"""Columns whose zero is the first of something, and so is told."""

ANSWER_IS_NO = 3
"""The exit code of a verb whose check did not hold."""


def note(message: str) -> None:
    """A line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def document(values: Mapping[str, Any], schema: str = "", version: int = 1) -> None:
    """One JSON document on stdout, with the name and version of its schema first. Numbers that are not
    finite are the strings that events.jsonl uses for them."""
    named = {"schema": f"glassformer.{schema}", "version": version} if schema else {}
    print(json.dumps(plain({**named, **values}), ensure_ascii=False, allow_nan=False), flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table; a column that holds nothing, or only zeros, is left out, unless it says which (`_WHICH`)."""
    every = dict.fromkeys(name for row in rows for name in row)
    names = [
        name
        for name in every
        if any(row.get(name) for row in rows)
        or (name.startswith(_WHICH) and any(row.get(name) is not None for row in rows))
    ]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        number = all(isinstance(row.get(name), int | float | None) for row in rows)
        drawn.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(row.get(name)) for name in names))
    _print(drawn)


def heading(title: str, rows: Sequence[Any] = (True,)) -> None:
    """A title over a table; none over one that is empty."""
    if rows:
        _print(Text(f"\n{title}", style="bold"))


def facts(values: Mapping[str, Any]) -> None:
    """Names and values, one a line; what is None is left out."""
    drawn = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        if value is not None:
            drawn.add_row(name.replace("_", " "), _cell(value))
    _print(drawn)


def sentences(said: Iterable[str]) -> None:
    """Sentences, one below the other, folded to the terminal's width."""
    for one in said:
        folded = textwrap.fill(one, columns(), break_long_words=False, break_on_hyphens=False)
        _print(Text(folded))


def counted(values: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """The same with what is counted in tokens called by its name, such as rows."""
    return {name.replace("tokens", f"{unit}s"): value for name, value in values.items()}


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A curve in one line of block characters, low to high."""
    finite = [value for value in values if math.isfinite(value)]
    shown = (
        [finite[index * len(finite) // width] for index in range(width)] if len(finite) > width else finite
    )
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def columns(most: int = 100) -> int:
    """How wide a text may be: the terminal's width, `most` where there is more or no terminal."""
    return min(most, Console(file=sys.stdout).width) if sys.stdout.isatty() else most


def styled(rows: Iterable[tuple[str, str]]) -> None:
    """Lines that are folded already, each with its kind, which a terminal shows in its style."""
    console = _Screen(file=sys.stdout, width=_WIDE, highlight=False, markup=False, emoji=False)
    for kind, line in rows:
        console.print(Text(line, style=_STYLES.get(kind, "")))


class _Screen(Console):
    """rich ends the process where the reader of a pipe went away; what that means, main says."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _print(drawn: Table | Text) -> None:
    width = None if sys.stdout.isatty() else _WIDE
    _Screen(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False).print(drawn)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Text(str(value), style=_COLOURS.get(str(value), ""))
    return Text(f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}")
