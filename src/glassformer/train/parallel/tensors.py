"""A weight cut into the parts that ranks hold, and put together again.

A divided weight is cut twice: by the tensor group along the axis of its heads or neurons, and what is left by FSDP2
along its first axis, so it is closed in the reverse order. Copies hold the same parts.

    W -> tensor group: W[order] in parts along `dim` -> FSDP2: parts of those along axis 0; the last may be shorter

Some matrices hold several side by side (queries, keys and values; gate and up). `order` puts the rows of one rank's
heads next to each other, before the first cut; a checkpoint knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from glassformer.model.init import draw
from glassformer.model.transformer import Transformer
from glassformer.train.parallel.mesh import Mesh


class Parts:
    """Cuts and closes tensors on one mesh. `orders` are those of the weights whose rows were put in another one."""

    def __init__(self, mesh: Mesh, orders: Mapping[str, Tensor] | None = None) -> None:
        self._mesh = mesh
        self._orders = orders or {}

    def closed(self, tensor: Tensor) -> Tensor:
        """The whole tensor, its rows in the order in which ranks hold them. All ranks of a copy take part."""
        if not isinstance(tensor, DTensor):
            return tensor
        value, dims = tensor.to_local(), _dims(tensor)
        for name in ("shard", "tensor"):
            if name in dims:
                shape = list(tensor.shape)
                if name == "shard" and "tensor" in dims:
                    shape[dims["tensor"]] = self._share(tensor.shape[dims["tensor"]])
                value = DTensor.from_local(
                    value.contiguous(), self._mesh.along(name), [Shard(dims[name])], run_check=False,
                    shape=torch.Size(shape), stride=torch.empty(shape, device="meta").stride(),
                ).full_tensor()  # fmt: skip
        return value

    def cut(self, value: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a whole tensor whose rows stand as in `closed`, divided as `like` is."""
        if not isinstance(like, DTensor):
            return value
        dims = _dims(like)
        if "tensor" in dims:
            value = _piece(value, self._mesh.tensor, dims["tensor"], self._mesh.tensor_rank)
        if "shard" in dims:
            value = _piece(value, self._mesh.shard, 0, self._mesh.data_rank % self._mesh.shard)
        return DTensor.from_local(
            value.contiguous(), like.device_mesh, like.placements, run_check=False,
            shape=like.shape, stride=like.stride(),
        )  # fmt: skip

    @torch.no_grad()
    def fill(self, model: Transformer, device: str) -> None:
        """Give this rank's parts of a model without numbers the ones it starts with, one whole weight after the other:
        the numbers of one rank to the bit, and no rank ever holds the whole model."""
        constants = {name: constant.clone() for name, constant in model.named_buffers()}
        model.to_empty(device=torch.device(device))
        for name, constant in constants.items():
            model.get_buffer(name).copy_(constant)
        for name, weight in model.named_parameters():
            value = draw(name, torch.empty(weight.shape), model.config, model.seed)
            weight.copy_(self.cut(self.ordered(name, value).to(device), weight))

    def ordered(self, name: str, value: Tensor) -> Tensor:
        """A whole tensor's rows as ranks hold them. `name` is the weight's, or of what an optimiser keeps for it."""
        order = self._order(name, value)
        return value if order is None else value[order.to(value.device)]

    def plain(self, name: str, value: Tensor) -> Tensor:
        """The reverse: rows as the model has them."""
        order = self._order(name, value)
        return value if order is None else value[order.argsort().to(value.device)]

    def as_saved(self, name: str, tensor: Tensor) -> Tensor:
        """The same division of the same tensor, its rows as the model has them: what ranks write each its part of."""
        if self._order(name, tensor) is None:
            return tensor
        return self.cut(self.plain(name, self.closed(tensor)), tensor)

    def as_held(self, name: str, tensor: Tensor) -> Tensor:
        """The reverse, for what ranks have read each its part of."""
        if self._order(name, tensor) is None:
            return tensor
        return self.cut(self.ordered(name, self.closed(tensor)), tensor)

    def counts(self, tensor: Tensor) -> bool:
        """Whether this rank's part is the one to be counted: of what several ranks hold alike, one is."""
        return self._mesh.tensor_rank == 0 or "tensor" in _dims(tensor)

    def _share(self, size: int) -> int:
        """Entries of an axis that this rank of the tensor group holds, of so many."""
        return _piece(torch.empty(size, device="meta"), self._mesh.tensor, 0, self._mesh.tensor_rank).numel()

    def _order(self, name: str, value: Tensor) -> Tensor | None:
        order = self._orders.get(name, self._orders.get(name.rpartition(".")[0]))
        return None if order is None or value.shape[:1] != order.shape else order


def _piece(value: Tensor, count: int, dim: int, place: int) -> Tensor:
    """One of `count` parts, as torch cuts them: equally long ones first, the last ones shorter or empty."""
    pieces = value.chunk(count, dim)
    return pieces[place] if place < len(pieces) else value.narrow(dim, 0, 0)


def _dims(tensor: Tensor) -> dict[str, int]:
    """Along which axis each line of the mesh divides it."""
    if not isinstance(tensor, DTensor):
        return {}
    names = tensor.device_mesh.mesh_dim_names or ()
    pairs = zip(names, tensor.placements, strict=True)
    return {name: placement.dim for name, placement in pairs if not placement.is_replicate()}  # type: ignore[attr-defined] # all others have one
