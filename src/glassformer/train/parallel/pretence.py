"""One process takes itself for any rank of any number, and computes nothing.

    ranks    torch's fake process group: every exchange is over at once, nothing is sent
    tensors  torch's fake tensors: shape, type and device, no memory behind them

Everything else is the code that runs on real ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from glassformer.errors import UsageError
from glassformer.train.config import ParallelConfig
from glassformer.train.parallel.ledger import Ledger
from glassformer.train.parallel.many import ManyRanks
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.world import World

_MANY = 64
"""From so many pieces on, those of one shape are one tensor."""


@contextlib.contextmanager
def pretended(config: ParallelConfig, rank: int, count: int) -> Iterator[tuple[Ranks, Ledger]]:
    """Be rank `rank` of `count`, without numbers; what comes into being goes into the ledger."""
    if dist.is_initialized():
        raise UsageError(
            "A mesh cannot be rehearsed in a process that is one of several ranks already.",
            do="Rehearse in a process of its own.",
        )
    ledger = Ledger()
    ranks: Ranks = ALONE
    if count > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        if count > 1:
            ranks = many = ManyRanks(World(rank, count, local_rank=rank), config, "cpu")
            if many.sharded:
                _ = many.mesh.data, many.mesh.parts_group  # who is in which group: numbers that are needed
        with FakeTensorMode(allow_non_fake_inputs=True), ledger, _EqualPieces():
            yield ranks, ledger
    finally:
        if count > 1:
            dist.destroy_process_group()
            _forget_groups()


def _forget_groups() -> None:
    """DTensor keeps what it found out about a mesh, with the names of its groups, for the next mesh of the same shape,
    whose groups have other names. torch has no public way to say that a mesh is gone."""
    from torch.distributed.tensor import DTensor

    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()  # type: ignore[no-untyped-call]
    clear = getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", None)
    if clear is not None:  # torch 2.11 and later
        clear()


class _EqualPieces(TorchFunctionMode):
    """`torch.chunk` into thousands of pieces, of which FSDP2 keeps one: without numbers, pieces of one shape are one
    tensor. There are as many as asked for, those beyond the end empty, which is what FSDP2 makes of fewer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.chunk and len(args) > 1 and args[1] >= _MANY:
            return _pieces(args[0], args[1], kwargs.get("dim", 0))
        return func(*args, **kwargs)


def _pieces(tensor: Tensor, count: int, dim: int) -> list[Tensor]:
    size = -(-tensor.shape[dim] // count)
    whole, rest = divmod(tensor.shape[dim], size)
    pieces = [tensor.narrow(dim, 0, size)] * whole
    if rest:
        pieces.append(tensor.narrow(dim, whole * size, rest))
    return pieces + [pieces[0].new_empty(0)] * (count - len(pieces))
