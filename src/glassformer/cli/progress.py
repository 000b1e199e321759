"""A run as it happens, on stderr: a bar on a terminal, plain lines anywhere else.

It listens to the events of a run and changes nothing. The time left is rich's own estimate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Column

import glassformer as gf
from glassformer.units import show_count, show_seconds

Event = dict[str, Any]

_WIDE_ENOUGH = 100
_JUDGED = {
    "bits_per_byte": "{:.3f} bits/byte",
    "accuracy": "accuracy {:.2%}",
    "rmse": "off by {:.4g} (rmse)",
    "r2": "R² {:.3f}",
    "ece": "ECE {:.3f}",
    "test_accuracy": "test accuracy {:.2%}",
    "test_rmse": "test rmse {:.4g}",
    "test_r2": "test R² {:.3f}",
}
"""What the tasks judge by, in words; the first that there is stands beside the loss."""


class Progress:
    """Use it as a context; give it every event and message."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._bar = rich.progress.Progress(  # what is long comes last: a narrow terminal cuts it there
            rich.progress.BarColumn(bar_width=24 if self._console.width >= _WIDE_ENOUGH else 5),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", visible=False)
        self._judged = ""
        self._unit = "token"

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(text, soft_wrap=True)

    def event(self, event: Event) -> None:
        """Show one event; kinds without a method of their name say nothing."""
        show: Callable[[Event], None] | None = getattr(self, f"_{event['event']}", None)
        if show is not None:
            show(event)

    def _start(self, event: Event) -> None:
        self._bar.update(self._task, total=event["steps"])
        self._unit = event.get("unit", "token")
        size, batch = show_count(event["parameters"]), show_count(event["tokens_per_step"])
        self.message(
            f"{size} parameters; {event['steps']:,} steps of {batch} {self._unit}s on {event['device']}"
        )

    def _engine(self, event: Event) -> None:
        for row in event["candidates"]:
            speed = row.get("tokens_per_second")
            self.message(
                f"  {row['name']}: "
                + (f"{show_count(speed)} tokens/s" if speed else row["error"] or "chosen")
            )

    def _resumed(self, event: Event) -> None:
        begun = gf.Run.open(self._run).events.last("start") or {}
        self._unit = begun.get("unit", "token")
        self._bar.update(self._task, total=begun.get("steps"), completed=event["step"])
        self.message(f"going on from step {event['step']:,}")
        for finding in event["findings"]:
            self.message(f"warning: {finding}")

    def _step(self, event: Event) -> None:
        self._bar.update(self._task, completed=event["step"], visible=True)
        task = self._bar.tasks[0]
        total = f"{task.total:,.0f}" if task.total else "?"
        words = [
            f"{'' if self._live else 'step '}{event['step']:,}/{total}",
            f"loss {float(event['loss']):.3f}",
            self._judged,
            f"{show_count(event['tokens_per_second'])} {'tok' if self._unit == 'token' else f'{self._unit}s'}/s",
            f"{event['utilisation']:.0%} of peak",
        ]
        line = "  ".join(word for word in words if word)
        if self._live:
            self._bar.update(self._task, description=line)
        else:
            left = f"  {timedelta(seconds=int(task.time_remaining))} left" if task.time_remaining else ""
            self.message(line + left)

    def _validation(self, event: Event) -> None:
        judged = {
            name: words.format(event[name]) for name, words in _JUDGED.items() if _is_number(event, name)
        }
        self._judged = next(iter(judged.values()), "")
        loss = f"step {event['step']:,}: validation loss {event['loss']:.4f}"
        self.message(", ".join([loss, *judged.values()]))

    def _sample(self, event: Event) -> None:
        text = (event["prompt"] + event["text"]).strip("\n").replace("\n", "\n  | ")
        writes = " writes" if self._unit == "token" else ""  # of a row it says what it says
        self.message(f"step {event['step']:,}{writes}:\n  | {text}")

    def _calibration(self, event: Event) -> None:
        self.message(f"says 70%, right 70%? {event['verdict']}")

    def _checkpoint(self, event: Event) -> None:
        self.message(f"step {event['step']:,}: saved {event['path']} in {show_seconds(event['seconds'])}")

    def _warning(self, event: Event) -> None:
        self.message(f"warning: {event['message']}")

    def _drift(self, event: Event) -> None:
        self.message(f"plan: step {event['step']:,}: {event['message']}")

    def _memory(self, event: Event) -> None:
        self.message(f"memory: {event['message']}")

    def _fault(self, event: Event) -> None:
        self.message(f"fault: {event['message']}")


def _is_number(event: Event, name: str) -> bool:
    return isinstance(event.get(name), int | float)
