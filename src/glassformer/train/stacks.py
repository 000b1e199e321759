"""Where every thread of a rank is just now, also of one that hangs.

Python's faulthandler writes the stack of each thread from a signal handler in C. It needs neither the interpreter nor
its lock, so it also tells where a rank is that never comes back from a call, or that holds the lock for ever; one that
is stopped tells when it is continued. The signal is SIGQUIT, as in other runtimes, and ends nothing:

    kill -QUIT PID     PID of a rank, or of the launcher of `--ranks` for all of them

What is written goes to a file of the process, beside its launcher's error file or among temporary files. When a rank
hangs, the others copy it into the run: RUN/faults/stacks-ATTEMPT-rank-RANK.txt.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from glassformer.train import attempt

_WAIT = 2.0
"""Seconds that a rank has to write its stacks."""
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.M)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Place:
    """A process, for others to find: `machine` and `started` tell it from another with its number."""

    host: str
    machine: str
    pid: int
    started: str
    file: str

    def told(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def heard(cls, text: str | bytes) -> Place:
        return cls(**json.loads(text))

    def is_near(self) -> bool:
        """Whether it lives, on this machine."""
        return self.machine == _machine() and _started(self.pid) == self.started

    def ask(self) -> str:
        """Its stacks; empty where it is elsewhere or does not write them. A stopped process is continued."""
        if not self.is_near():
            return ""
        file, before = Path(self.file), _size(Path(self.file))
        with contextlib.suppress(OSError):
            for number in (signal.SIGQUIT, signal.SIGCONT):
                os.kill(self.pid, number)
            end = time.monotonic() + _WAIT
            while _size(file) == before and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.1)  # for the last line
            return file.read_text(encoding="utf-8", errors="replace")[before:]
        return ""

    def kill(self) -> None:
        if self.is_near():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


class Stacks:
    """Those of this process, as long as it is open."""

    def __init__(self) -> None:
        folder = attempt.place() or Path(tempfile.gettempdir())
        self._path = folder / f"glassformer-stacks-{os.getpid()}.txt"
        self._file = self._path.open("w+", encoding="utf-8")
        faulthandler.register(signal.SIGQUIT, file=self._file, all_threads=True, chain=False)
        self.place = Place(
            socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()), str(self._path)
        )

    def now(self) -> str:
        """The stacks of all threads."""
        before = _size(self._path)
        faulthandler.dump_traceback(self._file, all_threads=True)
        return self._path.read_text(encoding="utf-8", errors="replace")[before:]

    def close(self) -> None:
        faulthandler.unregister(signal.SIGQUIT)
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def keep(text: str, rank: int, run: Path | None) -> None:
    """Into the run's folder where it is on this machine, else to stderr."""
    name = f"stacks-{attempt.number()}-rank-{rank}.txt"
    try:
        if run is None or not (run / "recipe.toml").exists():
            raise FileNotFoundError
        (run / "faults").mkdir(exist_ok=True)
        (run / "faults" / name).write_text(text, encoding="utf-8")
    except OSError:
        print(f"{name}:\n{text}", file=sys.stderr, flush=True)


def innermost(text: str) -> str:
    """Where the main thread is, in a few words; the last thread that faulthandler lists."""
    frames = _FRAME.findall(text.rpartition("hread 0x")[2])
    if not frames:
        return ""
    ours = next((frame for frame in frames if f"{os.sep}glassformer{os.sep}" in frame[0]), None)
    told = [frames[0]] if ours in (None, frames[0]) else [frames[0], ours]
    return ", under ".join(f"{name} ({Path(file).name}:{line})" for file, line, name in told if file)


def _machine() -> str:
    """This machine and its table of processes: two containers may bear one name."""
    with contextlib.suppress(OSError):
        return f"{_BOOT.read_text(encoding='ascii').strip()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: int) -> str:
    """When a process began, in the system's own ticks; empty where it is not there or that is not told."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()[19]
        )
    return ""


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0
