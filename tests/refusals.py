"""What the kernel can be made to refuse to a process, for good: by its permissions, and by a filter of its calls."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

_WRITE = {"x86_64": 1, "aarch64": 64}
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OVERRIDE_MODES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def obey_modes() -> None:
    """From now on the modes of files count for this process, also when it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (
        ctypes.c_uint32 * 6
    )()  # effective, permitted, inheritable, and the same again for later capabilities
    _ask(libc.capget(header, sets))
    for number in range(3):
        sets[number] &= ~_OVERRIDE_MODES
    _ask(libc.capset(header, sets))


def out_of_quota(most: int = 8192) -> None:
    """From now on a write of more than `most` bytes is answered with EDQUOT."""

    class Instruction(ctypes.Structure):
        _fields_ = [
            ("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32)
        ]  # fmt: skip

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(Instruction))]

    load, equal, greater, answer = 0x20, 0x15, 0x25, 0x06
    rows = [
        (load, 0, 0, 0),  # the number of the call
        (equal, 0, 2, _WRITE[platform.machine()]),
        (load, 0, 0, 32),  # its third argument, the count
        (greater, 1, 0, most),
        (answer, 0, 0, _ALLOW),
        (answer, 0, 0, _ERRNO | errno.EDQUOT),
    ]
    program = Program(len(rows), (Instruction * len(rows))(*rows))
    libc = ctypes.CDLL(None, use_errno=True)
    _ask(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _ask(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0))


def _ask(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
