"""Checkpoints: a training run at one step, whole or not there.

    checkpoints/
      step-00000400/                    whole: it was renamed into place after every byte had reached the disk
        model.safetensors  optimizer.safetensors  state.json  manifest.json
      step-00000500/
      step-00000450-bad-1/              set aside by a load that found damage; kept for you to look at
      .step-00000600.partial-4711/      a save that was killed; ignored, and removed by the next save
      .reserved                         disk space for the next saves (`reserve.py`); removed when the run is done

- `save` publishes atomically and thins out old ones only after the new one has been read back and verified.
- A run whose weights are divided over ranks has `model-rank-00000.safetensors`, ... in place of the two files
  (`run/together.py` saves them, on all ranks); whoever reads them alone gets the whole tensors.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassformer.errors import CheckpointError, RunError
from glassformer.files import remove, restore, sync_folder
from glassformer.run import reserve
from glassformer.run.sealed import About, Finding, inspect, read_manifest, write_sealed
from glassformer.run.tensors import read_parts, read_tensors

if TYPE_CHECKING:
    import torch

STATE = "state.json"

_WHOLE = re.compile(r"step-(\d+)")
_PART = re.compile(r"(.+)-rank-\d{5}")
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
class Found:
    """A whole checkpoint, verified and not yet read, and what had to be passed over to get there."""

    step: int
    path: Path
    findings: list[Finding]
    lost_steps: int


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
    try:
        clean(folder)
        with reserve.given_up(folder, reserve.bytes_to_save(tensors, others)):
            try:
                write_sealed(path, tensors, others, about(step))
            except RunError as error:
                if not (_is_full(error) and make_room(folder, step, keep, keep_every)):
                    raise
                write_sealed(path, tensors, others, about(step))
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
    found = find_newest(folder, _steps(folder), inspect, set_aside=set_aside)
    return None if found is None else _read(found.path, found.step, only, found.findings, found.lost_steps)


def find_newest(
    folder: Path,
    steps: Sequence[tuple[int, Path]],
    look: Callable[[Path, About], list[Finding]],
    *,
    set_aside: bool,
) -> Found | None:
    """The newest of `steps` (`saved_steps`) that `look` finds nothing wrong with; else as `load_newest`."""
    findings: list[Finding] = []
    passed_over: list[Path] = []
    for step, path in reversed(steps):
        found = look(path, about(step))
        if not found:
            for bad in passed_over if set_aside else ():
                move_aside(bad)
            return Found(step, path, findings, steps[-1][0] - step)
        _refuse_other_formats(found)
        findings += found
        passed_over.append(path)
    if passed_over or any(_BAD.fullmatch(path.name) for path in _entries(folder)):
        raise CheckpointError(
            "No checkpoint of this run is whole:\n" + "\n".join(f"  - {found}" for found in findings),
            do="\nPut back a copy of one, or begin anew with --fresh (what is there is kept beside).",
        )
    return None


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints by step number, oldest first, once what killed saves left is removed."""
    return _steps(cleaned(folder))


def is_divided(path: Path) -> bool:
    """Whether a checkpoint's tensors lie in parts, as the ranks of one run wrote them."""
    return any(_PART.fullmatch(file.stem) for file in path.glob("*.safetensors"))


def read_state(path: Path) -> dict[str, Any]:
    """What goes with a checkpoint's tensors."""
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    return state


def load(path: Path, *, only: Collection[str] | None = None) -> Checkpoint:
    """One checkpoint by its folder, verified."""
    named = _WHOLE.match(path.name)
    if not path.is_dir() or not named:
        raise CheckpointError(
            f"{path} is not a checkpoint.", expected="Expected a folder such as step-00000500."
        )
    found = inspect(path, about(int(named[1])))
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
    return [finding for step, path in _steps(folder) for finding in inspect(path, about(step))]


def list_checkpoints(folder: Path) -> list[Listed]:
    """Every checkpoint, set-aside one and left-over of a killed save, by step; nothing is verified."""
    kinds: list[tuple[re.Pattern[str], Literal["checkpoint", "bad", "partial"]]]
    kinds = [(_WHOLE, "checkpoint"), (_BAD, "bad"), (_PARTIAL, "partial")]
    listed = []
    for path in _entries(folder):
        for pattern, kind in kinds:
            if named := pattern.fullmatch(path.name):
                files = (read_manifest(path) or {}).get("files", {})
                size = 0
                with contextlib.suppress(FileNotFoundError):  # just published, or removed
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
    files: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.safetensors")):
        part = _PART.fullmatch(file.stem)
        files.setdefault(part[1] if part else file.stem, []).append(file)
    tensors = {
        stem: read_parts(found) if _PART.fullmatch(found[0].stem) else read_tensors(found[0])
        for stem, found in files.items()
        if only is None or stem in only
    }
    return Checkpoint(step, path, tensors, read_state(path), findings, lost_steps)


def _thin_out(folder: Path, saved: int, keep: int, keep_every: int | None) -> None:
    """Remove what need not be kept, but only once the one just saved has been read back and is whole."""
    if spare := spare_ones(folder, saved, keep, keep_every):
        remove_ones(spare, inspect(folder / f"step-{saved:08d}", about(saved)))


def spare_ones(folder: Path, saved: int, keep: int, keep_every: int | None = None) -> list[Path]:
    """The checkpoints that need not be kept beside the one just saved."""
    older = [(step, path) for step, path in _steps(folder) if step != saved]
    recent = older[max(0, len(older) - max(0, keep - 1)) :]
    return [
        path
        for step, path in older
        if (step, path) not in recent and not (keep_every and step % keep_every == 0)
    ]


def remove_ones(spare: Sequence[Path], found: Sequence[Finding]) -> None:
    """Remove them, unless something is wrong with the one just saved, as read back."""
    if found:
        raise CheckpointError(
            "What was just saved does not read back as it was written:\n"
            + "\n".join(f"  - {item}" for item in found),
            do="\nNo older checkpoint was removed. Check the disk and the memory of this machine.",
        )
    for path in spare:
        with contextlib.suppress(OSError):  # what cannot be removed now, the next save tries again
            remove(path)


def make_room(folder: Path, saving: int, keep: int, keep_every: int | None = None) -> bool:
    """Remove before a save what it would remove afterwards; never the newest one, nor any if that is not whole."""
    older = [(step, path) for step, path in _steps(folder) if step != saving]
    spare = [path for path in spare_ones(folder, saving, keep, keep_every) if path != older[-1][1]]
    if not spare or inspect(older[-1][1], about(older[-1][0])):
        return False
    for path in spare:
        remove(path)
    return True


def _is_full(error: RunError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in reserve.FULL


def about(step: int) -> About:
    """What the manifest says it belongs to."""
    return {"kind": "checkpoint", "step": step}


def cleaned(folder: Path) -> Path:
    """The folder as all ranks find it, once what killed saves left is removed."""
    clean(folder)
    return folder.absolute()


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
