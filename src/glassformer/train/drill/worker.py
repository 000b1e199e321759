"""The program `glassformer` in a process that something will befall: the plan arms it, then the usual main runs.

Nothing in the program knows of it. What a plan reaches into is public in Python and torch:

    torch.optim's post hook     after the n-th update of this process
    an audit hook               when the interpreter asks the system for something in a checkpoint that is not whole
    torch.nn's forward hook     between two modules, for a NaN; with compiled code, which has no between, the gradient
                                of one weight
    setrlimit, kill             a disk that is full, a process that ends or stands still

Before anything happens, it is written down in the folder of this start, since who is killed can no longer say.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_parameter_registration_hook,
)
from torch.optim.optimizer import register_optimizer_step_post_hook

DEEDS = "deeds.jsonl"
_ASKED = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "shutil.rmtree",
)
_PARTIAL = ".step-"


def run(plan: Mapping[str, Any], rank: int) -> int:
    """`glassformer ARGUMENTS` as rank `rank`, with what is planned for it; the exit code it would end with."""
    folder = Path(plan["folder"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()), encoding="ascii")
    Armed(plan, rank)
    sys.argv = ["glassformer", *plan["arguments"]]
    try:
        runpy.run_module("glassformer", run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


class Armed:
    """What is still to happen to this process."""

    def __init__(self, plan: Mapping[str, Any], rank: int) -> None:
        self._plan, self._rank, self._folder = plan, rank, Path(plan["folder"])
        self._left = [one for one in plan["disturbances"] if one["actor"] == rank]
        self._updates, self._begun = 0, False
        self._counts: dict[int, int] = {}
        self._lift_at: int | None = None
        self._parameters: list[weakref.ref[nn.Parameter]] = []
        if not self._left:
            return
        for one in [one for one in self._left if one["moment"] == "start"]:
            self._left.remove(one)
            self._later(one, plan["start_seconds"])
        register_optimizer_step_post_hook(self._updated)
        if any(one["moment"] == "save" for one in self._left):
            sys.addaudithook(self._asked)
        if plan["compiled"] and any(one["kind"] == "NaN" for one in self._left):
            register_module_parameter_registration_hook(self._registered)

    def _updated(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """An optimiser has made its step; where there are two, an update is both. Steps that are taken to measure how
        the machine is used best come before the run's `start`."""
        with contextlib.suppress(FileNotFoundError):
            self._begun = self._begun or b'"event": "start"' in Path(self._plan["events"]).read_bytes()
        if not self._begun:
            return
        count = self._counts[id(optimizer)] = self._counts.get(id(optimizer), 0) + 1
        if count <= self._updates:
            return
        self._updates = count
        if self._lift_at is not None and count >= self._lift_at:
            _limit(resource.RLIM_INFINITY)
            self._lift_at = None
        for one in [one for one in self._left if one["moment"] == "step" and self._is_due(one)]:
            self._left.remove(one)
            if one["kind"] == "NaN":
                self._spoil(one)
            elif one["kind"] == "weight":
                self._change_weight(one, optimizer)
            else:
                self._later(one, self._plan["step_seconds"])

    def _asked(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The interpreter asks the system for something."""
        if event not in _ASKED or _PARTIAL not in str(arguments):
            return
        for one in [one for one in self._left if one["moment"] == "save" and self._is_due(one)]:
            one["turn"] -= 1
            if one["turn"] > 0:
                continue
            self._left.remove(one)
            if one["kind"] == "full disk":
                size = int(one["draws"][1] * self._plan["largest_bytes"] / 2)
                self._note(one, f"no file beyond {size:,} bytes")
                self._lift_at = self._updates + max(1, self._plan["every"] // 2)
                _limit(size)
            else:
                self._strike(one, f"{event} within a save")

    def _is_due(self, one: Mapping[str, Any]) -> bool:
        return bool(self._updates >= max(1, one["step"] - self._plan["done"]))

    def _later(self, one: Mapping[str, Any], seconds: float) -> None:
        """At a part of so many seconds from now."""
        wait = threading.Timer(one["draws"][0] * seconds, self._strike, (one, ""))
        wait.daemon = True
        wait.start()

    def _strike(self, one: Mapping[str, Any], how: str) -> None:
        number = signal.SIGSTOP if one["kind"] == "stop" else signal.SIGKILL
        self._note(one, how)
        if one["whom"] == "all":
            os.killpg(0, number)
        elif one["whom"] == "launcher":
            os.kill(os.getppid(), number)
        elif one["whom"] == self._rank:
            os.kill(os.getpid(), number)
        else:
            os.kill(int((self._folder / f"pid-{one['whom']}").read_text(encoding="ascii")), number)

    def _spoil(self, one: Mapping[str, Any]) -> None:
        """One number of what is computed next is NaN."""
        left = [1 + int(one["draws"][1] * 6)]

        def spoiled(values: Tensor, where: str) -> Tensor:
            for handle in handles:
                handle.remove()
            place = int(one["draws"][2] * values.numel())
            self._note(one, f"number {place:,} of {where}")
            with torch.no_grad():
                damage = torch.zeros(values.numel(), dtype=values.dtype, device=values.device)
                damage[place] = torch.nan
            return values + damage.view(values.shape)

        def after(module: nn.Module, given: Any, out: Any) -> Any:
            if not isinstance(out, Tensor) or not out.requires_grad or not out.numel() or not left[0]:
                return None
            left[0] -= 1
            return spoiled(out, f"what {type(module).__name__} gives") if left[0] == 0 else None

        def gradient(values: Tensor) -> Tensor | None:
            left[0], first = 0, left[0] > 0
            return spoiled(values, "a weight's gradient") if first else None

        if self._plan["compiled"]:
            alive = [found for reference in self._parameters if (found := reference()) is not None]
            handles = [
                one.register_hook(gradient)  # type: ignore[no-untyped-call] # torch leaves it untyped
                for one in alive
                if one.requires_grad and one.is_leaf
            ]
        else:
            handles = [register_module_forward_hook(after)]

    def _registered(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if parameter is not None:
            self._parameters.append(weakref.ref(parameter))

    def _change_weight(self, one: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        weight = optimizer.param_groups[0]["params"][0]
        with torch.no_grad():
            bits = weight.view(-1)[:1].view(torch.int32)
            bits ^= 1 << 16
        self._note(one, "one bit of one weight")

    def _note(self, one: Mapping[str, Any], how: str) -> None:
        said = {
            "number": one["number"],
            "time": time.time(),
            "pid": os.getpid(),
            "updates": self._updates,
            "how": how,
        }
        limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        _limit(most)  # what is told must get through a disk that is full
        handle = os.open(self._folder / DEEDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, json.dumps(said).encode() + b"\n")
        os.close(handle)
        _limit(limit)


def _limit(size: int) -> None:
    """No file of this process may grow beyond so many bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
