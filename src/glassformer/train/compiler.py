"""What torch's compiler is told, and whether it has a chance here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx


def cannot_compile(device: str) -> str | None:
    """Why torch.compile has no chance here."""
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", os.environ.get("CXX", "g++")))):
        return "torch.compile needs a C++ compiler on a CPU, and there is none; install g++"
    return None


def compile_steadily(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend of torch.compile: torch's own, but the gradient of an embedding has the same bits every time.

    By itself that adds the rows of a token by atomic adds of all threads, in whatever order they come.
    """
    from torch._inductor.compile_fx import compile_fx  # slow to import, and eager runs never do
    from torch._inductor.decomposition import select_decomp_table

    ways: dict[Any, Callable[..., Any]] = dict(select_decomp_table())
    ways[torch.ops.aten.embedding_dense_backward.default] = embedding_gradient
    tag = compile_steadily.__name__  # torch's cache on the disk does not tell one table of ways from another
    with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined] # put there on import
        return compile_fx(graph, inputs, decompositions=ways)  # type: ignore[return-value] # of one graph, a function


@torch.library.custom_op("glassformer::embedding_gradient", mutates_args=())
def embedding_gradient(gradient: Tensor, ids: Tensor, count: int, padding: int, by_frequency: bool) -> Tensor:
    """[count, width], the sum of gradient [..., width] over the places of each of ids [...]: as eager steps compute
    it, which add in order, but in float32 whatever numbers are given."""
    sums = torch.ops.aten.embedding_dense_backward(gradient.float(), ids, count, padding, by_frequency)
    found: Tensor = sums.to(gradient.dtype)
    return found


@embedding_gradient.register_fake
def _shape(gradient: Tensor, ids: Tensor, count: int, padding: int, by_frequency: bool) -> Tensor:
    return gradient.new_empty(count, gradient.shape[-1])


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
