"""What every attention head does: the scores of `look/head_scores.py` for each layer and head.

    found = heads(loaded, "the cat sat on the mat")
    found.ranked("induction", top=5)             the heads that continue what came before
    found.scores["blocks"]["induction"]          (layer, head)
    found.first_half, found.second_half          loss on random tokens, and on the same tokens again

Three things are read: `repeats` rows of `length` random tokens, each row twice in a row of the batch; as many rows
of random tokens once; and the text, from which first_token to entropy come. Without a text these come from the
random rows too. The random tokens of a row all differ, so that each has one earlier copy; special tokens are not
among them, and nothing stands before them (an encoder reads them framed, an encoder-decoder writes them after its
start token while it reads other random tokens, as it was trained to). The rows follow from `seed`.

A score of random rows is a mean over rows; `spread` is the standard deviation between them. Of every pattern only
the scores are kept, so it needs no more memory than a pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError, nearest
from glassformer.look.head_scores import READ, REPEATED, Attention, Copies, Pattern, Positional, attentions
from glassformer.look.parts import head_name
from glassformer.look.random_rows import RandomRows
from glassformer.look.reading import Model, Reading, Text
from glassformer.model.mlp import Network
from glassformer.use.predict import Predictor

REPEATS = 16

Scores = Mapping[str, Mapping[str, Float[Tensor, "layer head"]]]
"""Attention (`blocks`; of an encoder-decoder `encoder`, `decoder`, `cross`) -> score -> its value for each head."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Scores of every head, and the loss that goes with them."""

    scores: Scores = field(repr=False)
    spread: Scores = field(repr=False)
    """Standard deviation between the rows, of the scores that come from repeated tokens; NaN with one row."""
    first_half: float | None
    """Loss on the random tokens, nats a token; None of an encoder, which does not write."""
    second_half: float | None
    """Loss on the same tokens again. The first of them is not counted: nothing says that a copy begins."""
    repeats: int
    length: int
    seed: int
    tokens: tuple[str, ...] | None = field(default=None, repr=False)
    """The text, token by token."""

    def names(self) -> list[str]:
        """The scores there are, in the order of a row."""
        return list(dict.fromkeys(name for each in self.scores.values() for name in each))

    def measured_on(self, score: str) -> str:
        """`repeated tokens`, `random tokens` or `the text`."""
        if score in REPEATED:
            return "repeated tokens"
        return "random tokens" if score not in READ or self.tokens is None else "the text"

    def named(self, measured_on: str) -> str | None:
        """The scores that come from there, in words; None where none does."""
        return ", ".join(name for name in self.names() if self.measured_on(name) == measured_on) or None

    def rows(self) -> list[dict[str, Any]]:
        """One for each head; a score that makes no sense of it, or of so short a text, is None."""
        return [
            {"name": _name(attention, layer, head), "attention": attention, "layer": layer, "head": head}
            | {score: _number(self.scores[attention], score, layer, head) for score in self.names()}
            for attention, layer, head in self._each()
        ]

    def ranked(self, by: str | None = None, *, top: int | None = None) -> list[dict[str, Any]]:
        """The rows with the highest value of a score first, which stands right after the name, with its spread
        where it has one. `by` left out: induction, or of an encoder previous_token."""
        by = self._known(by)
        spread = {
            _name(*place): _number(self.spread[place[0]], by, place[1], place[2])
            for place in self._each()
            if by in self.spread[place[0]]
        }
        rows = sorted((row for row in self.rows() if row[by] is not None), key=lambda row: -row[by])
        return [
            {"name": row["name"], by: row[by]}
            | ({"spread": spread[row["name"]]} if row["name"] in spread else {})
            | {key: value for key, value in row.items() if key not in ("name", by)}
            for row in rows[:top]
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "glassformer.heads",
            "version": 1,
            "repeats": self.repeats,
            "length": self.length,
            "seed": self.seed,
            "first_half": self.first_half,
            "second_half": self.second_half,
            "measured_on": {score: self.measured_on(score) for score in self.names()},
            "tokens": None if self.tokens is None else list(self.tokens),
            "heads": self.rows(),
        }

    def chart(self, by: str | None = None) -> charts.Spec:
        """Layers x heads, coloured by one score."""
        by = self._known(by)
        lines = list(dict.fromkeys(place[:2] for place in self._each() if by in self.scores[place[0]]))
        cells = [
            {"head": row["head"], "layer": lines.index((row["attention"], row["layer"])), by: row[by]}
            | {"words": f"{row[by]:.2f}" if row[by] is not None and row[by] >= 0.005 else ""}
            for row in self.rows()
            if (row["attention"], row["layer"]) in lines
        ]
        num_heads = 1 + max(cell["head"] for cell in cells)
        several = len(self.scores) > 1
        return charts.heatmap(
            cells, "head", "layer", by,
            y_labels=[f"{attention} {layer}" if several else str(layer) for attention, layer in lines],
            title=f"{by.replace('_', ' ')}, measured on {self.measured_on(by)}", value_title=by.replace("_", " "),
            words="words" if num_heads <= 16 else None, size=(38 * min(max(num_heads, 4), 20), 22 * len(lines)),
        )  # fmt: skip

    def _known(self, by: str | None) -> str:
        names = self.names()
        if by is not None and by not in names:
            raise UsageError(f"There is no score {by!r} of these heads; {nearest(by, names)}")
        if by is None:
            return "induction" if "induction" in names else names[0]
        return by

    def _each(self) -> list[tuple[str, int, int]]:
        shapes = {attention: next(iter(found.values())).shape for attention, found in self.scores.items()}
        return [
            (attention, layer, head)
            for attention, (layers, num_heads) in shapes.items()
            for layer in range(layers)
            for head in range(num_heads)
        ]


def heads(
    model: Model,
    text: Text | None = None,
    *,
    target: Text | None = None,
    repeats: int = REPEATS,
    length: int | None = None,
    seed: int = 0,
) -> Heads:
    """Scores of every attention head (`look/head_scores.py` has the formulas), on a text and on random tokens.

    `repeats` rows of `length` random tokens are read; left out, it is 50, or as many as the context and the
    vocabulary allow. Raises UsageError for a model without attention, and where a text or `length` does not fit.
    """
    if isinstance(model, Predictor | Network):
        raise UsageError("A plain network has no attention heads.", expected="Expected a Transformer.")
    parts = attentions(model.config)
    if not parts:
        raise UsageError("This model has no layers, so no attention heads.")
    if target is not None and text is None:
        raise UsageError("A target was given and no text.", do="Give the text that it belongs to.")
    reading = None if text is None else Reading.of(model, text, target=target)
    if reading is not None and min(row.shape[1] for row in reading.inputs) < 2:
        raise UsageError("The text has 1 token.", expected="Expected at least 2.", do="Give more, or none.")
    rows = RandomRows.of(model, repeats, length, seed)
    twice, once, read = _Twice(parts, rows), _Read(parts), _Read(parts)
    with torch.no_grad():
        for batch in rows.readings(2):
            batch.run(twice)
        for batch in rows.readings(1):
            batch.run(once)
        if reading is not None:
            reading.run(read)
    first, second = twice.halves()
    return Heads(
        scores={part.name: _table(part, twice, once, once if reading is None else read) for part in parts},
        spread={part.name: _spread(twice, part) for part in parts},
        first_half=first, second_half=second, repeats=repeats, length=rows.length, seed=seed,
        tokens=None if reading is None else tuple(reading.tokens),
    )  # fmt: skip


class _Pass(ABC):
    """A `see` that keeps the scores of every pattern, and not the pattern."""

    def __init__(self, parts: Sequence[Attention]) -> None:
        self.parts = {place: part for part in parts for place in part.places}
        self.found: dict[tuple[str, str], list[Float[Tensor, "batch head"]]] = defaultdict(list)

    def wants(self, name: str) -> bool:
        return name in self.parts

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name in self.parts:
            self.score(name, self.parts[name], y)
        return y

    @abstractmethod
    def score(self, place: str, part: Attention, pattern: Pattern) -> None: ...

    def rows(self, part: Attention, score: str) -> Float[Tensor, "layer batch head"]:
        """A score of every row."""
        layers = [torch.cat(self.found[place, score]) for place in part.places]
        return torch.stack(layers).double().cpu()


class _Twice(_Pass):
    """Over rows that hold random tokens twice."""

    def __init__(self, parts: Sequence[Attention], rows: RandomRows) -> None:
        super().__init__(parts)
        self.random = rows
        self.losses: list[Float[Tensor, "batch next"]] = []

    def wants(self, name: str) -> bool:
        return name == "loss" or super().wants(name)

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name == "loss":
            self.losses.append(y)
        return super().__call__(name, y)

    def score(self, place: str, part: Attention, pattern: Pattern) -> None:
        copies = Copies(self.random.start(part.name), self.random.length)
        for score in part.scores:
            if score in REPEATED:
                self.found[place, score].append(REPEATED[score](pattern, copies))

    def halves(self) -> tuple[float, float] | tuple[None, None]:
        """Mean loss on the tokens when they come first and when they come again, but for the first of each."""
        if not self.losses:
            return None, None
        start, length = self.random.start("decoder"), self.random.length
        losses = torch.cat(self.losses).double()
        first, second = (losses[:, begin : begin + length - 1] for begin in (start, start + length))
        return first.mean().item(), second.mean().item()


class _Read(_Pass):
    """Over a text, or over random tokens that come once."""

    def __init__(self, parts: Sequence[Attention]) -> None:
        super().__init__(parts)
        self.positional: dict[str, Positional] = defaultdict(Positional)

    def score(self, place: str, part: Attention, pattern: Pattern) -> None:
        for score in part.scores:
            if score in READ:
                self.found[place, score].append(READ[score](pattern, part.kind))
        if "positional" in part.scores:
            self.positional[place].add(pattern, part.kind)


def _table(
    part: Attention, twice: _Twice, once: _Read, read: _Read
) -> dict[str, Float[Tensor, "layer head"]]:
    found = {}
    for score in part.scores:
        if score == "positional":
            found[score] = torch.stack([once.positional[place].score() for place in part.places]).cpu()
        else:
            found[score] = (twice if score in REPEATED else read).rows(part, score).mean(1)
    return found


def _spread(twice: _Twice, part: Attention) -> dict[str, Float[Tensor, "layer head"]]:
    rows = {score: twice.rows(part, score) for score in part.scores if score in REPEATED}
    one = twice.random.num_rows == 1
    return {s: torch.full_like(each[:, 0], math.nan) if one else each.std(1) for s, each in rows.items()}


def _name(attention: str, layer: int, head: int) -> str:
    short = head_name(layer, head)
    return short if attention == "blocks" else f"{attention} {short}"


def _number(scores: Mapping[str, Tensor], score: str, layer: int, head: int) -> float | None:
    value = scores[score][layer, head].item() if score in scores else math.nan
    return value if math.isfinite(value) else None
