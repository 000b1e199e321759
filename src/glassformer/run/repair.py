"""Mending a run: what is damaged is made again to the bit as its manifest describes it, or set aside.

    run.repair(Path("backup/demo-1"))        or: glassformer runs repair runs/demo-1 --from backup/demo-1

A manifest knows the SHA-256 of each file, so it does not matter where a file comes from, if only the digest is right:

    a checkpoint, a bundle    the undamaged files of the folder itself, and of a replica: another copy of the run
    the finished model        these; the run's own tokenizer; its weights from the checkpoint of the last step
    recipe and manifest       a replica that agrees in the other of the two, or in the first line of the log
    a line of the log         the same line of a replica that has the same line before it; else it is taken out

Nothing is written over: what was damaged stays beside as NAME-bad-N. A checkpoint that cannot be mended is set aside
if another is whole, and the answer says from which step the run goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError, RunError
from glassformer.files import durable, publish, replacing, sync_folder, write_bytes
from glassformer.run import checkpoints
from glassformer.run.events import Events
from glassformer.run.folder import EVENTS, MANIFEST, RECIPE, Run
from glassformer.run.scrub import (
    MODEL_ABOUT,
    bad_lines,
    check_is_run,
    check_texts,
    is_event,
    latest_step,
    parse,
    remove_left_overs,
    sealed_folders,
)
from glassformer.run.sealed import FORMAT, About, Finding, inspect, read_manifest
from glassformer.run.sealed import MANIFEST as SEAL
from glassformer.run.tensors import find_damage, write_tensors

WEIGHTS = "model.safetensors"


@dataclass(slots=True)
class Repaired:
    """What was mended in a run, and what could not be."""

    run: str
    mended: list[dict[str, str]] = field(default_factory=list)
    """`what`, `how`, and where the damaged one is `kept`."""
    set_aside: list[str] = field(default_factory=list)
    """Checkpoints that could not be mended, by the names they had."""
    left_overs: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """What is still damaged."""
    newest: int | None = None
    """The step of the newest whole checkpoint, from which the run goes on."""
    lost_steps: int = 0
    """Steps between it and the newest there was."""

    @property
    def whole(self) -> bool:
        """Nothing is damaged any more; steps may have been lost all the same."""
        return not self.findings


def repair(path: Path, source: Path | None = None) -> Repaired:
    """Mend what can be mended in the run folder `path`, also from a replica `source` of it.

    RunError when either is no run, or `source` another one; RunLocked while a process trains in `path`.
    """
    check_is_run(path)
    if source is not None:
        check_is_run(source)
        _check_replica(path, source)
    run, done = Run(path, {}, {}), Repaired(str(path))
    with run.lock():
        run.events.close()  # the lock may have written a line, and the file is replaced now
        done.left_overs = remove_left_overs(path, change=True)
        _mend_texts(path, source, done)
        _mend_log(path, source, done)
        folders = list(sealed_folders(path))
        left: dict[Path, list[Finding]] = {}
        for folder, about in folders + list(_set_aside_before(path, folders)):
            if about != MODEL_ABOUT:
                left[folder] = _mend_sealed(folder, about, _places(folder, path, source), {}, done)
        _choose_newest(path, left, done)
        if (path / "model").is_dir():
            left[path / "model"] = _mend_model(path, source, done)
        done.findings += [finding for findings in left.values() for finding in findings]
    return done


def _check_replica(path: Path, source: Path) -> None:
    """A copy of the run says what the run says, wherever both can be read."""
    agree = {name: _agree(path / name, source / name) for name in (RECIPE, MANIFEST, EVENTS)}
    if False in agree.values() or True not in agree.values():
        differs = [name for name, same in agree.items() if same is False]
        raise RunError(
            f"{source} is not a copy of {path}: "
            + (f"{' and '.join(differs)} differ." if differs else "nothing in both can be compared."),
            expected="Expected another copy of the same run folder.",
        )


def _agree(one: Path, other: Path) -> bool | None:
    """Whether two files, or the first lines of two logs, are the same; None where one of them cannot be read."""
    try:
        with one.open("rb") as ours, other.open("rb") as theirs:
            if one.name == EVENTS:
                lines = ours.readline(), theirs.readline()
                return lines[0] == lines[1] if all(map(is_event, lines)) else None
            texts = [parse(one.name, stream.read()) for stream in (ours, theirs)]
            return texts[0] == texts[1]
    except (OSError, ValueError):
        return None


def _mend_texts(path: Path, source: Path | None, done: Repaired) -> None:
    for finding in check_texts(path):
        content = None
        if source is not None:
            with suppress(OSError, ValueError):
                content = (source / finding.file).read_bytes()
                parse(finding.file, content)
        if content is None:
            done.findings.append(finding)
            continue
        place = path / finding.file
        kept = checkpoints.move_aside(place).name if place.exists() else ""
        write_bytes(place, content)
        done.mended.append({"what": finding.file, "how": "from the replica", "kept": kept})


def _mend_log(path: Path, source: Path | None, done: Repaired) -> None:
    log = path / EVENTS
    wrong = {number for numbers in bad_lines(log) for number in numbers}
    if not wrong:
        return
    kept = _copy_aside(log)
    found = 0
    with replacing(log) as new:
        for number, (before, line, theirs) in enumerate(_with_replica(log, source), 1):
            if number not in wrong:
                new.write(line)
            elif theirs is not None and theirs[0] == before and is_event(theirs[1]):
                new.write(theirs[1])
                found += 1
    taken = len(wrong) - found
    how = [f"{found} lines from the replica"] * bool(found) + [f"{taken} lines taken out"] * bool(taken)
    done.mended.append({"what": EVENTS, "how": ", ".join(how), "kept": kept})


def _with_replica(
    log: Path, source: Path | None
) -> Iterator[tuple[bytes, bytes, tuple[bytes, bytes] | None]]:
    """(the line before, the line, the same two of the replica's log or None) for each line."""
    theirs = source / EVENTS if source is not None else None
    before = before_there = b""
    with log.open("rb") as ours:
        other = theirs.open("rb") if theirs is not None and theirs.exists() else None
        for line, there in zip_longest(ours, other or ()):
            if line is None:
                break
            yield before, line, None if there is None else (before_there, there)
            before, before_there = line, there or b""
        if other is not None:
            other.close()


def _set_aside_before(path: Path, there: list[tuple[Path, About]]) -> Iterator[tuple[Path, About]]:
    """Checkpoints that are set aside already, but only of steps that the run has not computed again since."""
    present = {folder.name for folder, _ in there}
    reached = max((row["step"] for row in Events(path / EVENTS).curve("step")), default=0)
    whole = max((int(about["step"]) for folder, about in there if "step" in about), default=0)
    for listed in checkpoints.list_checkpoints(path / "checkpoints"):
        name = f"step-{listed.step:08d}"
        if listed.kind == "bad" and name not in present and whole < listed.step <= reached:
            present.add(name)
            yield path / "checkpoints" / name, {"kind": "checkpoint", "step": listed.step}


def _places(folder: Path, path: Path, source: Path | None) -> dict[Path, str]:
    """Where files of a sealed folder may be: itself, what was set aside of it, the same in the replica."""
    found = {folder: "its undamaged files"}
    found |= dict.fromkeys(sorted(folder.parent.glob(f"{folder.name}-bad-*")), "what was set aside")
    if source is not None:
        there = source / folder.relative_to(path)
        found |= dict.fromkeys([there, *sorted(there.parent.glob(f"{there.name}-bad-*"))], "the replica")
    return {place: name for place, name in found.items() if place.is_dir()}


def _mend_sealed(
    folder: Path, about: About, places: dict[Path, str], others: dict[Path, str], done: Repaired
) -> list[Finding]:
    """Make the folder again as its manifest says, where all of its files are somewhere; what is still wrong."""
    findings = inspect(folder, about) if folder.is_dir() else []
    if folder.is_dir() and not findings:
        return []
    files = _matching(about, places, others)
    if files is None:
        return findings
    prepared = _prepare(folder, files)
    if still := inspect(prepared, about):  # a disk that does not give back what was written
        shutil.rmtree(prepared)
        return findings or still
    kept = checkpoints.move_aside(folder).name if folder.is_dir() else ""
    publish(prepared, folder)
    names = {others.get(file) or places[file.parent] for file in files.values()}
    how = " and ".join(sorted(names - {places.get(folder)})) or "its undamaged files"
    done.mended.append({"what": folder.name, "how": f"from {how}", "kept": kept})
    return []


def _matching(about: About, places: dict[Path, str], others: dict[Path, str]) -> dict[str, Path] | None:
    """File -> where it is as one of the manifests found says; None when no manifest can be satisfied."""
    for described in places:
        manifest = read_manifest(described)
        if manifest is None or manifest["format"] != FORMAT or manifest["about"] != about:
            continue
        found: dict[str, Path] = {SEAL: described / SEAL}
        for name, record in manifest["files"].items():
            candidates = [
                *(place / name for place in places),
                *(file for file in others if file.name == name),
            ]
            whole = next((file for file in candidates if _is(file, record)), None)
            if whole is None:
                break
            found[name] = whole
        else:
            return found
    return None


def _is(file: Path, record: dict[str, Any]) -> bool:
    with suppress(OSError):
        return not find_damage(file, record, {})
    return False


def _prepare(folder: Path, files: dict[str, Path]) -> Path:
    """A copy of these files beside, on the disk."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, place in files.items():
            with place.open("rb") as whole, durable(partial / name) as copy:
                shutil.copyfileobj(whole, copy, 2**20)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"{folder.name} was not mended: {error.strerror}.",
            do="It is as it was. Free some space, or mend the disk.",
        ) from error
    return partial


def _choose_newest(path: Path, left: dict[Path, list[Finding]], done: Repaired) -> None:
    """Which checkpoint the run goes on from. What is damaged beside a whole one is set aside."""
    folder, latest = path / "checkpoints", latest_step(path)
    there = [listed for listed in checkpoints.list_checkpoints(folder) if listed.kind == "checkpoint"]
    whole = [listed.step for listed in there if not left.get(folder / listed.name)]
    if not whole:
        return
    done.newest, done.lost_steps = max(whole), latest - max(whole)
    for listed in there:
        findings = left.get(folder / listed.name, [])
        if findings and all(finding.damaged for finding in findings):
            checkpoints.move_aside(folder / listed.name)
            done.set_aside.append(listed.name)
            del left[folder / listed.name]


def _mend_model(path: Path, source: Path | None, done: Repaired) -> list[Finding]:
    folder = path / "model"
    places = _places(folder, path, source)
    others = {file: "the run's own files" for file in path.iterdir() if file.is_file()}
    made = path / f".rebuilt.partial-{os.getpid()}"
    try:
        if inspect(folder, MODEL_ABOUT) and _matching(MODEL_ABOUT, places, others) is None:
            others |= _weights_of_the_last_step(path, done.newest, made)
        return _mend_sealed(folder, MODEL_ABOUT, places, others, done)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _weights_of_the_last_step(path: Path, newest: int | None, made: Path) -> dict[Path, str]:
    """The weights file that the finished model of this checkpoint, or of the mean of several, has; in `made`."""
    begun = Events(path / EVENTS).last("start") or {}
    if newest is None or newest != begun.get("steps"):
        return {}
    try:
        average = parse(RECIPE, (path / RECIPE).read_bytes()).get("train", {}).get("average", 1)
        folder = path / "checkpoints"
        if average > 1:
            tensors, _ = checkpoints.mean(folder, average)
        else:
            tensors = checkpoints.load(folder / f"step-{newest:08d}", only={"model"}).tensors["model"]
        made.mkdir()
        write_tensors(made / WEIGHTS, tensors, {"kind": "model", "file": "model"})
    except (OSError, ValueError, KeyError, CheckpointError):
        return {}
    return {made / WEIGHTS: f"the checkpoint of step {newest}"}


def _copy_aside(file: Path) -> str:
    number = 1
    while (target := file.with_name(f"{file.name}-bad-{number}")).exists():
        number += 1
    with file.open("rb") as whole, durable(target) as copy:
        shutil.copyfileobj(whole, copy, 2**20)
    sync_folder(file.parent)
    return target.name
