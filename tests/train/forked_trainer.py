"""Training in processes that really end: run as a program, it forks one `glassformer` for each line it reads.

    {"arguments": ["train", "tiny.toml"], "folder": ".", "environment": {}, "out": "o", "err": "e", "plans": []}

It answers with the pid, and with `{"pid": ..., "exit": ...}` to `{"wait": pid}`; a signal's exit is negative.
It forks from a process that has loaded torch, because loading it takes longer than a tiny run.

With `"module": NAME` it calls the `main()` of a file beside this one in place of `glassformer`.

A plan is what befalls the process, at a moment that is the same every time: `{"at": moment, "do": deed}`.
The moment is the n-th time (`"n"`, from 1) that a text is written to stdout or stderr (`"writes: ..."`) or that
the interpreter asks the system for something (`"asks: os.rename step-"`). The deed is a signal's name, with a pid
where another process gets it, `limit N` (no file may grow beyond N bytes, as on a full disk), `lift` (it may again),
`memory N` (the process may hold N more bytes than it does), `files N` (it may open N more files than it has), `shm`
(there is no room in its /dev/shm), `obey` (the modes of files count for it, also when it is root's) or `clock N` (the
day is N seconds later, and the time zone another). A process that gets SIGPROF runs out of memory wherever it is just
then; with SIGVTALRM its next step never comes back from a call of C, and with SIGXCPU it does so without letting go of
the interpreter's lock. With SIGWINCH every step from then on takes 0.1 s longer.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import re
import resource
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import torch._dynamo  # noqa: F401 # optimisers load it when they are first made

import glassformer.cli.train
import glassformer.train.loop  # and with it everything a run loads
from glassformer.cli.main import main
from refusals import obey_modes

sys.modules["vl_convert"] = None  # type: ignore[assignment] # as without the extra `plots`: reports take no seconds


class Plans:
    """What is still to happen to this process."""

    def __init__(self, plans: list[dict[str, Any]]) -> None:
        self.left = [{"n": 1, **plan} for plan in plans]

    def moment(self, kind: str, what: str) -> None:
        for plan in list(self.left):
            wanted, _, words = plan["at"].partition(": ")
            if wanted == kind and all(word in what for word in words.split("+")):
                plan["n"] -= 1
                if plan["n"] == 0:
                    self.left.remove(plan)
                    happen(plan["do"])


def happen(deed: str) -> None:
    name, _, number = deed.partition(" ")
    if name == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))
    elif name == "memory":
        held = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index] # Linux has it
        resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + int(number), resource.RLIM_INFINITY))
    elif name == "files":
        free = os.open(os.devnull, os.O_RDONLY)  # the next number; those below are taken
        os.close(free)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + int(number), most))
    elif name == "shm":
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x20000) == 0  # CLONE_NEWNS: what is mounted now is seen by this process alone
        assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
        assert libc.mount(b"none", b"/dev/shm", b"tmpfs", 1, b"size=4k") == 0  # MS_RDONLY
    elif name == "lift":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    elif name == "obey":
        obey_modes()
    elif name == "clock":
        set_clock(int(number))
    else:
        os.kill(int(number or os.getpid()), signal.Signals[name])


def set_clock(seconds: int) -> None:
    """What the clock says from now on, as far as a run asks it; the machine's own is left alone."""

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=seconds)

    true = time.time
    time.time = lambda: true() + seconds
    for module in [sys.modules[name] for name in sys.modules if name.startswith("glassformer.")]:
        if getattr(module, "datetime", None) is datetime:
            module.datetime = Moved  # type: ignore[attr-defined]
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()


def no_memory(number: int, frame: object) -> None:
    raise MemoryError("not even 3 bytes")


def hang(number: int, frame: object) -> None:
    library = ctypes.PyDLL(None) if number == signal.SIGXCPU else ctypes.CDLL(None)

    def stuck(*given: Any, **named: Any) -> None:
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second never comes back
            library.pthread_mutex_lock(mutex)

    glassformer.train.loop.update = stuck  # type: ignore[assignment] # a bug in a library


def slow_down(number: int, frame: object) -> None:
    whole = glassformer.train.loop.update

    def slow(*given: Any, **named: Any) -> Any:
        time.sleep(0.1)
        return whole(*given, **named)

    glassformer.train.loop.update = slow  # a core that is shared, a fan that is broken


class Watched(io.TextIOWrapper):
    """A standard stream whose every write is a moment."""

    def __init__(self, path: str, plans: Plans) -> None:
        super().__init__(open(path, "wb"), encoding="utf-8", write_through=True)  # noqa: SIM115, PTH123 # until the end
        self.plans = plans

    def write(self, text: str) -> int:
        written = super().write(text)
        self.flush()
        self.plans.moment("writes", text)
        return written


def work(request: dict[str, Any]) -> None:
    plans = Plans(request["plans"])
    signal.signal(signal.SIGPROF, no_memory)
    signal.signal(signal.SIGWINCH, slow_down)
    for number in (signal.SIGVTALRM, signal.SIGXCPU):
        signal.signal(number, hang)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.stdout, sys.stderr = Watched(request["out"], plans), Watched(request["err"], plans)
    if any(plan["at"].startswith("asks") for plan in plans.left):
        sys.addaudithook(lambda event, arguments: plans.moment("asks", f"{event} {arguments}"))
    if "module" in request:
        importlib.import_module(request["module"]).main()
    exit_code = 0 if "module" in request else main(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps({"pid": request["wait"], "exit": os.waitstatus_to_exitcode(status)}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            work(request)
        print(json.dumps({"pid": pid}), flush=True)
