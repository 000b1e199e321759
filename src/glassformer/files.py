"""Files that are either the old one or the new one, never half of each.

A write that must survive a crash has four parts, and their order is the point (Pillai et al. 2014, "All file
systems are not created equal"):

    write beside -> flush and fsync the file -> rename over the old name -> fsync the folder

The rename is what readers see, and it is atomic; the two fsyncs make sure that after a power cut the new name
never points at bytes that did not reach the disk, and that the rename itself did.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from glassformer.errors import GlassformerError


def write_bytes(path: Path, data: bytes) -> None:
    """`data` as the whole content of `path`, atomically and on the disk when this returns.

    What has this content already is left alone, and so needs no room on a full disk.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A file open for writing bytes that becomes `path` on a clean exit, and never was otherwise."""
    if not path.parent.is_dir():
        raise GlassformerError(
            f"There is no folder {path.parent}, where {path.name} is to be written.",
            do="Make the folder, or name another.",
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with durable(beside) as stream:
            yield stream
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def durable(path: Path) -> Iterator[Any]:
    """A new file open for writing bytes; on a clean exit they have reached the disk."""
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Names made, renamed or removed in `path` have reached the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex: what `sha256sum` prints."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(prepared: Path, final: Path) -> None:
    """The folder `prepared`, whose files are already durable, becomes `final` in one step.

    An older `final` is swapped out in the same instant and then removed, so at any moment one whole folder
    has the name. Where the system cannot swap, the old folder waits as `.NAME.old-PID` (see `restore`).
    """
    sync_folder(prepared)
    if not final.exists():
        prepared.rename(final)
        sync_folder(final.parent)
    elif _exchange(prepared, final):
        sync_folder(final.parent)
        shutil.rmtree(prepared)
    else:
        old = final.with_name(f".{final.name}.old-{os.getpid()}")
        final.rename(old)
        prepared.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(old)


def restore(folder: Path) -> None:
    """Finish what a crash inside `publish` left: an old one without a successor gets its name back."""
    for old in folder.glob(".*.old-*"):
        final = folder / old.name[1:].rpartition(".old-")[0]
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)


def remove(folder: Path) -> None:
    """Remove a folder so that a crash half-way never leaves a part of it under its own name."""
    doomed = folder.with_name(f".{folder.name}.removed-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cache_folder() -> Path:
    """Where things that can be made again are kept: `$GLASSFORMER_HOME/cache`, or the user's cache folder."""
    return _own_folder("cache", platformdirs.user_cache_path("glassformer"))


def data_folder() -> Path:
    """Where things worth keeping are kept: `$GLASSFORMER_HOME/data`, or the user's data folder."""
    return _own_folder("data", platformdirs.user_data_path("glassformer"))


def _own_folder(kind: str, usual: Path) -> Path:
    """The named folder; without a name the usual one or, if no home can be written, a temporary one."""
    named = os.environ.get("GLASSFORMER_HOME")
    candidates = [Path(named).expanduser().absolute() / kind] if named else [usual]
    if not named:
        with contextlib.suppress(FileNotFoundError):  # no temporary space either
            candidates.append(Path(tempfile.gettempdir()) / f"glassformer-{os.getuid()}" / kind)
    for candidate in candidates:
        # A user without a home leaves "~" as it is, which is not a place.
        if candidate.is_absolute() and _usable(candidate):
            return candidate
    raise GlassformerError(
        f"There is no folder to keep the {kind} in: tried "
        + " and ".join(str(path) for path in candidates)
        + ".",
        do="Set GLASSFORMER_HOME to a folder that you may write to.",
    )


def _usable(folder: Path) -> bool:
    """Made if need be, ours, and a file can really be written: permission bits alone do not tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux 3.15 `renameat2`); False where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
