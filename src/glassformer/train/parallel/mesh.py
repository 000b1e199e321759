"""Which rank does what: a mesh of copies, shards and tensor groups, and the rows that each takes.

    rank = (copy * shard + part) * tensor + head

Ranks of one tensor group are neighbours: they exchange activations in every layer, over the fastest links. They take
the same rows, each its own heads and neurons. Groups that together hold one copy of the weights (`shard`) come next,
then the copies, which exchange gradients alone. So rows are divided over N / tensor data ranks:

    data_rank = rank // tensor             tensor_rank = rank % tensor
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from glassformer.train.config import ParallelConfig
from glassformer.train.task import Batch
from glassformer.train.world import World


class Mesh:
    """Where one rank stands. The groups are made when they are first asked for, by all ranks in the same order."""

    def __init__(self, world: World, config: ParallelConfig, device: str) -> None:
        self.rank, self.count, self.tensor = world.rank, world.count, config.tensor
        self.data_rank, self.tensor_rank = divmod(world.rank, config.tensor)
        self.data_count = world.count // config.tensor
        self.shard = self.data_count if config.shard == "all" else config.shard
        self.copies = self.data_count // self.shard
        self._device = device

    @property
    def parts(self) -> int:
        """Ranks that hold one copy of the weights together."""
        return self.shard * self.tensor

    @property
    def part(self) -> int:
        """Which of them this is."""
        return self.rank % self.parts

    @cached_property
    def _whole(self) -> DeviceMesh:
        sizes = (self.copies, self.shard, self.tensor)
        return init_device_mesh(self._device, sizes, mesh_dim_names=("copies", "shard", "tensor"))

    @property
    def data(self) -> DeviceMesh:
        """Along which FSDP2 divides: (copies, shard), or shard alone where there are no copies."""
        return self._whole["copies", "shard"] if self.copies > 1 else self._whole["shard"]

    def along(self, name: str) -> DeviceMesh:
        """One line of the mesh: `shard` or `tensor`."""
        return self._whole[name]

    @cached_property
    def parts_group(self) -> dist.ProcessGroup:
        """Those that hold one copy of the weights together."""
        if 1 in (self.shard, self.tensor):
            return self.along("shard" if self.tensor == 1 else "tensor").get_group()
        flat = init_device_mesh(self._device, (self.copies, self.parts), mesh_dim_names=("copies", "parts"))
        return flat["parts"].get_group()


class Rows:
    """One data rank's rows of a batch, in order; the number of targets stays that of all."""

    def __init__(self, batch: Batch, rank: int, count: int) -> None:
        size = len(batch.sample_ids) // count
        self._part = slice(rank * size, (rank + 1) * size)
        self.sample_ids, self.num_targets = batch.sample_ids[self._part], batch.num_targets
        self._batch = batch

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        arrays = self._batch.arrays()
        return {name: None if array is None else array[self._part] for name, array in arrays.items()}


class Ids:
    """A batch of which only the samples' names matter."""

    num_targets = 0

    def __init__(self, sample_ids: NDArray[Any]) -> None:
        self.sample_ids = sample_ids

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        return {}
