"""Disk space that a run holds, so that it can save whatever others write.

    checkpoints/.reserved     one block that says what it is, then `held` bytes of the disk that nothing is written to

    held = 2 checkpoints + the finished model + 1 MiB for the log        before the first step
    a save             gives up what it needs, writes, removes old ones, and takes again what it can get
    a line of the log  that finds no room gets 64 KiB
    the finished model has all of it

The blocks are real: `fallocate` asks the file system for them and writes nothing, so gigabytes take a moment. It is the
system's own call, not `posix_fallocate`, which writes into each block where a file system cannot allocate: on one that
compresses or copies on write this would hold nothing. There `hold` says why, and the space is only checked.

Between giving up and writing somebody else can be quicker. Then the save fails as on any full disk, a warning says so,
and training goes on. A killed run leaves the file, and the same command finds it; without a run it may be deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from glassformer.files import free_bytes

if TYPE_CHECKING:
    import torch

RESERVED = ".reserved"
FOR_THE_LOG = 2**20
ONE_LOG_SHARE = 2**16

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a file system says when there is no room for this user."""

_BLOCK = 4096
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EFBIG, errno.EINVAL, errno.ENODEV)


def hold(folder: Path, num_bytes: int) -> str | None:
    """Hold `num_bytes` in `folder`, or go on holding what is there; None, or why this file system cannot.

    OSError where there is not so much room; then what was held before still is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / RESERVED, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        about = {"what": "space held for this run's checkpoints", "bytes": num_bytes}
        os.pwrite(handle, json.dumps(about).encode().ljust(_BLOCK), 0)
        _resize(handle, _BLOCK + num_bytes)
    except OSError as error:
        if error.errno not in _CANNOT:
            if held(folder) == 0:
                release(folder)
            raise
        release(folder)
        return str(error.strerror)
    finally:
        os.close(handle)
    return None


def held(folder: Path) -> int:
    """Bytes held in `folder` now. A copy of the file may have its length and no blocks, which is nothing."""
    try:
        found = (folder / RESERVED).stat()
    except OSError:
        return 0
    return max(0, min(found.st_size, found.st_blocks * 512) - _BLOCK)


def give_up(folder: Path, num_bytes: int) -> None:
    """Let others, first of all this run, have `num_bytes` of what is held, or all of it."""
    left = max(0, held(folder) - num_bytes)
    with contextlib.suppress(
        OSError
    ):  # nothing is held, or a disk that nothing can be done to: the save will tell
        os.truncate(folder / RESERVED, _BLOCK + left)


def take_again(folder: Path) -> None:
    """Hold as much as in the beginning again, or as much of it as there is room for."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        handle = os.open(folder / RESERVED, os.O_RDWR)
        try:
            wanted = json.loads(os.pread(handle, _BLOCK, 0))["bytes"]
            now, free = held(folder), free_bytes(folder)
            for size in (
                wanted,
                now + free,
                now + free - free // 16,
            ):  # the file system needs some for itself
                if now < size <= wanted:
                    with contextlib.suppress(OSError):
                        _resize(handle, _BLOCK + size)
                        return
        finally:
            os.close(handle)


@contextlib.contextmanager
def given_up(folder: Path, num_bytes: int) -> Iterator[None]:
    """Within, `num_bytes` less are held; afterwards as much as in the beginning again, or as there is room for."""
    give_up(folder, num_bytes)
    try:
        yield
    finally:
        take_again(folder)


def release(folder: Path) -> None:
    """Hold nothing any more."""
    with contextlib.suppress(OSError):
        (folder / RESERVED).unlink()


def bytes_to_save(
    tensors: Mapping[str, Mapping[str, torch.Tensor]], others: Mapping[str, bytes] | None = None
) -> int:
    """What a sealed folder of these takes on the disk, rather a little more."""
    each = [tensor for named in tensors.values() for tensor in named.values()]
    content = sum(tensor.numel() * tensor.element_size() for tensor in each)
    content += sum(len(text) for text in (others or {}).values())
    return content + overhead(len(each), len(tensors) + len(others or {}))


def overhead(num_tensors: int, num_files: int) -> int:
    """Bytes of names, digests and half-filled blocks: 512 for each tensor, two blocks for each file and folder."""
    return 512 * num_tensors + 2 * _BLOCK * (num_files + 2)


def _resize(handle: int, size: int) -> None:
    """The file has this length and all its blocks; on failure it is as it was."""
    before = os.fstat(handle).st_size
    if before > size:
        os.ftruncate(handle, size)
    try:
        _allocate(handle, size)
    except OSError:
        os.ftruncate(handle, min(before, size))  # some of it may have been allocated
        raise


def _allocate(handle: int, size: int) -> None:
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        raise OSError(errno.ENOSYS, "this system has no fallocate") from None
    while fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:  # a signal came; its handler has run
            raise OSError(code, os.strerror(code))
