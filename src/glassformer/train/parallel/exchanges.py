"""What ranks send each other, read from the operations themselves: c10d's, which FSDP2 and our own sums use, and the
functional ones of DTensor.

S bytes are the whole of what is exchanged in a group of n ranks: what each has before a sum, what each has after a
gathering. What one rank sends, with a ring (Patarasuk and Yuan 2009; the least that is possible):

    all-gather      S (n - 1) / n          every rank's n-th travels past all others
    reduce-scatter  S (n - 1) / n          the same, added up on the way
    all-reduce      2 S (n - 1) / n        reduce-scatter, then all-gather
    all-to-all      S (n - 1) / n          all but what stays here
    broadcast       S                      handed on, by all but the last

It receives as much. Groups are named as the mesh names its dimensions (`copies`, `shard`, ...); `all` is every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup, _resolve_process_group

_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
_KINDS = {
    "reduce_scatter": "reduce-scatter", "allgather": "all-gather", "all_gather": "all-gather",
    "allreduce": "all-reduce", "all_reduce": "all-reduce", "alltoall": "all-to-all", "all_to_all": "all-to-all",
    "broadcast": "broadcast",
}  # fmt: skip
"""By a part of the operation's name, the longest first."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange, as one rank takes part in it."""

    kind: str
    over: str
    """The dimension of the mesh."""
    ranks: int
    """How many ranks exchange."""
    payload_bytes: int
    """S."""

    @property
    def sent_bytes(self) -> int:
        """What this rank sends, with a ring."""
        if self.kind == "broadcast":
            return self.payload_bytes if self.ranks > 1 else 0
        once = self.payload_bytes * (self.ranks - 1) // self.ranks
        return 2 * once if self.kind == "all-reduce" else once


def read_exchange(func: Any, args: Sequence[Any], result: Any) -> Exchange | None:
    """The exchange that an operation is; None where it is none, or only waits for one."""
    if getattr(func, "namespace", "") not in _NAMESPACES:
        return None
    kind = next((kind for part, kind in _KINDS.items() if part in func.name()), None)
    if kind is None:
        return None
    group = _group(func, args)
    name = group.group_desc.removeprefix("mesh_")
    payload = max(sum(map(_bytes, tensors_in(part))) for part in (*args, result))
    return Exchange(kind, "all" if name == "default_pg" else name, group.size(), payload)


def totals(exchanges: Iterable[tuple[Exchange, int]]) -> list[dict[str, Any]]:
    """One row for each kind and group, with how many there are of it and their bytes, the most sent first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one, times in exchanges:
        row = rows.setdefault(
            (one.kind, one.over),
            {
                "kind": one.kind,
                "over": one.over,
                "ranks": one.ranks,
                "count": 0,
                "payload_bytes": 0,
                "sent_bytes": 0,
            },
        )
        row["count"] += times
        row["payload_bytes"] += times * one.payload_bytes
        row["sent_bytes"] += times * one.sent_bytes
    return sorted(rows.values(), key=lambda row: -row["sent_bytes"])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and lists of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _group(func: Any, args: Sequence[Any]) -> ProcessGroup:
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name == "process_group":
            return ProcessGroup.unbox(value)
        if argument.name == "group_name":
            return _resolve_process_group(value)
    raise AssertionError(f"{func} has no group")
