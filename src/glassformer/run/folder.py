"""A run is a folder, and everything that is known about it is in there.

    recipe.toml      what was asked for, every default written out
    manifest.json    what it was made with: code, libraries, machine, digests of data and tokenizer
    events.jsonl     what happened, one JSON object a line
    checkpoints/     training at some steps, verified before it is believed
    model/           the finished model: config.json, model.safetensors, tokenizer.json
    report.html      the story of the run on one page
    run.lock         who is writing in it

Only relative names are used inside, so a run may be moved, copied, renamed or linked.
"""

from __future__ import annotations

import contextlib
import fcntl
import html
import json
import os
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from glassformer.errors import RunError, RunLocked
from glassformer.files import write_json, write_text
from glassformer.run import checkpoints, reserve
from glassformer.run.events import Events, Unwritten
from glassformer.run.exports import verify_model
from glassformer.run.sealed import Finding
from glassformer.units import show_count, show_flops, show_seconds

if TYPE_CHECKING:
    from glassformer.run.repair import Repaired
    from glassformer.run.scrub import Scrubbed

RECIPE, MANIFEST, EVENTS, LOCK = "recipe.toml", "manifest.json", "events.jsonl", "run.lock"

SUMMARY = (
    "steps",
    "tokens",
    "seconds",
    "tokens_per_second",
    "utilisation",
    "train_loss",
    "val_loss",
    "val_bits_per_byte",
    "parameters",
    "flops",
)
"""What `summary` tells of every run; None where the run did not get that far."""


_IN_STEPS = ("tokens", "seconds", "tokens_per_second", "utilisation")
_OF_EVERY_VALIDATION = {"event", "time", "step", "loss", "tokens", "whole", "bits_per_byte", "bytes"}
_STATUS = {"start": "running", "resumed": "running", "done": "done", "stopped": "stopped"}

Rows = list[dict[str, Any]]
Findings = list[Finding]


class Run:
    """One run folder. Make one with `Run.create`, look at one with `Run.open`, find them with `Run.list`."""

    def __init__(self, path: Path, recipe: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.path = path
        self.recipe = recipe
        self.manifest = manifest
        self.events = Events(path / EVENTS)
        self.took_over: str | None = None
        """The process that held the lock before and did not let go of it."""

    @classmethod
    def create(
        cls, path: Path, recipe: Mapping[str, Any], manifest: Mapping[str, Any], *, fresh: bool = False
    ) -> Run:
        """A new run in `path`; an earlier one there is refused, or with `fresh` moved into `before-N/`."""
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path, _without_none(recipe), dict(manifest))
        with run.lock():
            if (path / RECIPE).exists():
                if not fresh:
                    raise RunError(
                        f"There is a run in {path} already.",
                        do="Go on with it, begin anew with --fresh, or choose another --run.",
                    )
                _move_aside(path)
            with _explained(path):
                write_json(path / MANIFEST, run.manifest)
                write_text(path / RECIPE, tomli_w.dumps(run.recipe))  # last: a folder with a recipe is a run
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in `path`, for reading, or for going on under `lock`."""
        if not (path / RECIPE).exists():
            found = [run.path.name for run in cls.list(path)] if path.is_dir() else []
            raise RunError(
                f"{path} is not a run." if path.exists() else f"There is no run {path}.",
                expected=f"Expected a folder with a {RECIPE}.",
                do=f"In it are the runs {', '.join(found)}."
                if found
                else "List runs with: glassformer runs list",
            )
        try:
            recipe = tomllib.loads((path / RECIPE).read_text(encoding="utf-8"))
            manifest = json.loads((path / MANIFEST).read_bytes()) if (path / MANIFEST).exists() else {}
        except ValueError as error:
            raise RunError(f"The recipe or manifest in {path} cannot be read: {error}.") from None
        return cls(path, recipe, manifest)

    @classmethod
    def unwritten(cls, path: Path, recipe: Mapping[str, Any]) -> Run:
        """The run for a process that takes part in it and neither reads nor writes the folder, which may be far."""
        run = cls(path, _without_none(recipe), {})
        run.events = Unwritten(path / EVENTS)
        return run

    @classmethod
    def list(cls, root: Path) -> list[Run]:
        """The runs directly inside `root`, by name."""
        return [cls.open(recipe.parent) for recipe in sorted(root.glob(f"*/{RECIPE}"))]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def checkpoints(self) -> Path:
        """The folder that the functions of `run/checkpoints.py` take."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Where the finished model is, or will be."""
        return self.path / "model"

    @contextmanager
    def lock(self) -> Iterator[Run]:
        """Be the one process that writes in this run; RunLocked names the other one.

        The system holds the lock (`flock`) and drops it when the process ends, however it ends; what is
        written in the file only tells others who it is. If it still names somebody, that process was killed:
        the lock is taken over, and `took_over` and a warning in the events say from whom.
        """
        with _explained(self.path):
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLocked(
                    f"{self.path} is in use by {_who(handle)}.",
                    do="Wait for it, stop it, or choose another --run.",
                ) from None
            if os.fstat(handle).st_size:
                self.took_over = _who(handle)
                message = f"took over the run from {self.took_over}, which ended without letting go of it"
                self.events.append("warning", message=message)
            os.truncate(handle, 0)
            self._sign(handle)
            try:
                yield self
            finally:
                os.truncate(handle, 0)
        finally:
            self.events.close()
            os.close(handle)

    def _sign(self, handle: int) -> None:
        """Say in the lock whose it is. On a full disk it holds as well unsigned."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        signature = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now}).encode()
        try:
            os.pwrite(handle, signature, 0)
        except OSError:
            reserve.give_up(self.checkpoints, reserve.ONE_LOG_SHARE)
            with contextlib.suppress(OSError):
                os.pwrite(handle, signature, 0)

    def rows(self) -> Rows:
        """The loss curve: one row for each step that counts."""
        return self.events.curve("step")

    def summary(self) -> dict[str, Any]:
        """The run in ten numbers (`SUMMARY`), and its `status`: new, running, killed, stopped or done."""
        found: dict[str, Any] = dict.fromkeys(SUMMARY)
        status = "new"
        for event in self.events.read():
            kind = event["event"]
            if kind == "step":
                now = {"steps": event["step"], "train_loss": event["loss"]}
                found |= now | {key: event[key] for key in _IN_STEPS if key in event}
            elif kind == "validation":
                found |= {"val_loss": event["loss"], "val_bits_per_byte": event.get("bits_per_byte")}
            elif kind in ("start", "cost", "done", "stopped"):
                found |= {key: event[key] for key in SUMMARY if event.get(key) is not None}
            status = _STATUS.get(kind, status)
        if status == "running" and not self.in_use():
            status = "killed"
        return {"run": self.name, "status": status, **found}

    def judged(self) -> dict[str, Any]:
        """What the task judges by, beside the loss, at the last measurement: `accuracy`, `rmse`, `bleu` ..."""
        last = self.events.last("validation") or {}
        return {key: value for key, value in last.items() if key not in _OF_EVERY_VALIDATION}

    @property
    def unit(self) -> str:
        """What is counted as `tokens`: a token, or a row of a table."""
        return str((self.events.last("start") or {}).get("unit", "token"))

    def verify(self) -> Findings:
        """Everything wrong with the checkpoints and the finished model, having read every byte."""
        return checkpoints.verify(self.checkpoints) + verify_model(self.model)

    def scrub(self, *, dry_run: bool = False) -> Scrubbed:
        """Read everything, set damaged checkpoints aside, remove what killed saves left (`scrub.py`)."""
        from glassformer.run.scrub import scrub

        return scrub(self.path, dry_run=dry_run)

    def repair(self, source: Path | None = None) -> Repaired:
        """Mend what is damaged, also from `source`, another copy of the run's folder (`repair.py`)."""
        from glassformer.run.repair import repair

        return repair(self.path, source)

    def in_use(self) -> bool:
        """Whether a process holds the lock now."""
        with contextlib.suppress(OSError), (self.path / LOCK).open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        summary = self.summary()
        show: dict[str, Callable[[Any], str]]
        show = {"tokens": show_count, "parameters": show_count, "flops": show_flops, "seconds": show_seconds}
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key.replace('_', ' '))}</th>"
            f"<td>{html.escape(show.get(key, _short)(value))}</td></tr>"
            for key, value in summary.items()
            if value is not None
        )
        return f"<table>{cells}</table>"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}.",
            expected="Expected a folder that this user may write to, on a disk that is not read-only.",
            do="Mend that, or choose another --run.",
        ) from error


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _who(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} (since {holder['started']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path / f"before-{number}").exists():
        number += 1
    aside.mkdir()
    reserve.release(path / "checkpoints")
    for entry in list(path.iterdir()):
        if entry.name != LOCK and not entry.name.startswith("before-"):
            entry.rename(aside / entry.name)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: a setting that is None is left out, and reading the recipe gives None again."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
