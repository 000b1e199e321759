"""File systems of a test's own, so small that they fill up. Mounting takes root; without it such a test is skipped."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, kind: str = "tmpfs", size: str = "8m") -> Iterator[Path]:
    """A file system of its own at `place` while the block lasts."""
    place.mkdir(parents=True, exist_ok=True)
    options = [] if kind == "ramfs" else ["-o", f"size={size}"]
    done = subprocess.run(
        ["mount", "-t", kind, *options, "test", place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"this user may not mount a {kind}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


def fill(folder: Path) -> Path:
    """Somebody else's file, which takes every byte that is left."""
    ballast = folder / "somebody else's"
    with ballast.open("ab", buffering=0) as stream:
        for size in (2**16, 2**12, 1):
            with contextlib.suppress(OSError):
                while stream.write(bytes(size)):
                    pass
    return ballast
