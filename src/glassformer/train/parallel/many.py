"""Many ranks, one curve: what is divided over them, and what is put together again. On torch.distributed alone.

Step s of a run has one batch, the same function of s for any number of ranks N. Rank r takes the r-th N-th of its
rows, and the loss of each is already divided by the number of targets of the whole batch, so

    gradient of the batch = sum over ranks of (gradient of the rank's rows)

exactly as it is the sum over micro-batches on one rank: N ranks are one rank with N-fold accumulation, but for the
order in which floats are added.

    copies    every rank holds all weights; gradients are summed by one all-reduce after the last micro-batch
    sharded   every rank holds an N-th of each weight, of its gradient and of what the optimiser remembers; FSDP2
              (`fully_shard`; Zhao et al. 2023) gathers a block's weights when it is computed. With shard = k < N,
              N / k such groups hold copies (HSDP).

What is decided (engine, number of steps, where to go on from, when to stop) rank 0 decides, or all together. The
small change of words goes over gloo on the CPU, also where gradients go over NCCL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from glassformer.model.block import Block
from glassformer.model.count import Precision
from glassformer.model.transformer import Transformer
from glassformer.train.config import ParallelConfig
from glassformer.train.ranks import Named, Ranks
from glassformer.train.task import Batch
from glassformer.train.weights import Weights
from glassformer.train.world import World

T = TypeVar("T")

_BUCKET = 2**23
"""Numbers summed in one exchange: 32 MiB of float32, long enough that starting it does not count."""


class ManyRanks(Ranks):
    """One of several ranks, in torch's default process group."""

    def __init__(self, world: World, config: ParallelConfig, device: str) -> None:
        self.rank, self.count, self._device = world.rank, world.count, device
        self._shard = world.count if config.shard == "all" else config.shard
        self.sharded = self._shard > 1
        self._root: FSDPModule | None = None
        self._copy: nn.Module | None = None
        self._made: DeviceMesh | None = None

    def decide(self, make: Callable[[], T]) -> T:
        box = [make() if self.is_first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        decided: T = box[0]  # type: ignore[assignment] # rank 0's
        return decided

    def in_turn(self, make: Callable[[], T]) -> T:
        made = make() if self.is_first else None
        self.wait()
        return make() if made is None else made

    def rows(self, batch: Batch) -> Batch:
        return _Rows(batch, self.rank, self.count)

    def deal(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
        group: list[Batch] = []
        for batch in batches:
            group.append(batch)
            if len(group) == self.count:
                yield group[self.rank], 1
                group = []
        if group:
            yield group[min(self.rank, len(group) - 1)], int(self.rank < len(group))
        self.rest()

    def prepare(self, model: nn.Module, precision: Precision) -> Weights:
        if not self.sharded:
            return Weights(model, precision)
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = mixed if precision == "bf16" else MixedPrecisionPolicy()
        mesh = self._mesh()
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        self._root = fully_shard(model, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "loss")
        for module in model.modules():
            if isinstance(module, FSDPModule):  # a sum: the loss is already a share of the batch's mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return Weights(model, "fp32")  # FSDP2 keeps float32 masters itself, and gathers what is computed with

    def sum_gradients(self, weights: Weights) -> None:
        if self.sharded:
            return  # FSDP2 summed them in the backward pass
        for bucket in _buckets(weights.gradients):
            flat = torch.cat([gradient.view(-1) for gradient in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_([gradient.view(-1) for gradient in bucket], list(parts))

    def norms(self, gradients: list[Tensor]) -> Tensor:
        if not self.sharded:
            return super().norms(gradients)
        local = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        squares = torch.stack(torch._foreach_norm(local)).square()
        dist.all_reduce(squares, group=self._mesh()["shard"].get_group())
        return squares.sqrt()

    def sum(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def total(self, *numbers: float) -> Sequence[float]:
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values)
        return values.tolist()

    def agree(self, *numbers: float) -> Sequence[float]:
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.broadcast(values, src=0)
        return values.tolist()

    def hear(self, word: T) -> list[T]:
        words: list[Any] = [None] * self.count
        dist.all_gather_object(words, word)
        return words

    def mine(self, tensors: Named) -> Named:
        return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}

    def step_taken(self, sample_ids: NDArray[Any], reason: str | None) -> tuple[NDArray[Any], str | None]:
        mine = self.rows(_Ids(sample_ids)).sample_ids
        told = torch.tensor([*np.asarray(mine, np.int64).tolist(), int(reason is not None)])
        heard = [torch.empty_like(told) for _ in range(self.count)]
        dist.all_gather(heard, told)
        ids = torch.cat([part[:-1] for part in heard]).numpy().astype(sample_ids.dtype)
        if not any(int(part[-1]) for part in heard):
            return ids, None
        return ids, next(r for r in self.hear(reason) if r is not None)

    def gather(self, tensors: Named) -> dict[str, Tensor]:
        whole = {}
        for (
            name,
            value,
        ) in tensors.items():  # one at a time: no other rank ever holds more than one whole tensor
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_first:
                whole[name] = full.detach().cpu()
        return whole

    def spread(self, tensors: Named, like: Named) -> Named:
        told = self.decide(lambda: [(name, tuple(t.shape), t.dtype) for name, t in tensors.items()])
        mine: dict[str, Tensor] = {}
        for name, shape, dtype in told:
            given = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            weight = like.get(name, like.get(name.rpartition(".")[0]))
            value = given.to(self._device).contiguous()
            if isinstance(weight, DTensor) and weight.shape == value.shape:
                mine[name] = distribute_tensor(value, weight.device_mesh, weight.placements)
                continue
            dist.broadcast(value, src=0)
            mine[name] = value
        return mine

    def rest(self) -> None:
        if self._root is not None:
            self._root.reshard()

    def whole(self, model: nn.Module, weights: Weights, build: Callable[[], nn.Module]) -> nn.Module:
        if not self.sharded:
            return model
        tensors = self.gather(weights.masters)
        if not self.is_first:
            return model
        self._copy = self._copy or build()
        with torch.no_grad():
            for name, weight in self._copy.named_parameters():
                weight.copy_(tensors[name])
        return self._copy

    def wait(self) -> None:
        self.total(0.0)

    def _mesh(self) -> DeviceMesh:
        """(copies, shards); rows of consecutive ranks share a machine and do most of the talking."""
        if self._made is None:
            sizes = (self.count // self._shard, self._shard)
            names = ("copies", "shard")
            both = init_device_mesh(self._device, sizes, mesh_dim_names=names)
            self._made = both if sizes[0] > 1 else both["shard"]
        return self._made


class _Rows:
    """One rank's rows of a batch, in order; the number of targets stays that of all."""

    def __init__(self, batch: Batch, rank: int, count: int) -> None:
        size = len(batch.sample_ids) // count
        self._part = slice(rank * size, (rank + 1) * size)
        self.sample_ids, self.num_targets = batch.sample_ids[self._part], batch.num_targets
        self._batch = batch

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        arrays = self._batch.arrays()
        return {name: None if array is None else array[self._part] for name, array in arrays.items()}


class _Ids:
    """A batch of which only the samples' names matter."""

    num_targets = 0

    def __init__(self, sample_ids: NDArray[Any]) -> None:
        self.sample_ids = sample_ids

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        return {}


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered one at a time. An encoder-decoder reads its decoder's weights outside of their blocks, and a
    plain network has none: they are gathered whole."""
    if not isinstance(model, Transformer) or len(model.stacks) > 1:
        return []
    return [module for module in model.modules() if isinstance(module, Block)]


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(t.numel() for t in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
