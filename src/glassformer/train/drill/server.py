"""Starts a drill's processes quickly: a process that has loaded torch, and forks one for every line it reads.

A start costs what it costs on this machine, but for loading Python and torch, which takes longer than a short run and
says nothing about it. What is loaded here has not computed anything, so neither OpenMP nor a GPU has begun.

    {"plan": {...}}      one rank: the program itself; several: torch's launcher, which forks the ranks
                         answers {"pid": ...}; the process leads a group of its own, in which its ranks are
    {"poll": [pid]}      {"exits": {pid: code}, "alive": [pid, ...]}: who has ended and how (a signal's code is
                         negative), and of which groups somebody lives

Ranks whose launcher is gone become this process's children (Linux), so that none stays behind as a zombie. When nobody
can send a line any more, all groups are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from glassformer.train.launch import prepare_process
from glassformer.train.parallel.starting import start_ranks

_DEATH_SIGNAL, _SUBREAPER = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER of prctl(2)
_LOADED = (
    "torch", "torch._dynamo", "glassformer.train.loop", "glassformer.train.drill.worker",
    "glassformer.cli.main", "glassformer.cli.train",
)  # fmt: skip
"""All that a run loads; the program is found by its name, as a shell would find it."""


def main() -> None:
    prepare_process()
    os.environ.pop("LOCAL_WORLD_SIZE", None)  # which said how many share the cores
    _control(_SUBREAPER, 1)
    sys.modules["vl_convert"] = None  # type: ignore[assignment] # as without the extra `plots`: reports take no seconds
    for name in _LOADED:
        importlib.import_module(name)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    groups: set[int] = set()
    exits: dict[int, int] = {}
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if "plan" in request:
                pid = os.fork()
                if pid == 0:
                    _become(request["plan"])
                groups.add(pid)
                answer: dict[str, Any] = {"pid": pid}
            else:
                _reap(exits)
                answer = {"exits": exits, "alive": [pid for pid in request["poll"] if _lives(pid)]}
            print(json.dumps(answer), flush=True)
    finally:
        for pid in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _become(plan: dict[str, Any]) -> None:
    """In the new process: never returns."""
    code = 1
    try:
        os.setsid()
        said = os.open(Path(plan["folder"]) / "stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream, source in ((0, nothing), (1, nothing), (2, said)):
            os.dup2(source, stream)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 # its own, for as long as it lives
        os.chdir(plan["cwd"])
        if plan["ranks"] == 1:
            code = _worker().run(plan, 0)
        else:
            code = start_ranks(plan["ranks"], (json.dumps(plan),), entry=take_part)
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def take_part(plan: str) -> None:
    """A rank, forked by torch's launcher; what it inherited there is given up, as if it had been begun anew."""
    _control(_DEATH_SIGNAL, 0)  # torch sets it for functions; a program would not hear of its launcher's end
    for handled in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(handled, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for handle in map(int, os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else ()):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(handle).st_mode):
                os.close(handle)  # the launcher's, which would seem to listen after its end
    launcher = os.getppid()
    code = _worker().run(json.loads(plan), int(os.environ["RANK"]))
    if code:
        raise SystemExit(code)
    threading.Thread(target=_leave_with, args=(launcher,), daemon=True).start()


def _leave_with(launcher: int) -> None:
    """torch lets a function that has ended wait until its launcher has read what it returned, also a dead one."""
    while os.getppid() == launcher:
        time.sleep(0.1)
    os._exit(0)


def _worker() -> Any:
    return importlib.import_module("glassformer.train.drill.worker")


def _reap(exits: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            exits[pid] = os.waitstatus_to_exitcode(status)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _control(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # another system than Linux
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
