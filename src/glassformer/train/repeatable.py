"""`engine.deterministic`: only operations that give the same bits every time, or a sentence that names the one that has
none.

Torch then takes the repeatable one of its ways (for the sums of an embedding's gradient on a GPU, say), and raises
where there is only one and it adds in any order. cuBLAS is repeatable with a fixed workspace, which it reads from
CUBLAS_WORKSPACE_CONFIG when it is first used (https://pytorch.org/docs/stable/notes/randomness.html).

It holds for training steps alone: what a model writes in between is drawn by operations that have no such way on a GPU,
and changes no weight.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from glassformer.errors import GlassformerError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS = re.compile(
    r"Deterministic behavior was enabled.*but this operation is not deterministic", re.DOTALL
)


class NotDeterministic(GlassformerError):
    """An operation that gives other bits each time, where engine.deterministic asks for the same."""


@contextlib.contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """In this block, where it is wanted, every operation gives the same bits every time; raises NotDeterministic where
    one cannot."""
    if not wanted:
        yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except (RuntimeError, GlassformerError) as error:
        operation = refused_operation(error)
        if operation is None:
            raise
        raise NotDeterministic(
            f"{operation} gives other bits each time it is computed, and engine.deterministic asks for the same.",
            do="Set engine.deterministic = false, or take another engine.attention (explicit has none on a CPU), or "
            "engine.device cpu.",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def refused_operation(error: BaseException) -> str | None:
    """The operation that torch refused, if that is what the error, or one that it quotes, says."""
    found = _REFUSED.search(str(error))
    if found:
        return found[1]
    return "a product by cuBLAS" if _CUBLAS.search(str(error)) else None
