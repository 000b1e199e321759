"""Tensor parallelism: the ranks of a group compute one layer together, each its own heads and neurons.

    attention      q, k, v = x W_qkv^T     W_qkv's rows divided by heads        out = z W_o^T     W_o's columns
    feed-forward   h = activation(x W_up^T)   W_up's rows divided by neurons    y = h W_down^T    W_down's columns

Each rank gets all of x and gives a part of a sum; one all-reduce in each layer adds the parts up, and one on the way
back adds up the gradients of x (Shoeybi et al. 2019, Megatron-LM). It is torch's own: `ColwiseParallel` for rows of a
weight, `RowwiseParallel` for columns. Embedding and head are divided by tokens of the vocabulary
(train/parallel/vocabulary.py); norms and added positions are whole on every rank of the group.

Keys and values go with the queries that read them, so the group's size divides their heads. The model's code is the
same: an attention has fewer heads, a feed-forward fewer neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from glassformer.model.attention import Attention
from glassformer.model.feedforward import FeedForward
from glassformer.model.transformer import Transformer
from glassformer.seeds import derive
from glassformer.train.parallel.vocabulary import divide_vocabulary


@dataclass
class Divided:
    """What is to be known about a model whose layers are divided."""

    orders: dict[str, Tensor] = field(default_factory=dict)
    """Of weights whose rows were put in another order: where each stood before."""
    summed: list[str] = field(default_factory=list)
    """Whole weights of which each rank sees only its own heads' gradient."""


def divide(model: Transformer, mesh: DeviceMesh) -> Divided:
    """Leave this rank its heads and neurons. Every rank has built the same model, so nothing is exchanged."""
    found, count = Divided(), mesh.size()
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            _reorder(found, f"{name}.qkv", module.qkv, module.sizes, count)
            found.summed += [f"{name}.{norm}" for norm, _ in module.named_parameters() if "_norm." in norm]
            module.whole = False
            module.heads, module.kv_heads = module.heads // count, module.kv_heads // count
            module.sizes = [size // count for size in module.sizes]
            _own_noise(module, mesh.get_local_rank())
            _own_projection(module, mesh)
            styles: Any = {"qkv": ColwiseParallel(), "out": RowwiseParallel()}
        elif isinstance(module, FeedForward):
            neurons = module.down.in_features
            _reorder(found, f"{name}.up", module.up, [neurons] * (1 + module.gated), count)
            styles = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        else:
            continue
        parallelize_module(module, mesh, styles, src_data_rank=None)
    divide_vocabulary(model, mesh)
    if model.config.positions == "alibi":
        model.slopes = model.slopes.chunk(count)[mesh.get_local_rank()]
    return found


def _reorder(found: Divided, name: str, linear: nn.Linear, sizes: Sequence[int], count: int) -> None:
    """Rows of several matrices, so that each rank's part of all of them is in one piece."""
    if len(sizes) == 1:
        return
    places = [part.chunk(count) for part in torch.split(torch.arange(sum(sizes)), list(sizes))]
    order = torch.cat([part[rank] for rank in range(count) for part in places])
    for key, weight in linear.named_parameters():
        weight.data = weight.data[order.to(weight.device)]
        found.orders[f"{name}.{key}"] = order


def _own_projection(attention: Attention, mesh: DeviceMesh) -> None:
    """Cross-attention takes queries of one text and keys and values of another, by rows of one weight: here of the
    rank's own rows. `ColwiseParallel` does for the whole weight what is done here: x is all of it on every rank, and
    the parts of its gradient are added up."""

    def project(x: Tensor, rows: slice) -> Tensor:
        all_of_it = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        bias = None if qkv.bias is None else qkv.bias.to_local()[rows]
        return F.linear(all_of_it.to_local(grad_placements=[Partial()]), qkv.weight.to_local()[rows], bias)

    qkv: Any = attention.qkv
    attention.project = project  # type: ignore[method-assign] # for this model


def _own_noise(attention: Attention, rank: int) -> None:
    """Dropout inside an attention draws from a stream of the rank's own, as its heads are; everywhere else all ranks
    of the group draw the same."""
    if not attention.dropout:
        return
    forked = ExitStack()

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seed = int(torch.randint(2**62, ()))  # from the stream that all share
        device = given[0].device
        forked.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(derive(seed, "heads", rank))

    attention.register_forward_pre_hook(before)
    attention.register_forward_hook(lambda *given: forked.close(), always_call=True)
