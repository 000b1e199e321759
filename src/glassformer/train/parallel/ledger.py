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

import sys
import weakref
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed._tools.fake_collectives  # gives torch's exchanges shapes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from glassformer.model.block import Block
from glassformer.train.parallel.exchanges import Exchange, read_exchange, tensors_in

Kind = Literal["weights", "gradients", "optimizer", "batch", "activations", "loss", "gathered", "working"]
KINDS: tuple[Kind, ...] = (
    "weights", "gradients", "optimizer", "batch", "activations", "loss", "gathered", "working",
)  # fmt: skip
_FRAMES = 30
"""So far up the calls is looked for who makes a tensor."""
_LIFT = torch.ops.aten.lift_fresh.default
_SCALAR = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts while it is entered. Whoever runs the step says what begins, by `at`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moment = "beginning"
        self.now: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """Bytes held, by class."""
        self.most: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """The most that each class ever held."""
        self.at_peak: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """What was held when all together was most, ..."""
        self.peak_moment = "beginning"
        """... and when that was."""
        self.exchanges: list[Exchange] = []
        """In order."""
        self._entries: dict[int, _Entry] = {}
        self._resizable: dict[int, _Entry] = {}
        self._model: nn.Module | None = None
        self._inside, self._blocks, self._blocks_done, self._looked = 0, 0, 0, False

    def at(self, moment: str) -> None:
        """Something else goes on from here."""
        self._settle()
        self.moment, self._blocks_done, self._looked = moment, 0, False

    def begin(self) -> None:
        """Forget what was most, and what was sent: a step begins."""
        self._settle()
        self.most, self.at_peak = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self.exchanges.clear()

    @torch.no_grad()
    def tag(self, tensors: Iterable[Tensor | None], kind: Kind) -> None:
        """These are of that class."""
        for tensor in tensors:
            if tensor is not None:
                self._enter(_own(tensor), kind)

    def watch(self, model: nn.Module) -> None:
        """Know what FSDP2 gathers, and where the last layer ends, after which there is only the loss."""
        self._model = model
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
        kwargs = kwargs or {}
        given = [*tensors_in(args), *tensors_in(list(kwargs.values()))]
        if given and func is not _LIFT and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():  # which rank is where in a mesh: numbers that are needed
                return func(*args, **kwargs)
        self._resized(given)
        result = func(*args, **kwargs)
        exchange = read_exchange(func, args, result)
        if exchange is not None:
            self.exchanges.append(exchange)
            self.tag(tensors_in([*args, result]), "gathered")
        kind = self._kind()
        for tensor in tensors_in(result):
            if tensor.untyped_storage()._cdata not in self._entries and not _is_only_a_shape():
                self._enter(tensor, kind)
        return result

    def _kind(self) -> Kind:
        """Of what comes into being now."""
        if self.moment != "forward":
            return "working"
        behind = self._blocks and self._blocks_done >= self._blocks and not self._inside
        return "loss" if behind else "activations"

    @torch.no_grad()
    def _into(self, module: nn.Module, args: Any) -> None:
        looked_at = module if self._looked else self._model
        for weight in looked_at.parameters() if looked_at else ():
            own = _own(weight)
            entry = self._entries.get(own.untyped_storage()._cdata)
            if entry is not None and entry.kind != "weights":
                self._enter(own, "gathered")
        self._inside, self._looked = self._inside + 1, True

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
            self._resizable[key] = entry

    def _strike(self, key: int) -> None:
        self._settle()
        entry = self._entries.pop(key)
        self._resizable.pop(key, None)
        self.now[entry.kind] -= entry.size

    def _resized(self, used: Iterable[Tensor]) -> None:
        """FSDP2 empties storages, and fills them again, without an operation: look at those that it may have emptied,
        and at those that are used."""
        for key, entry in list(self._resizable.items()):
            storage = entry.held()
            if storage is not None and storage.nbytes() != entry.size:
                self._settle()
                self.now[entry.kind] += storage.nbytes() - entry.size
                entry.size = storage.nbytes()
            if not entry.size:
                del self._resizable[key]
        for tensor in used:
            storage = tensor.untyped_storage()
            known = self._entries.get(storage._cdata)
            if known is not None and storage.nbytes() != known.size:
                self._enter(tensor, "gathered")

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


def _own(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_only_a_shape() -> bool:
    """Whether DTensor is finding out what shape the whole of a result has, for which it makes whole tensors where no
    numbers are needed. Real ranks do so too; this is how to tell."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame.f_code.co_name.startswith("_propagate_tensor_meta"):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def _device(tensor: Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
