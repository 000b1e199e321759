"""Many ranks, one curve: what is divided over them, and what is put together again. On torch.distributed alone.

Step s of a run has one batch, the same function of s for any number of data ranks N. Data rank r takes the r-th N-th
of its rows, and the loss of each is already divided by the number of targets of the whole batch, so

    gradient of the batch = sum over data ranks of (gradient of the rank's rows)

exactly as it is the sum over micro-batches on one rank: N ranks are one rank with N-fold accumulation, but for the
order in which floats are added.

    copies    every rank holds all weights; gradients are summed by one all-reduce after the last micro-batch
    sharded   every rank holds an N-th of each weight, of its gradient and of what the optimiser remembers; FSDP2
              (`fully_shard`; Zhao et al. 2023) gathers a block's weights when it is computed. With shard = k < N,
              N / k such groups hold copies (HSDP).
    tensor    the ranks of a group compute each layer together (train/parallel/tensor.py), in any product with these:
              FSDP2 also looks after what a group holds where nothing else divides it.

What is decided (engine, number of steps, where to go on from, when to stop) rank 0 decides, or all together. The
small change of words goes over gloo on the CPU, also where gradients go over NCCL.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from glassformer.model.block import Block
from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.transformer import Transformer
from glassformer.train.config import ParallelConfig
from glassformer.train.parallel.matrices import orthogonal_parts
from glassformer.train.parallel.mesh import Ids, Mesh, Rows
from glassformer.train.parallel.tensor import Divided, divide
from glassformer.train.parallel.tensors import Parts
from glassformer.train.ranks import Named, Ranks
from glassformer.train.stragglers import Stragglers
from glassformer.train.task import Batch, Task
from glassformer.train.watchdog import Watchdog
from glassformer.train.weights import Weights
from glassformer.train.world import World

T = TypeVar("T")

_BUCKET = 2**23
"""Numbers summed in one exchange: 32 MiB of float32, long enough that starting it does not count."""


class ManyRanks(Ranks):
    """One of several ranks, in torch's default process group."""

    def __init__(
        self, world: World, config: ParallelConfig, device: str, watchdog: Watchdog | None = None
    ) -> None:
        self.mesh = Mesh(world, config, device)
        self.rank, self.count, self._device = world.rank, world.count, device
        self._watchdog, self._step = watchdog, 0
        self._clock = _DeviceClock() if device == "cuda" else _Clock()
        self._stragglers = Stragglers(lambda: self.hear(socket.gethostname()))
        self.data_rank, self.data_count = self.mesh.data_rank, self.mesh.data_count
        self.sharded = self.mesh.parts > 1
        self.part, self.copies = self.mesh.part, self.mesh.copies
        self.parts, self._divided = Parts(self.mesh), Divided()
        self._root: FSDPModule | None = None
        self._copy: nn.Module | None = None

    def decide(self, make: Callable[[], T]) -> T:
        box = [make() if self.is_first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        decided: T = box[0]  # type: ignore[assignment] # rank 0's
        return decided

    def in_turn(self, make: Callable[[], T]) -> T:
        made = make() if self.is_first else None
        self.wait()
        return make() if made is None else made

    def rows(self, batch: Batch, rank: int | None = None) -> Batch:
        return Rows(batch, self.data_rank if rank is None else rank, self.data_count)

    def deal(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
        group: list[Batch] = []
        counts = int(self.mesh.tensor_rank == 0)  # the others of a tensor group look at the same
        for batch in batches:
            group.append(batch)
            if len(group) == self.data_count:
                yield group[self.data_rank], counts
                group = []
        if group:
            yield group[min(self.data_rank, len(group) - 1)], int(self.data_rank < len(group)) * counts
        self.rest()

    def build(self, task: Task, device: torch.device) -> nn.Module:
        blank = self.sharded and isinstance(task.config, ModelConfig)
        return task.build("meta" if blank else device)

    def prepare(self, model: nn.Module, precision: Precision) -> Weights:
        if not self.sharded:
            return Weights(model, precision)
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = mixed if precision == "bf16" else MixedPrecisionPolicy()
        if self.mesh.tensor > 1 and isinstance(model, Transformer):
            self._divided = divide(model, self.mesh.along("tensor"))
            self.parts = Parts(self.mesh, self._divided.orders)
        mesh = self.mesh.data
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        self._root = fully_shard(model, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(model, "loss")
        for module in model.modules():
            if isinstance(module, FSDPModule):  # a sum: the loss is already a share of the batch's mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        if isinstance(model, Transformer) and any(weight.is_meta for weight in model.parameters()):
            self.parts.fill(model, self._device)
        return Weights(model, "fp32")  # FSDP2 keeps float32 masters itself, and gathers what is computed with

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        self._step = step
        self._clock.begin()
        self._at("its part", 2.0 if self.sharded else 1.0)  # sharded, it waits for others all the time
        try:
            yield
        finally:
            if self._watchdog:
                self._watchdog.at_rest()
        if not self.sharded:  # there, a rank's own part is full of exchanges
            self._stragglers.add(*self._clock.read())

    def noted(self, step: int, every: int) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self._stragglers.look(step, every, self._each)

    def _each(self, *numbers: float) -> list[list[float]]:
        """The numbers of each rank, by rank."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        heard = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(heard, mine)
        return [part.tolist() for part in heard]

    def _at(self, part: str, patience: float) -> None:
        if self._watchdog:
            self._watchdog.at(part, self._step, patience)

    def sum_gradients(self, weights: Weights) -> None:
        """Of copies, all; of divided weights, what FSDP2 did not sum in the backward pass: each rank of a tensor group
        has seen its own heads."""
        self._clock.split()
        self._at("the exchange", 2.0)
        gradients, group = weights.gradients, None
        if self.sharded:
            named = self.mine({name: weights.masters[name].grad for name in self._divided.summed})  # type: ignore[misc] # made with the weights
            if not named:
                return
            gradients, group = list(named.values()), self.mesh.along("tensor").get_group()
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.view(-1) for gradient in bucket])
            dist.all_reduce(flat, group=group)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_([gradient.view(-1) for gradient in bucket], list(parts))

    def norms(self, gradients: list[Tensor]) -> Tensor:
        if not self.sharded:
            return super().norms(gradients)
        mine = torch.stack(torch._foreach_norm([gradient.to_local() for gradient in gradients]))  # type: ignore[attr-defined] # divided
        counted = torch.tensor([self.parts.counts(gradient) for gradient in gradients], device=mine.device)
        squares = mine.square() * counted
        dist.all_reduce(squares, group=self.mesh.parts_group)
        return squares.sqrt()

    def orthogonal(self, matrices: list[Tensor]) -> list[Tensor]:
        if not self.sharded:
            return super().orthogonal(matrices)
        return list(orthogonal_parts(matrices, self.mesh, self.parts))

    def sum(self, value: Tensor) -> Tensor:
        value = value / self.mesh.tensor  # the ranks of a tensor group have the same rows
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
        mine = self.rows(Ids(sample_ids)).sample_ids
        told = torch.tensor([*np.asarray(mine, np.int64).tolist(), int(reason is not None)])
        heard = [torch.empty_like(told) for _ in range(self.count)]
        dist.all_gather(heard, told)
        ids = torch.cat([part[:-1] for part in heard[:: self.mesh.tensor]]).numpy().astype(sample_ids.dtype)
        if not any(int(part[-1]) for part in heard):
            return ids, None
        return ids, next(r for r in self.hear(reason) if r is not None)

    def gather(self, tensors: Named) -> dict[str, Tensor]:
        whole = {}
        for name, value in tensors.items():  # no other rank ever holds more than one whole tensor
            closed = self.parts.closed(value)
            if self.is_first:
                whole[name] = self.parts.plain(name, closed.detach().cpu())
        return whole

    def spread(self, tensors: Named, like: Named) -> Named:
        told = self.decide(lambda: [(name, tuple(t.shape), t.dtype) for name, t in tensors.items()])
        mine: dict[str, Tensor] = {}
        for name, shape, dtype in told:
            given = tensors[name] if self.is_first else torch.empty(shape, dtype=dtype)
            value = given.to(self._device).contiguous()
            dist.broadcast(value, src=0)
            weight = like.get(name, like.get(name.rpartition(".")[0]))
            fits = weight is not None and weight.shape == value.shape
            mine[name] = self.parts.cut(self.parts.ordered(name, value), weight) if fits else value  # type: ignore[arg-type] # fits
        return mine

    def as_saved(self, tensors: Named) -> Named:
        return {name: self.parts.as_saved(name, tensor) for name, tensor in tensors.items()}

    def as_held(self, tensors: Named) -> Named:
        return {name: self.parts.as_held(name, tensor) for name, tensor in tensors.items()}

    def rest(self) -> None:
        if self._root is not None:
            self._root.reshard()

    def whole(
        self, model: nn.Module, weights: Weights, build: Callable[[torch.device], nn.Module]
    ) -> nn.Module:
        if not self.sharded:
            return model
        tensors = self.gather(weights.masters)
        if not self.is_first:
            return model
        self._copy = self._copy or build(_room_for(weights, self._device))
        with torch.no_grad():
            for name, weight in self._copy.named_parameters():
                weight.copy_(tensors[name])
        return self._copy

    def wait(self) -> None:
        self.total(0.0)


def _room_for(weights: Weights, device: str) -> torch.device:
    """Where there is room for a whole copy of them, and as much again to look at it with."""
    size = sum(weight.numel() * weight.element_size() for weight in weights.masters.values())
    if device == "cuda" and 2 * size > torch.cuda.mem_get_info()[0]:
        return torch.device("cpu")
    return torch.device(device)


class _Clock:
    """Seconds of a rank's own part of a step, and of the whole step."""

    def begin(self) -> None:
        self._began = self._ready = time.perf_counter()

    def split(self) -> None:
        self._ready = time.perf_counter()

    def read(self) -> tuple[float, float]:
        return self._ready - self._began, time.perf_counter() - self._began


class _DeviceClock(_Clock):
    """The same where the work is queued for a device: marks in its queue, read when the step has waited for it."""

    def begin(self) -> None:
        super().begin()
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._marks[0].record()

    def split(self) -> None:
        self._marks[1].record()

    def read(self) -> tuple[float, float]:
        self._marks[1].synchronize()
        return self._marks[0].elapsed_time(self._marks[1]) / 1000, super().read()[1]


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
