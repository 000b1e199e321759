"""A pass that begins at a later block and ends at one position: what a change to layer 20 needs, and no more.

    stream = record(reading, ["blocks.20.resid_pre"])       once
    resumed(reading, 20).run(see)                            with the stream put in at blocks.20.resid_pre

Every number is as in the whole pass: what is left out is what came before the change, and, with `Only`, the scores of
positions that nobody asked about.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glassformer.look.reading import Reading
from glassformer.model.places import See, wants
from glassformer.model.transformer import Transformer

_STACK = "blocks."


def layer_of(place: str) -> int:
    """The first block that a change at this place needs, of a model of one stack; else 0, a whole pass."""
    return int(place.split(".")[1]) if place.startswith(_STACK) else 0


def last_stream(known: Sequence[str]) -> str | None:
    """The stream that leaves the last block, where there is one; from there on nothing mixes positions."""
    return next((name for name in reversed(known) if name.endswith(".resid_post")), None)


def resumed(reading: Reading, layer: int) -> Reading:
    """The reading without the blocks before `layer`, for a model of one stack. Its embeddings are still computed, so
    `see` must put the stream in at `blocks.{layer}.resid_pre`; `Later` gives places their names in the whole model."""
    model = copy.copy(reading.model)
    blocks = model._modules["blocks"]
    assert isinstance(model, Transformer) and isinstance(blocks, nn.ModuleList)
    model._modules = {**model._modules, "blocks": nn.ModuleList(list(blocks)[layer:])}
    return replace(reading, model=model)


@dataclass(frozen=True, slots=True)
class Later:
    """`see` for a model whose first `layer` blocks are left out."""

    see: See
    layer: int

    def __call__(self, name: str, y: Any, /) -> Any:
        return self.see(self._whole(name), y)

    def wants(self, name: str) -> bool:
        return wants(self.see, self._whole(name))

    def _whole(self, name: str) -> str:
        if not name.startswith(_STACK):
            return name
        _, number, rest = name.split(".", 2)
        return f"{_STACK}{int(number) + self.layer}.{rest}"


@dataclass(frozen=True, slots=True)
class Only:
    """A `see` that lets one position go on from `place`, the last stream. The output then has that one position."""

    place: str
    position: int

    def wants(self, name: str) -> bool:
        return name == self.place

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        return torch.narrow(y, 1, self.position, 1) if name == self.place else y
