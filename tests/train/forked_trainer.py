"""Training in processes that really end: run as a program, it forks one `glassformer` for each line it reads.

    {"arguments": ["train", "tiny.toml"], "folder": ".", "environment": {}, "out": "o", "err": "e", "plans": []}

It answers with the pid, and with `{"pid": ..., "exit": ...}` to `{"wait": pid}`; a signal's exit is negative.
It forks from a process that has loaded torch, because loading it takes longer than a tiny run.

A plan is what befalls the process, at a moment that is the same every time: `{"at": moment, "do": deed}`.
The moment is the n-th time (`"n"`, from 1) that a text is written to stdout or stderr (`"writes: ..."`) or that
the interpreter asks the system for something (`"asks: os.rename step-"`). The deed is a signal's name, with a pid
where another process gets it, `limit N` (no file may grow beyond N bytes, as on a full disk) or `lift` (it may
again). A process that gets SIGPROF runs out of memory wherever it is just then; with SIGVTALRM its next step never
comes back from a call of C, and with SIGXCPU it does so without letting go of the interpreter's lock. With SIGWINCH
every step from then on takes 0.1 s longer.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
import time
from typing import Any

import torch._dynamo  # noqa: F401 # optimisers load it when they are first made

import glassformer.cli.train
import glassformer.train.loop  # and with it everything a run loads
from glassformer.cli.main import main

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
    elif name == "lift":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        os.kill(int(number or os.getpid()), signal.Signals[name])


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
    exit_code = main(request["arguments"])
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
