"""Checkpoints: a training run at one step, whole or not there.

    checkpoints/
      step-00000400/                    whole: it was renamed into place after every byte had reached the disk
        model.safetensors  optimizer.safetensors  state.json  manifest.json
      step-00000500/
      step-00000450-bad-1/              set aside by a load that found damage; kept for you to look at
      .step-00000600.partial-4711/      a save that was killed; ignored, and removed by the next save
      .reserved                         disk space for the next saves (`reserve.py`); removed when the run is done

- `save` publishes atomically and thins out old ones only after the new one has been read back and verified.
- `load_newest` verifies before it reads, and falls back to the newest whole one, saying what it found.
- The order is that of the step numbers; clocks and modification times play no part.
- Everything in a checkpoint is found by its name inside the folder, so a run may be moved, copied or linked.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassformer.errors import CheckpointError, RunError
from glassformer.files import remove, restore, sync_folder
from glassformer.run import reserve
from glassformer.run.sealed import About, Finding, inspect, read_manifest, write_sealed
from glassformer.run.tensors import read_tensors

if TYPE_CHECKING:
    import torch

STATE = "state.json"

_WHOLE = re.compile(r"step-(\d+)")
_BAD = re.compile(r"step-(\d+)-bad-\d+")
_PARTIAL = re.compile(r"\.step-(\d+)\.(?:partial|removed)-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was loaded, and what had to be passed over to get there."""

    step: int
    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    """File stem (`model`, `optimizer`) -> tensor name -> tensor, on the CPU."""
    state: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    """Damage in newer checkpoints, now set aside."""
    lost_steps: int = 0
    """Steps between the newest checkpoint there was and this one."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One folder among the checkpoints."""

    step: int
    name: str
    kind: Literal["checkpoint", "bad", "partial"]
    num_bytes: int
    digests: dict[str, str]
    """File -> SHA-256 according to the manifest; empty for what has none."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    keep_every: int | None = None,
) -> Path:
    """Save `step` and thin out: the `keep` newest stay, and every step that is a multiple of `keep_every`.

    Space that is held (`reserve.py`) is given up for it. Where there is no room even so, what would be removed
    afterwards is removed before, all but the newest whole one.
    """
    path = folder / f"step-{step:08d}"
    others = {STATE: json.dumps(state).encode()}
    about: About = {"kind": "checkpoint", "step": step}
    try:
        clean(folder)
        with reserve.given_up(folder, reserve.bytes_to_save(tensors, others)):
            try:
                write_sealed(path, tensors, others, about)
            except RunError as error:
                if not (_is_full(error) and _make_room(folder, step, keep, keep_every)):
                    raise
                write_sealed(path, tensors, others, about)
            _thin_out(folder, step, keep, keep_every)
    except OSError as error:  # the folder itself cannot be read or changed
        raise RunError(
            f"{path.name} was not saved: {error.strerror or error}: {error.filename}.",
            do="Mend the disk; the next save tries again.",
        ) from error
    return path


def load_newest(
    folder: Path, *, only: Collection[str] | None = None, set_aside: bool = True
) -> Checkpoint | None:
    """The newest whole checkpoint, verified; None when nothing was ever saved.

    Damaged newer ones are renamed to `step-...-bad-N` (unless `set_aside` is False, for readers that do not
    own the run). When there are checkpoints but no whole one, nothing is renamed and CheckpointError is
    raised: training must not begin again unasked. `only` limits what is read, not what is verified.
    """
    if set_aside:
        clean(folder)
    findings: list[Finding] = []
    passed_over: list[Path] = []
    steps = _steps(folder)
    for step, path in reversed(steps):
        found = inspect(path, {"kind": "checkpoint", "step": step})
        if not found:
            if set_aside:
                for bad in passed_over:
                    move_aside(bad)
            return _read(path, step, only, findings, steps[-1][0] - step)
        _refuse_other_formats(found)
        findings += found
        passed_over.append(path)
    if passed_over or any(_BAD.fullmatch(path.name) for path in _entries(folder)):
        raise CheckpointError(
            "No checkpoint of this run is whole:\n" + "\n".join(f"  - {found}" for found in findings),
            do="\nPut back a copy of one, or begin anew with --fresh (what is there is kept beside).",
        )
    return None


def load(path: Path, *, only: Collection[str] | None = None) -> Checkpoint:
    """One checkpoint by its folder, verified."""
    named = _WHOLE.match(path.name)
    if not path.is_dir() or not named:
        raise CheckpointError(
            f"{path} is not a checkpoint.", expected="Expected a folder such as step-00000500."
        )
    found = inspect(path, {"kind": "checkpoint", "step": int(named[1])})
    if found:
        raise CheckpointError(
            f"{path.name} is not whole:\n" + "\n".join(f"  - {finding}" for finding in found)
        )
    return _read(path, int(named[1]), only, [], 0)


def mean(folder: Path, count: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    """(the mean of the weights of the `count` newest checkpoints, their steps): Vaswani et al. 2017, section 6.1.

    One is held at a time. A damaged one raises: the mean would be of others than were asked for.
    """
    chosen = _steps(folder)[-count:]
    total: dict[str, torch.Tensor] = {}
    for _, path in chosen:
        for name, tensor in load(path, only={"model"}).tensors["model"].items():
            total[name] = total[name].add_(tensor) if name in total else tensor.double()
    return {name: (tensor / len(chosen)).float() for name, tensor in total.items()}, [s for s, _ in chosen]


def verify(folder: Path) -> list[Finding]:
    """Everything wrong with the checkpoints in `folder`, having read every byte; changes nothing."""
    return [
        finding
        for step, path in _steps(folder)
        for finding in inspect(path, {"kind": "checkpoint", "step": step})
    ]


def list_checkpoints(folder: Path) -> list[Listed]:
    """Every checkpoint, set-aside one and left-over of a killed save, by step; nothing is verified."""
    kinds: list[tuple[re.Pattern[str], Literal["checkpoint", "bad", "partial"]]]
    kinds = [(_WHOLE, "checkpoint"), (_BAD, "bad"), (_PARTIAL, "partial")]
    listed = []
    for path in _entries(folder):
        for pattern, kind in kinds:
            if named := pattern.fullmatch(path.name):
                files = (read_manifest(path) or {}).get("files", {})
                size = sum(file.stat().st_size for file in path.iterdir())
                digests = {name: record["sha256"] for name, record in files.items()}
                listed.append(Listed(int(named[1]), path.name, kind, size, digests))
    return sorted(listed, key=lambda entry: (entry.step, entry.name))


def clean(folder: Path) -> list[str]:
    """Remove what killed saves left, unless the process that writes it still lives; returns the names."""
    restore(folder)
    removed = []
    for path in _entries(folder):
        named = _PARTIAL.fullmatch(path.name)
        if named and (int(named[2]) == os.getpid() or not is_alive(int(named[2]))):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def move_aside(path: Path) -> Path:
    """Rename what is damaged to `NAME-bad-N`, where it is kept to be looked at; returns the new path."""
    number = 1
    while (target := path.with_name(f"{path.name}-bad-{number}")).exists():
        number += 1
    path.rename(target)
    sync_folder(path.parent)
    return target


def check_fits(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose configuration differs, with the differences one a line."""
    old, new = _flat(saved), _flat(wanted)
    differences = [
        f"  - {name}: checkpoint {_show(old, name)}, now {_show(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differences:
        raise CheckpointError(
            "The checkpoints of this run were made with another configuration:\n" + "\n".join(differences),
            do="\nGive the same configuration, choose another --run, or start from the weights: --init-from.",
        )


def matching_tensors(
    saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The saved tensors that fit by name and shape, and one row for every name on either side.

    A row says what became of it: `loaded`, `other shape`, `only in checkpoint`, `only in model`.
    """
    matching: dict[str, torch.Tensor] = {}
    report: list[dict[str, Any]] = []
    for name in sorted(saved.keys() | wanted.keys()):
        shapes = [list(side[name].shape) if name in side else None for side in (saved, wanted)]
        if None in shapes:
            outcome = "only in model" if shapes[0] is None else "only in checkpoint"
        elif shapes[0] == shapes[1]:
            outcome, matching[name] = "loaded", saved[name]
        else:
            outcome = "other shape"
        report.append({"tensor": name, "outcome": outcome, "checkpoint": shapes[0], "model": shapes[1]})
    return matching, report


def _read(
    path: Path, step: int, only: Collection[str] | None, findings: list[Finding], lost_steps: int
) -> Checkpoint:
    stems = [file.stem for file in sorted(path.glob("*.safetensors")) if only is None or file.stem in only]
    tensors = {stem: read_tensors(path / f"{stem}.safetensors") for stem in stems}
    return Checkpoint(step, path, tensors, json.loads((path / STATE).read_bytes()), findings, lost_steps)


def _thin_out(folder: Path, saved: int, keep: int, keep_every: int | None) -> None:
    """Remove what need not be kept, but only once the one just saved has been read back and is whole."""
    spare = _spare(folder, saved, keep, keep_every)
    if not spare:
        return
    found = inspect(folder / f"step-{saved:08d}", {"kind": "checkpoint", "step": saved})
    if found:
        raise CheckpointError(
            "What was just saved does not read back as it was written:\n"
            + "\n".join(f"  - {item}" for item in found),
            do="\nNo older checkpoint was removed. Check the disk and the memory of this machine.",
        )
    for _, path in spare:
        with contextlib.suppress(OSError):  # what cannot be removed now, the next save tries again
            remove(path)


def _make_room(folder: Path, saving: int, keep: int, keep_every: int | None) -> bool:
    """Remove before a save what it would remove afterwards; never the newest one, nor any if that is not whole."""
    older = [(step, path) for step, path in _steps(folder) if step != saving]
    spare = [item for item in _spare(folder, saving, keep, keep_every) if item != older[-1]]
    if not spare or inspect(older[-1][1], {"kind": "checkpoint", "step": older[-1][0]}):
        return False
    for _, path in spare:
        remove(path)
    return True


def _spare(folder: Path, saved: int, keep: int, keep_every: int | None) -> list[tuple[int, Path]]:
    """What need not be kept beside `saved`, oldest first."""
    older = [(step, path) for step, path in _steps(folder) if step != saved]
    recent = older[max(0, len(older) - max(0, keep - 1)) :]
    return [item for item in older if item not in recent and not (keep_every and item[0] % keep_every == 0)]


def _is_full(error: RunError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in reserve.FULL


def _refuse_other_formats(found: list[Finding]) -> None:
    other = [finding for finding in found if not finding.damaged]
    if other:
        raise CheckpointError(str(other[0]) + ".", do="It was left as it is.")


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints by step number, oldest first."""
    named = [(_WHOLE.fullmatch(path.name), path) for path in _entries(folder)]
    return sorted((int(match[1]), path) for match, path in named if match)


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # alive, and somebody else's
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _show(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "nothing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
