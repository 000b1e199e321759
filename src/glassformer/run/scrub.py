"""Reading all that is on disk of a run, before it is needed: a bit that flips is found while there is another copy.

    run.scrub()                  or: glassformer runs scrub runs/demo-1

    checkpoints/step-...         every byte against the manifest; damaged ones are set aside, if one is whole
    model/  faults/step-...      every byte against the manifest
    recipe.toml  manifest.json   they can be read; a value that changed there is refused when the run goes on
    events.jsonl                 every line; a torn one is what a kill leaves, any other that is no event is damage
    .*.partial-PID  .*.PID.tmp   what killed saves left is removed

It holds the lock of the run meanwhile, so nobody writes. A dry run changes nothing, and may read beside a living run.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassformer.errors import RunError
from glassformer.files import restore
from glassformer.run import checkpoints, reserve
from glassformer.run.folder import EVENTS, MANIFEST, RECIPE, Run
from glassformer.run.sealed import MANIFEST as SEAL
from glassformer.run.sealed import About, Finding, inspect, read_manifest

FAULTS = "faults"
MODEL_ABOUT: About = {"kind": "model"}

_STEP = re.compile(r"step-(\d+)")
_ANY_STEP = re.compile(r"step-(\d+)(?:-bad-\d+)?")
_LEFT_OVER = re.compile(r"\..+\.(?:(?:partial|removed|old)-(\d+)|(\d+)\.tmp)")


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What was found in a run, and what was done about it; of a dry run, what would be."""

    run: str
    num_files: int
    num_bytes: int
    """Read."""
    findings: list[Finding]
    """Everything that is not as it was written."""
    set_aside: list[str]
    """Damaged checkpoints, by the names they had."""
    left_overs: list[str]
    """What killed saves left, now removed."""
    torn_lines: list[int]
    """Lines of the log, from 1, that a kill cut short; readers skip them."""
    newest: int | None
    """The step of the newest whole checkpoint."""
    lost_steps: int
    """Steps between it and the newest there was."""
    held_bytes: int
    """Disk space that the run holds for its next checkpoints."""

    @property
    def whole(self) -> bool:
        return not self.findings


def scrub(path: Path, *, dry_run: bool = False) -> Scrubbed:
    """Read everything in the run folder `path`, set damaged checkpoints aside, remove left-overs of killed saves.

    RunLocked while another process trains in it, unless it is a dry run; RunError when `path` is no run.
    """
    check_is_run(path)
    if dry_run:
        return _scrub(path, change=False)
    with Run(path, {}, {}).lock():
        return _scrub(path, change=True)


def run_folders(root: Path) -> list[Path]:
    """The run folders directly in `root`, also those that cannot be opened any more."""
    return sorted(path for path in root.iterdir() if path.is_dir() and is_run(path)) if root.is_dir() else []


def is_run(path: Path) -> bool:
    """Whether it is a run folder. One whose recipe was lost, or cannot be read any more, is one."""
    return any((path / name).exists() for name in (RECIPE, MANIFEST, EVENTS))


def check_is_run(path: Path) -> None:
    if not is_run(path):
        raise RunError(
            f"{path} is not a run." if path.exists() else f"There is no run {path}.",
            expected=f"Expected a folder with a {RECIPE}.",
            do="List runs with: glassformer runs list",
        )


def sealed_folders(path: Path) -> Iterator[tuple[Path, About]]:
    """Every folder of a run that has a manifest of its own, and what that should say."""
    for folder in sorted((path / "checkpoints").glob("step-*")):
        if folder.is_dir() and (named := _STEP.fullmatch(folder.name)):
            yield folder, {"kind": "checkpoint", "step": int(named[1])}
    for folder in sorted((path / FAULTS).glob("*")):
        if (folder / SEAL).exists() and not folder.name.startswith("."):
            named = _STEP.fullmatch(folder.name)
            own = (read_manifest(folder) or {}).get("about", {})
            yield folder, {"kind": "fault", "step": int(named[1])} if named else own
    if (path / "model").is_dir():
        yield path / "model", MODEL_ABOUT


def check_texts(path: Path) -> list[Finding]:
    """What cannot be read of the recipe and the manifest of a run."""
    findings = []
    for name in (RECIPE, MANIFEST):
        try:
            parse(name, (path / name).read_bytes())
        except FileNotFoundError:
            findings.append(Finding(path.name, name, None, "it is missing"))
        except (OSError, ValueError) as error:
            findings.append(Finding(path.name, name, None, f"it cannot be read: {error}"))
    return findings


def parse(name: str, content: bytes) -> dict[str, Any]:
    """The recipe or the manifest; ValueError where it is none."""
    values: Any = tomllib.loads(content.decode()) if name == RECIPE else json.loads(content)
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}")
    return values


def bad_lines(path: Path) -> tuple[list[int], list[int]]:
    """(torn, damaged) lines of a log, by number from 1: the first are the beginning of an event, and no more."""
    torn: list[int] = []
    damaged: list[int] = []
    if path.exists():
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not is_event(line) and line.strip():
                    text = line.rstrip(b"\n")
                    cut = (
                        b'{"event": "'.startswith(text[:11]) and not text.endswith(b"}") and b"\0" not in text
                    )
                    (torn if cut else damaged).append(number)
    return torn, damaged


def is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and "event" in event


def latest_step(path: Path) -> int:
    """The newest step that there is or was a checkpoint of."""
    folder = path / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(named[1]) for name in names if (named := _ANY_STEP.fullmatch(name))), default=0)


def remove_left_overs(path: Path, *, change: bool) -> list[str]:
    """What killed saves left, by its place in the run. With the lock held nobody else's save can be in the way."""
    found = []
    for folder in (path, path / "checkpoints", path / FAULTS):
        if change and folder.is_dir():
            restore(
                folder
            )  # a crash in the middle of a swap may have left the only whole one under another name
        for entry in sorted(folder.glob(".*")):
            named = _LEFT_OVER.fullmatch(entry.name)
            if named and (change or not checkpoints.is_alive(int(named[1] or named[2]))):
                found.append(str(entry.relative_to(path)))
                if change:
                    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
    return found


def _scrub(path: Path, *, change: bool) -> Scrubbed:
    left_overs = remove_left_overs(path, change=change)
    findings, damaged = check_texts(path), []
    newest, latest = None, latest_step(path)
    files = [path / name for name in (RECIPE, MANIFEST, EVENTS) if (path / name).exists()]
    for folder, about in sealed_folders(path):
        files += [file for file in folder.iterdir() if file.is_file()]
        found = inspect(folder, about)
        if not folder.exists():
            continue  # thinned out meanwhile by the run itself, in a dry run beside it
        findings += found
        if about["kind"] == "checkpoint":
            if not found:
                newest = max(int(about["step"]), newest or 0)
            elif all(finding.damaged for finding in found):
                damaged.append(folder)
    torn, bad = bad_lines(path / EVENTS)
    findings += [Finding(path.name, EVENTS, None, f"line {number} is no event") for number in bad]
    if newest is None:
        damaged = []  # the run does not begin anew by itself, and says what is wrong with them, while they are there
    if change:
        for folder in damaged:
            checkpoints.move_aside(folder)
    sizes = []
    for file in files:
        with contextlib.suppress(OSError):
            sizes.append(file.lstat().st_size)
    return Scrubbed(
        run=str(path), num_files=len(files), num_bytes=sum(sizes), findings=findings,
        set_aside=[folder.name for folder in damaged], left_overs=left_overs, torn_lines=torn, newest=newest,
        lost_steps=0 if newest is None else max(0, latest - newest),
        held_bytes=reserve.held(path / "checkpoints"),
    )  # fmt: skip
