"""A drill's processes, seen from the one that watches: begun by server.py, each start in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassformer.errors import RunError
from glassformer.run.folder import EVENTS
from glassformer.train.drill.disturbances import Disturbance
from glassformer.train.launch import cores

DEEDS, STDERR = "deeds.jsonl", "stderr"
_POLL = 0.02
_AGENT_PATIENCE = 3.0
"""Seconds that a launcher gets to end a rank that stands still, once the others have ended."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all starts of one run have in common."""

    arguments: Sequence[str]
    """Of the program, `train` first."""
    run: Path
    ranks: int
    silence: float
    """Seconds without a sign of life after which the processes are taken for stuck."""
    every: int = 1
    step_seconds: float = 0.0
    start_seconds: float = 1.0
    largest_bytes: int = 0
    """Of the largest file of a checkpoint."""
    compiled: bool = False


@dataclass(slots=True)
class Start:
    """One time that the command was given, and what came of it."""

    folder: Path
    began: float
    exit: int = 0
    """Negative: the signal that ended it."""
    ended: float = 0.0
    """When the last of its processes was gone."""
    deeds: list[dict[str, Any]] = field(default_factory=list)
    stuck: bool = False
    """Its processes had to be killed."""
    remarks: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """What it wrote on stderr."""
        with contextlib.suppress(OSError):
            return (self.folder / STDERR).read_text(encoding="utf-8", errors="replace")
        return ""


class Processes:
    """Begins the command again and again. Use it as a context: at its end none of its processes is left."""

    def __init__(self, ranks: int, folder: Path) -> None:
        self._folder, self._count = folder, 0
        left_out = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        if ranks > 1:
            environment |= {"LOCAL_WORLD_SIZE": str(ranks)}
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
            environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        self._temporary = folder.parent / "temporary"
        self._temporary.mkdir()
        environment["TMPDIR"] = str(self._temporary)  # a launcher that is killed removes nothing
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the server
        self._server = subprocess.Popen(
            [sys.executable, "-m", "glassformer.train.drill.server"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin and self._server.stdout
        with contextlib.suppress(BrokenPipeError):
            self._server.stdin.close()  # it kills what is left, and ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(10)
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()
        self._said.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def wait_until_ready(self) -> None:
        self._answer()

    def give(
        self, setting: Setting, disturbances: Mapping[int, Disturbance], *, done: int = 0
    ) -> Iterator[dict[str, Any] | Start]:
        """Give the command once, armed with `disturbances` by their numbers, at a run of which `done` steps are done.

        Yields every deed as it is seen and, when all its processes are gone, the Start.
        """
        self._count += 1
        folder = self._folder / f"start-{self._count:03d}"
        folder.mkdir(parents=True)
        plan = {
            "arguments": [*setting.arguments], "cwd": str(Path.cwd()), "ranks": setting.ranks, "folder": str(folder),
            "events": str(setting.run / EVENTS), "done": done, "every": setting.every,
            "step_seconds": setting.step_seconds,
            "start_seconds": setting.start_seconds, "largest_bytes": setting.largest_bytes,
            "compiled": setting.compiled,
            "disturbances": [one.as_json(number) for number, one in disturbances.items()],
        }  # fmt: skip
        start = Start(folder, time.time())
        pid = self._ask({"plan": plan})["pid"]
        watch, code = _Watch(setting, start), None
        while True:
            found = self._ask({"poll": [pid]})
            code = found["exits"].get(str(pid), code)
            yield from watch.new_deeds()
            if code is not None and pid not in found["alive"]:
                break
            watch.attend(disturbances, ended=code is not None)
            if code is not None and watch.go_on_alone():
                start.remarks.append("the ranks went on without it, and were killed")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            if watch.is_stuck():
                start.stuck = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(_POLL)
        yield from watch.new_deeds()
        start.exit, start.ended = code, time.time()
        yield start

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._server.stdin
        with contextlib.suppress(BrokenPipeError):
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout
        line = self._server.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            raise RunError(
                "The process that starts the drill's processes ended.", expected=said[-1] if said else ""
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Watch:
    """Over one start: what it says, whether it lives, and what has to be done about a rank that stands still."""

    def __init__(self, setting: Setting, start: Start) -> None:
        self._setting, self._start = setting, start
        self._size = -1
        self._heard = time.monotonic()
        self._read = 0
        self._others_gone: float | None = None
        self._alone_at: int | None = None
        self._attended: set[int] = set()

    def new_deeds(self) -> list[dict[str, Any]]:
        lines = []
        with contextlib.suppress(OSError):
            lines = (self._start.folder / DEEDS).read_text(encoding="utf-8").splitlines(keepends=True)
        new = [json.loads(line) for line in lines[self._read :] if line.endswith("\n")]
        self._read += len(new)
        self._start.deeds += new
        return new

    def is_stuck(self) -> bool:
        size = sum(_size(path) for path in (self._setting.run / EVENTS, self._start.folder / STDERR))
        if size + self._read != self._size:
            self._size, self._heard = size + self._read, time.monotonic()
        return time.monotonic() - self._heard > self._setting.silence

    def attend(self, disturbances: Mapping[int, Disturbance], *, ended: bool) -> None:
        """A rank that stands still: alone, it is woken after its pause; of several, killed when none waits for it."""
        for deed in self._start.deeds:
            one = disturbances[deed["number"]]
            if one.kind != "stop" or deed["number"] in self._attended:
                continue
            if self._setting.ranks == 1:
                if time.time() - deed["time"] < pause(one):
                    continue
                self._end(deed, signal.SIGCONT)
            elif ended or self._others_are_gone(deed["pid"]):
                self._others_gone = self._others_gone or time.monotonic()
                if time.monotonic() - self._others_gone > _AGENT_PATIENCE:
                    self._start.remarks.append("the stopped rank had to be killed")
                    self._end(deed, signal.SIGKILL)

    def go_on_alone(self) -> bool:
        """Whether ranks whose launcher is gone have done more than a few steps since: quick ones would come to the end
        of the run before they notice. True once."""
        step = _last_step(self._setting.run / EVENTS)
        if self._alone_at is None:
            self._alone_at = step
        if step - self._alone_at <= 2 * self._setting.every:
            return False
        self._alone_at = 2**62
        return True

    def _end(self, deed: Mapping[str, Any], number: signal.Signals) -> None:
        self._attended.add(deed["number"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(deed["pid"], number)

    def _others_are_gone(self, pid: int) -> bool:
        pids = [int(path.read_text("ascii") or 0) for path in self._start.folder.glob("pid-*")]
        return not any(_works(other) for other in pids if other != pid)


def pause(one: Disturbance) -> float:
    """Seconds that a rank stands still which is alone."""
    return 0.5 + one.draws[1]


def _works(pid: int) -> bool:
    """Whether a process is there, and not only waits to be counted."""
    try:
        state = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()[0]
        )
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False
    return state not in "ZX"


def _last_step(path: Path) -> int:
    """That of the last step in a run's events; 0 where there is none near their end."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, _size(path) - 4096))
        found = re.findall(rb'"event": "step", "time": "[^"]*", "step": (\d+)', stream.read())
        return int(found[-1]) if found else 0
    return 0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
