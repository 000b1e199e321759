"""What was seen in one forward pass: numbers by the names of their places.

    trace = look(loaded, "the cat sat", "blocks.*.attn.pattern")
    trace["blocks.0.attn.pattern"]                    (batch, head, query, key), see model/places.py
    trace["blocks.0.attn.hook_pattern"]               the same: TransformerLens's spelling

Only what was asked for is held; attention shows its numbers only in the layers where one of them was.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glassformer.errors import ModelError, UsageError, nearest
from glassformer.look.reading import Model, Reading, Text
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.places import canonical
from glassformer.run.manifest import free_memory_bytes
from glassformer.units import show_bytes
from glassformer.use.predict import Rows

Places = str | Sequence[str]
"""Names of places or patterns of them, `blocks.*.attn.pattern`."""


class Recorder:
    """A `see` that keeps what some places hold. `attached`: as parts of autograd's graph, to ask for gradients;
    else apart from it, and in memory of their own where they are views of more."""

    def __init__(self, known: Sequence[str], places: Places, *, attached: bool = False) -> None:
        self.seen: dict[str, Tensor] = {}
        self.attached = attached
        self._wanted = set(matching(known, places))

    def wants(self, name: str) -> bool:
        return name in self._wanted

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name in self._wanted:
            self.seen[name] = y if self.attached else _alone(y)
        return y


class Graph(Recorder):
    """A `Recorder` of places to ask for gradients. One that nothing before it asks for, such as a row of numbers from
    outside, joins the graph of autograd, which then begins there."""

    def __init__(self, known: Sequence[str], places: Places) -> None:
        super().__init__(known, places, attached=True)

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if self.wants(name) and not y.requires_grad:
            y = y.detach().requires_grad_()
        return super().__call__(name, y)


def matching(known: Sequence[str], places: Places) -> list[str]:
    """The known places that are meant, in their order. Raises UsageError with the nearest for one that is not."""
    found: set[str] = set()
    exact = set(known)
    for pattern in [places] if isinstance(places, str) else places:
        name = canonical(pattern)
        these = [name] if name in exact else fnmatch.filter(known, name)
        if not these:
            numbers = re.findall(r"(?<=\.)\d+(?=\.)", " ".join(known))
            layers = f"Its layers are 0 to {max(map(int, numbers))}." if numbers else ""
            raise UsageError(f"This model has no place {pattern!r}; {nearest(name, known)}", expected=layers)
        found.update(these)
    return [name for name in known if name in found]


class NotRecorded(UsageError, KeyError):
    """A KeyError as well, so that `in` and `get` work as on any mapping."""

    __str__ = Exception.__str__  # KeyError's shows the sentence in quotes


@dataclass(frozen=True, slots=True)
class Trace(Mapping[str, Tensor]):
    """Place -> its numbers, in the order of the forward pass."""

    reading: Reading = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    warnings: tuple[str, ...] = ()
    """What is wrong with the numbers, such as weights that are not finite."""

    def __getitem__(self, place: str) -> Tensor:
        name = canonical(place)
        if name not in self.tensors:
            raise NotRecorded(f"{place!r} was not recorded; {nearest(name, self.tensors)}")
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def ids(self) -> list[int]:
        return self.reading.ids

    @property
    def tokens(self) -> list[str]:
        return self.reading.tokens

    def axes(self, place: str) -> tuple[str, ...]:
        """What each axis of a place's tensor counts."""
        return self.reading.axes(place)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each place: its name, axes, shape, the range of the finite numbers in it, and how many are
        not finite (of `scores`, besides the masked)."""
        rows = []
        for name, tensor in self.tensors.items():
            finite = tensor.double()[tensor.isfinite()].cpu().numpy()
            masked = int(tensor.isneginf().sum()) if name.endswith(".scores") else 0
            of: dict[str, Callable[[NDArray[np.float64]], Any]] = {
                "mean": np.mean,
                "std": np.std,
                "min": np.min,
                "max": np.max,
            }
            numbers: dict[str, Any] = {
                key: float(f(finite)) if len(finite) else None for key, f in of.items()
            }
            numbers["not_finite"] = tensor.numel() - len(finite) - masked
            rows.append(
                {"place": name, "axes": list(self.axes(name)), "shape": list(tensor.shape), **numbers}
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All of it as lists; numbers that are not finite stay what they are."""
        network = isinstance(self.reading.model, Network)
        about = {} if network else {"ids": self.ids, "tokens": self.tokens}
        places = [
            {"place": name, "axes": list(self.axes(name)), "shape": list(y.shape), "values": y.tolist()}
            for name, y in self.tensors.items()
        ]
        about |= {"warnings": list(self.warnings), "places": places}
        return {"schema": "glassformer.trace", "version": 1, **about}


def look(
    model: Model, text: Text | Rows, places: Places | None = None, *, target: Text | None = None
) -> Trace:
    """Run the model over a text, or over ids, and keep what `places` hold (left out: the patterns of attention;
    of a plain network, which reads rows, everything). Dropout is off while looking. An encoder-decoder reads the
    text and writes `target`.

    Raises UsageError for a place that the model lacks (and names the nearest) and ModelError for a text that does
    not fit, or for places that would take more memory than is free (and says how much).
    """
    reading = Reading.of(model, text, target=target)
    known = reading.places()
    recorder = Recorder(known, places or [name for name in known if name.endswith("attn.pattern")] or "*")
    _check_memory(reading, [name for name in known if recorder.wants(name)])
    with torch.no_grad():
        output = reading.run(recorder)
    model = reading.model
    others = {
        one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers(), *reading.inputs)
    }
    held = {  # a weight that is a place of its own, such as all of the position vectors, may change later
        name: y.clone() if y.untyped_storage().data_ptr() in others else y
        for name, y in recorder.seen.items()
    }
    return Trace(reading, held, warnings(reading, output))


def shape(reading: Reading, place: str) -> tuple[int, ...]:
    """How large a place's tensor will be, before the pass."""
    sizes = _sizes(reading, *sides(place))
    return tuple(sizes[axis] for axis in reading.axes(place))


def sides(place: str) -> tuple[int, int]:
    """Where a place's positions and keys lie: 0 in the text that is read, -1 in the one that is written."""
    if place.startswith("layers."):  # a plain network's hidden layer, by its number
        return int(place.split(".")[1]), 0
    if place.startswith("encoder.") or place.endswith((".cross_attn.k", ".cross_attn.v")):
        return 0, 0
    return -1, 0 if ".cross_attn." in place else -1


def _sizes(reading: Reading, side: int, keys: int) -> dict[str, int]:
    """How long each axis is."""
    config = reading.model.config
    if not isinstance(config, ModelConfig):
        return {
            "row": len(reading.inputs[0]), "input": config.widths[0], "output": config.widths[-1],
            "neuron": config.widths[side + 1],
        }  # fmt: skip
    batch, positions = reading.inputs[side].shape
    return {
        "batch": batch, "position": positions, "query": positions, "key": reading.inputs[keys].shape[1],
        "next": positions - 1, "head": config.num_heads, "kv_head": config.num_kv_heads,
        "head_size": config.head_width, "width": config.width, "feedforward": config.ff_width,
        "vocab": config.vocab_size, "one": 1, "class": config.classes or 0,
    }  # fmt: skip


def _check_memory(reading: Reading, places: Sequence[str]) -> None:
    entry = next(reading.model.parameters()).element_size()
    sizes = {side: _sizes(reading, *side) for side in {sides(place) for place in places}}
    needed = entry * sum(
        math.prod(map(sizes[sides(place)].__getitem__, reading.axes(place))) for place in places
    )
    free = free_memory_bytes()
    if free is not None and needed > free:
        raise ModelError(
            f"These {len(places):,} places hold {show_bytes(needed)} for this text; {show_bytes(free)} are free.",
            do="Ask for fewer places, or give a shorter text.",
        )


def _alone(y: Tensor) -> Tensor:
    y = y.detach()
    return y if y.untyped_storage().nbytes() <= y.numel() * y.element_size() else y.clone()


def warnings(reading: Reading, output: Tensor) -> tuple[str, ...]:
    """What is wrong with the numbers of a pass: weights or outputs that are not finite."""
    found = not_finite(reading.model)
    if not found and not output.sum().isfinite() and (bad := int((~output.isfinite()).sum())):
        found.append(
            f"{bad:,} of the model's {output.numel():,} outputs are not finite, though its weights are."
        )
    return tuple(found)


def not_finite(model: torch.nn.Module) -> list[str]:
    """Which weights hold numbers that are not finite, and how many."""
    weights = dict(model.named_parameters())
    sums = torch.stack([weight.detach().sum(dtype=torch.float32) for weight in weights.values()])
    found = []
    for (name, weight), finite in zip(weights.items(), sums.isfinite().tolist(), strict=True):
        if not finite and (bad := int((~weight.isfinite()).sum())):
            found.append(f"{name}: {bad:,} of {weight.numel():,} weights are not finite.")
    return found
