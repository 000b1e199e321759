"""What torch's compiler is told, and whether it has a chance here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from functools import cache

import torch


def cannot_compile(device: str) -> str | None:
    """Why torch.compile has no chance here."""
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", os.environ.get("CXX", "g++")))):
        return "torch.compile needs a C++ compiler on a CPU, and there is none; install g++"
    return None


def compiler_settings(activation_memory: float) -> contextlib.AbstractContextManager[None]:
    """What is cheap to compute again is not kept for the backward pass; read when a graph is compiled.

    By default the compiler merges what the backward pass recomputes on purpose (`model/blockwise.py`) with the
    forward pass's own, and keeps it; and it keeps what a product of the backward pass reads, such as the
    activation of every feed-forward layer. Together this held twice the memory, and gained no time. What is kept
    then is what `activation_memory` is a share of.
    """
    settings: contextlib.AbstractContextManager[None] = torch._functorch.config.patch(
        cse=False, ban_recompute_materialized_backward=False, activation_memory_budget=activation_memory
    )
    return settings


@cache
def tune_compiler() -> None:
    """Tell GCC what to tune for, where it knows the processor's architecture and not its model.

    By itself it tunes for no processor in particular then, and GCC 12 at -O3 so makes wrong code of torch's vectorised
    transposition of 16-bit numbers: gradients are not finite. Tuned for the architecture it is right. This holds for
    the process, since a backward pass may be compiled when it is first taken.
    """
    from torch._inductor import config as inductor  # slow to import, and eager runs never do

    if getattr(inductor.cpp, "march", "") is not None:  # torch has no such setting, or somebody has set it
        return
    asked = [os.environ.get("CXX", "g++"), "-march=native", "-Q", "--help=target"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return  # no GCC: nothing to say to it
    found = dict(re.findall(r"^\s*-m(arch|tune)=\s+(\S+)", said, re.M))
    if found.get("tune") == "generic" and not found.get("arch", "x86-64").startswith("x86-64"):
        inductor.cpp.march = f"native -mtune={found['arch']}"
