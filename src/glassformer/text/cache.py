"""What is made of text once and found again by its content: whole, or made anew.

    read_or_make(cache, key, read=..., make=...)

What lies under the key is read. Where there is nothing, or what is there is damaged, it is made beside the place and
then renamed, so that no reader ever sees half of it, and of two processes that make the same the first one's stays.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from glassformer.errors import GlassformerError, TextError
from glassformer.units import show_bytes

ABANDONED = 24 * 3600
"""Seconds after which a folder that is half written has no writer any more."""

Made = TypeVar("Made")


def read_or_make(
    cache: Path,
    key: str,
    *,
    read: Callable[[Path], Made],
    make: Callable[[Path], None],
    progress: Callable[[str], None],
    num_bytes: int,
) -> Made:
    """`read(folder)` of the folder that `make` has filled, now or before; `num_bytes` of text go into it."""
    folder = cache / key[:32]
    if folder.is_dir():
        try:
            return read(folder)
        except GlassformerError as error:
            progress(f"the cached tokens are damaged and are made again: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}.partial-", dir=cache, ignore_cleanup_errors=True
        ) as partial:
            make(Path(partial))
            if not folder.is_dir():  # another process may have been first, with the same content
                Path(partial).rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise TextError(
                f"The tokens cannot be written to {cache}: {error.strerror or error}.",
                expected=f"A folder with room for about {show_bytes(2 * num_bytes)}.",
                do="Free some space, or set GLASSFORMER_HOME to another folder.",
            ) from None
    return read(folder)


def _sweep(cache: Path) -> None:
    """Remove what killed writers left, once it is too old to be a writer still at work."""
    for partial in cache.glob("*.partial-*"):
        if time.time() - partial.stat().st_mtime > ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)
