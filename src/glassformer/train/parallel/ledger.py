"""What a step holds in memory, byte by byte, while its tensors have shapes and no numbers.

Every operation is seen on its way (a dispatch mode, beneath autograd, FSDP and DTensor, so that what is seen is one
rank's own): a storage that comes into being is entered, one that nothing holds any more is struck out, and one that
FSDP empties or fills again is entered at its new size. What is held at the worst moment is the peak.

    weights      weights as this rank holds them, masters and fixed tables too
    gradients    theirs, as the optimiser takes them
    optimizer    what it remembers
    batch        the rows that are learned from
    activations  kept by the forward pass for the backward one, or in use in it
    loss         logits, and what else is made after the last layer
    gathered     weights that others hold, while a block is computed; what is being sent and received
    working      the rest: gradients on their way back, what the update makes

Bytes are those of the tensors: an allocator rounds them up and has holes, kernels and the communication library have
memory of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed._tools.fake_collectives  # noqa: F401 # gives torch's exchanges shapes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from glassformer.model.block import Block
from glassformer.train.parallel.exchanges import Exchange, read_exchange, tensors_in

Kind = Literal["weights", "gradients", "optimizer", "batch", "activations", "loss", "gathered", "working"]
KINDS: tuple[Kind, ...] = (
    "weights", "gradients", "optimizer", "batch", "activations", "loss", "gathered", "working",
)  # fmt: skip
_SCALAR = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default


class Ledger(TorchDispatchMode):
    """Counts while it is entered. Whoever runs the step says what begins, by `at`."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = "beginning"
        self.now: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """Bytes held, by class."""
        self.most: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """The most that each class ever held."""
        self.at_peak: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """What was held when all together was most, ..."""
        self.peak_moment = "beginning"
        """... and when that was."""
        self.exchanges: list[tuple[str, Exchange]] = []
        """In order, each with its moment."""
        self._entries: dict[int, _Entry] = {}
        self._emptied: dict[int, _Entry] = {}
        self._inside, self._blocks, self._blocks_done = 0, 0, 0

    def at(self, moment: str) -> None:
        """Something else goes on from here."""
        self._settle()
        self.moment, self._blocks_done = moment, 0

    def begin(self) -> None:
        """Forget what was most, and what was sent: a step begins."""
        self._settle()
        self.most, self.at_peak = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self.exchanges.clear()

    def tag(self, tensors: Iterable[Tensor | None], kind: Kind) -> None:
        """These are of that class."""
        for tensor in tensors:
            if tensor is not None:
                self._enter(tensor.to_local() if isinstance(tensor, DTensor) else tensor, kind)

    def watch(self, model: nn.Module) -> None:
        """Know where the last layer ends, after which there is only the loss."""
        parts = [child for child in model.children() if not isinstance(child, nn.ModuleList)]
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        self._blocks = len(blocks)
        for module in (*parts, *blocks):
            module.register_forward_pre_hook(self._into)
            module.register_forward_hook(self._out_of)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # so that its parts come through here, and its exchanges
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is _SCALAR and isinstance(args[0], FakeTensor):  # what is decided by a number is decided by 1
            return 1.0 if args[0].is_floating_point() else 1
        self._resized()
        result = func(*args, **(kwargs or {}))
        exchange = read_exchange(func, args, result)
        if exchange is not None:
            self.exchanges.append((self.moment, exchange))
            self.tag(tensors_in([*args, result]), "gathered")
        elif getattr(func, "namespace", "") == "fsdp":
            self.tag(tensors_in((kwargs or {}).get("out")), "gathered")
        for tensor in tensors_in(args):
            if not isinstance(tensor, FakeTensor):
                self._enter(tensor, "batch")
        kind = self._kind()
        for tensor in tensors_in(result):
            if tensor.untyped_storage()._cdata not in self._entries:
                self._enter(tensor, kind)
        return result

    def _kind(self) -> Kind:
        """Of what comes into being now."""
        if self.moment != "forward":
            return "working"
        behind = self._blocks and self._blocks_done >= self._blocks and not self._inside
        return "loss" if behind else "activations"

    def _into(self, module: nn.Module, args: Any) -> None:
        self._inside += 1

    def _out_of(self, module: nn.Module, args: Any, result: Any) -> None:
        self._inside -= 1
        self._blocks_done += isinstance(module, Block)

    def _enter(self, tensor: Tensor, kind: Kind) -> None:
        """Its storage, as of this class from now on."""
        if isinstance(tensor, DTensor) or _device(tensor).type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        entry = self._entries.get(key)
        if entry is None:
            held = weakref.ref(storage, lambda _: self._strike(key))
            entry = self._entries[key] = _Entry(0, kind, held)
        self.now[entry.kind] -= entry.size
        entry.kind, entry.size = kind, storage.nbytes()
        self.now[kind] += entry.size
        if kind == "gathered":
            self._emptied[key] = entry

    def _strike(self, key: int) -> None:
        self._settle()
        entry = self._entries.pop(key)
        self._emptied.pop(key, None)
        self.now[entry.kind] -= entry.size

    def _resized(self) -> None:
        """FSDP empties storages without an operation: look at those that it may empty."""
        for key, entry in list(self._emptied.items()):
            storage = entry.held()
            if storage is not None and storage.nbytes() != entry.size:
                self._settle()
                self.now[entry.kind] += storage.nbytes() - entry.size
                entry.size = storage.nbytes()
            if not entry.size:
                del self._emptied[key]

    def _settle(self) -> None:
        """Something is about to become less: until here it only became more."""
        for kind, size in self.now.items():
            if size > self.most[kind]:
                self.most[kind] = size
        if sum(self.now.values()) > sum(self.at_peak.values()):
            self.at_peak, self.peak_moment = dict(self.now), self.moment


class _Entry:
    """One storage."""

    __slots__ = ("held", "kind", "size")

    def __init__(self, size: int, kind: Kind, held: weakref.ref[torch.UntypedStorage]) -> None:
        self.size, self.kind, self.held = size, kind, held


def _device(tensor: Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
