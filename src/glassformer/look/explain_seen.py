"""One prediction's numbers, seen in one pass, and what of them is shown: the ground that `explain`'s steps stand on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from glassformer.look.arithmetic import Line, Vector
from glassformer.look.reading import Reading
from glassformer.look.source import Source
from glassformer.model.block import Block
from glassformer.model.config import ModelConfig
from glassformer.model.norms import Norm
from glassformer.model.transformer import Transformer

_LONGEST_WORD = 14


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way: what happens, the formula, the formula with its numbers, and the line that computes it."""

    section: str
    title: str
    sentence: str
    formula: str
    lines: tuple[Line | Vector, ...]
    sources: tuple[Source, ...]
    """Where our code does it."""
    place: str | None = None
    """The place that holds the result, see `model/places.py`."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "title": self.title,
            "sentence": self.sentence,
            "formula": self.formula,
            "lines": [line.to_dict() for line in self.lines],
            "place": self.place,
            "sources": [{"at": str(source), "code": source.code} for source in self.sources],
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """The places' tensors of one pass, and the choices: which block, head, neuron, entry and position is shown."""

    reading: Reading
    tensors: dict[str, Tensor] = field(repr=False)
    stack: str
    """`blocks`, of an encoder-decoder `decoder`."""
    layer: int
    position: int
    heads: dict[str, int]
    """For `attn` and `cross_attn`."""
    neuron: int | None
    entry: int
    """Which entry of the residual stream is followed all the way."""
    answer: int | None
    """The token that should be predicted (of a classifier the class, None where none is given)."""

    def __call__(self, place: str) -> Tensor:
        """A place's tensor, of the one row there is."""
        tensor = self.tensors[place]
        return (tensor[0] if "batch" in self.reading.axes(place) else tensor).detach().cpu()

    def here(self, place: str) -> Float[Tensor, "*entry"]:
        """A place's numbers at the position shown."""
        return self(place)[self.position]

    def at(self, place: str) -> float:
        """The followed entry of a place at the position shown."""
        return float(self.here(place)[self.entry])

    def block(self, name: str) -> str:
        """A place of the block shown."""
        return f"{self.stack}.{self.layer}.{name}"

    def top(self, name: str) -> str:
        """A place before or after the blocks, which an encoder-decoder has twice."""
        return name if self.stack == "blocks" else f"{self.stack}.{name}"

    @property
    def model(self) -> Transformer:
        assert isinstance(self.reading.model, Transformer)
        return self.reading.model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def shown_block(self) -> Block:
        block = getattr(self.model, self.stack)[self.layer]
        assert isinstance(block, Block)
        return block

    @property
    def final_norm(self) -> Norm | None:
        norm = self.model.norm
        return norm if isinstance(norm, Norm) else None

    @property
    def last_vectors(self) -> str:
        """The place the head reads: the last norm's result, or with norms after the blocks the last block's."""
        pre = self.config.norm_place == "pre"
        return self.top("ln_final.normalized") if pre else f"{self.stack}.{self.config.layers - 1}.resid_post"

    def word(self, position: int, *, source: bool = False) -> str:
        """The token that stands there, in quotation marks, short."""
        ids = self.reading.inputs[0][0] if source else self.reading.inputs[-1][0]
        return self.quoted(int(ids[position]))

    def words(self, *, source: bool = False) -> list[str]:
        """Every token of the row, numbered."""
        ids = self.reading.inputs[0][0] if source else self.reading.inputs[-1][0]
        return [f"{self.quoted(int(i))} at {at}" for at, i in enumerate(ids)]

    def quoted(self, token: int) -> str:
        return quoted(self.reading.words([token])[0])


def quoted(word: str) -> str:
    """In quotation marks, on one line, no longer than needed to know it by."""
    return json.dumps(word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}…", ensure_ascii=False)


def weight_at(weight: Tensor, *index: int) -> float:
    return float(weight.detach()[index])


def bias_at(bias: Tensor | None, index: int) -> float | None:
    return None if bias is None else float(bias.detach()[index])
