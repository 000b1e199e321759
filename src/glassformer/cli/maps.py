"""A matrix of numbers on a terminal: layers down, tokens across, strong cells in colour.

What does not fit side by side, or is no terminal, is for `--out` and `--json`; then the strongest cells are listed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glassformer.cli.terminal import note, table
from glassformer.look.visible import visible

_STEPS = ((0.75, "bold black on orange3"), (0.4, "black on light_goldenrod2"), (0.15, "bold"))
_BELOW = ((-0.75, "bold white on blue"), (-0.4, "black on sky_blue2"), (-0.15, "bold blue"))
_DIGITS = ((0.1, 2), (0.01, 3), (0.001, 4))
_LONGEST = 18
_WIDE = 200


def show_map(
    cells: Sequence[Sequence[float]],
    down: Sequence[str],
    across: Sequence[str],
    corner: str,
    *,
    full: float,
    strongest: Sequence[Mapping[str, Any]],
) -> None:
    """The matrix where the screen is wide enough for it, else the rows of `strongest`. A cell of size `full` has the
    strongest colour."""
    heads = [short(word) for word in across]
    digits = next((digits for least, digits in _DIGITS if full >= least), 5)
    width = len(corner) + sum(max(len(word), digits + 3) + 2 for word in heads)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    if width > room:
        note(f"The map is {width} characters wide; these are its strongest cells. --out draws all of it.")
        table(strongest)
        return
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    drawn.add_column(corner, justify="right")
    for word in heads:
        drawn.add_column(Text(word), justify="right", no_wrap=True)
    for name, row in zip(down, cells, strict=True):
        drawn.add_row(name, *(_cell(value, full, digits) for value in row))
    Console(file=sys.stdout, width=max(width + 4, room), highlight=False, markup=False, emoji=False).print(
        drawn
    )


def short(word: str) -> str:
    """A token for a heading, its end cut off where it is long."""
    shown = seen(word)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def seen(word: str) -> str:
    """A token, or two that stand against each other (`a / b`), with their spaces to be seen."""
    return " / ".join(map(visible, word.split(" / ")))


def _cell(value: float, full: float, digits: int) -> Text:
    if value == 0:
        return Text("·", style="dim")  # the change reached nothing: it was the same number before
    share = value / full if full else 0.0
    style = next((style for least, style in _STEPS if share >= least), "")
    style = style or next((style for most, style in _BELOW if share <= most), "")
    shown = f"{value:.{digits}f}"
    return Text(shown.removeprefix("-") if float(shown) == 0 else shown, style=style)
