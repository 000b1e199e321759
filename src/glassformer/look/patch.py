"""Activation patching: which numbers inside a model carry what it says (Vig et al. 2020; Meng et al. 2022).

    m_clean    the metric on a clean text
    m_corrupt  the metric on a corrupt text with as many tokens
    m_put      the metric on the corrupt text, with one part of one layer as it was in the clean run
    recovered = (m_put - m_corrupt) / (m_clean - m_corrupt)          0: as corrupt, 1: as clean

A part is one position, one head, or (by="layer") all a place holds. The metric is a logit difference, answer minus
instead; of "loss", the mean of -log p of the clean text's tokens (of an encoder-decoder, of the target's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.asked import one_row
from glassformer.look.measure import Measure, Question, Token, token_losses
from glassformer.look.reading import Model, Reading, Text
from glassformer.look.replace import Put, record, sweep
from glassformer.look.trace import Places, matching, sides

By = Literal["position", "head", "layer"]
"""What is put in at a time: one position of a place, one head, or all of it."""

_AXES: dict[By, tuple[str, ...]] = {
    "position": ("position", "query"),
    "head": ("head", "kv_head"),
    "layer": (),
}


@dataclass(frozen=True, slots=True)
class Patched:
    """How much of the clean metric each part brings back."""

    metric: str
    answer: str | None
    instead: str | None
    clean: float
    """The metric on the clean text."""
    corrupt: float
    by: By
    places: tuple[str, ...]
    values: Float[Tensor, "place part"]
    """The metric after each part was put in."""
    clean_tokens: tuple[str, ...]
    """Of the row that the places belong to."""
    corrupt_tokens: tuple[str, ...]

    @property
    def recovered(self) -> Float[Tensor, "place part"]:
        """0: as corrupt, 1: as clean; NaN where the two runs do not differ."""
        span = self.clean - self.corrupt
        return (self.values - self.corrupt) / (span if span else torch.nan)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each place and part: `value` is the metric, `recovered` its share of the way to clean."""
        recovered = self.recovered.tolist()
        return [
            {
                "place": place,
                "layer": _layer(place),
                **({} if self.by == "layer" else {self.by: part}),
                **({"token": self.labels[part]} if self.by == "position" else {}),
                "value": value,
                "recovered": recovered[row][part],
            }
            for row, place in enumerate(self.places)
            for part, value in enumerate(self.values[row].tolist())
        ]

    @property
    def labels(self) -> list[str]:
        """A name for each part: clean token, and corrupt one where it differs."""
        if self.by != "position":
            return [f"H{part}" for part in range(self.values.shape[1])] if self.by == "head" else ["all"]
        return [
            a if a == b else f"{a} / {b}" for a, b in zip(self.clean_tokens, self.corrupt_tokens, strict=True)
        ]

    @property
    def names(self) -> list[str]:
        """A name for each place: the layer's number where all are of one kind."""
        kinds = {_kind(place) for place in self.places}
        return [
            place.removeprefix("blocks.") if len(kinds) > 1 else str(_layer(place)) for place in self.places
        ]

    def to_dict(self) -> dict[str, Any]:
        names = ("metric", "answer", "instead", "clean", "corrupt", "by")
        tokens = {"clean_tokens": list(self.clean_tokens), "corrupt_tokens": list(self.corrupt_tokens)}
        return {**{name: getattr(self, name) for name in names}, **tokens, "rows": self.rows()}

    def chart(self) -> charts.Spec:
        """Places down, parts across, white for no effect."""
        cells = [
            {"part": part, "place": row, "recovered": value}
            for row, values in enumerate(self.recovered.tolist())
            for part, value in enumerate(values)
        ]
        height, width = 40 + 18 * len(self.places), max(180, 60 + 34 * self.values.shape[1])
        return charts.heatmap(
            cells, "part", "place", "recovered", diverging=True, labels=self.labels, y_labels=self.names,
            title=f"Recovered by {_kind(self.places[0])}" if self.single else "Recovered",
            x_title={"position": "token (clean / corrupt)", "head": "head", "layer": ""}[self.by],
            y_title="layer" if self.single else "place", size=(width, height),
        )  # fmt: skip

    @property
    def single(self) -> bool:
        """Whether all places are of one kind."""
        return len({_kind(place) for place in self.places}) == 1


def patch(
    model: Model,
    clean: Text,
    corrupt: Text,
    *,
    places: Places | None = None,
    metric: tuple[Token, Token] | Literal["loss"] | None = None,
    by: By | None = None,
    target: Text | None = None,
    at: int | None = None,
) -> Patched:
    """Run the corrupt text, and put in the clean run's numbers, one part of one place at a time.

    `places` left out are all blocks' `resid_pre` (of an encoder-decoder the encoder's). `metric` is (answer,
    instead); left out, what each of the two texts itself makes the model say. `by` left out goes by head where a
    place has heads and by position elsewhere. `at` is the position that answers, see `Question`.
    Raises UsageError for texts of different length, and shows both as tokens.
    """
    asked = Question.of(model, clean, target=target, at=at)
    other = Question.of(model, corrupt, target=target, at=at)
    _same_length(asked.reading, other.reading)
    known = asked.reading.places()
    stack = "encoder" if "encoder.embed" in known else "blocks"
    chosen = matching(known, places or f"{stack}.*.resid_pre")
    unit, axis_of = _parts(chosen, asked.reading, by)
    clean_seen, clean_output = record(asked.reading, chosen)
    corrupt_seen, corrupt_output = record(other.reading, chosen)
    answer, instead = _answers(asked, metric, clean_output, corrupt_output)
    before, clean_value = (_measure(asked, answer, instead)(y) for y in (corrupt_output, clean_output))
    num_parts = {_count(clean_seen[place], axis_of[place]) for place in chosen}
    if len(num_parts) > 1 or (unit == "position" and len({sides(place)[0] for place in chosen}) > 1):
        raise UsageError(
            f"These places count different {unit}s: {', '.join(chosen[:1] + chosen[-1:])}.",
            do="Patch them one kind at a time.",
        )
    cells = [
        (row, part)
        for row, place in enumerate(chosen)
        for part in range(min(num_parts))
        # where both runs hold the same numbers, as before the first token that differs, nothing can change
        if not _part(clean_seen[place], axis_of[place], part).equal(
            _part(corrupt_seen[place], axis_of[place], part)
        )
    ]
    edits = [[_put(chosen[row], clean_seen, axis_of, part)] for row, part in cells]
    values = before.cpu().double().repeat(len(chosen), min(num_parts))
    if edits:
        position = None if answer is None else asked.at
        measure = _measure(asked if answer is None else asked.alone(), answer, instead)
        found = sweep(other.reading, edits, measure, at=position)[:, 0].cpu().double()
        for (row, part), value in zip(cells, found, strict=True):
            values[row, part] = value
    if float(clean_value[0]) == float(before[0]):
        raise UsageError(
            f"After both texts the {'loss' if answer is None else 'difference'} is {float(before[0]):.4g}, "
            "so there is nothing to recover.",
            do="Give a corrupt text that changes what the model says.",
        )
    side = sides(chosen[0])[0]
    tokens = [each.words(each.inputs[side][0].tolist()) for each in (asked.reading, other.reading)]
    return Patched(
        "loss" if answer is None else "logit difference",
        None if answer is None else asked.name(answer), None if instead is None else asked.name(instead),
        float(clean_value[0]), float(before[0]), unit, tuple(chosen), values, tuple(tokens[0]), tuple(tokens[1]),
    )  # fmt: skip


def _answers(
    asked: Question, metric: tuple[Token, Token] | str | None, clean: Tensor, corrupt: Tensor
) -> tuple[int, int] | tuple[None, None]:
    """The two answers' numbers; none where the loss is the metric."""
    if isinstance(metric, str):
        if metric != "loss" or "loss" not in asked.reading.places():
            raise UsageError(
                f"There is no metric {metric!r} here.",
                expected="(answer, instead), two tokens; 'loss' of models that write.",
            )
        return None, None
    answer, instead = (
        (asked.best(clean), asked.best(corrupt))
        if metric is None
        else (asked.number(metric[0]), asked.number(metric[1]))
    )
    if answer == instead and metric is None:
        raise UsageError(
            f"After both texts the model says {asked.name(answer)!r}.",
            do="Name the answer and what would stand instead, or take the loss as the metric.",
        )
    if answer == instead:
        raise UsageError(f"The answer and what stands instead are both {asked.name(answer)!r}.")
    return answer, instead


def _measure(asked: Question, answer: int | None, instead: int | None) -> Measure:
    if answer is None or instead is None:
        ids = asked.reading.inputs[-1][:1]
        return lambda logits: token_losses(logits, ids).mean(-1)
    return asked.difference(answer, instead)


def _put(place: str, seen: dict[str, Tensor], axis_of: dict[str, tuple[str, int] | None], part: int) -> Put:
    axis = axis_of[place]
    return Put(place, seen[place], {axis[0]: [part]} if axis else {})


def _count(y: Tensor, axis: tuple[str, int] | None) -> int:
    return 1 if axis is None else y.shape[axis[1]]


def _parts(
    places: list[str], reading: Reading, by: By | None
) -> tuple[By, dict[str, tuple[str, int] | None]]:
    """What is put in at a time, and for each place the axis of it, by name and number."""
    first = reading.axes(places[0])
    unit: By = by or ("head" if {"head", "kv_head"} & set(first) else "position")
    found: dict[str, tuple[str, int] | None] = {}
    for place in places:
        axes = reading.axes(place)
        here = next((axis for axis in _AXES[unit] if axis in axes), None)
        if axes[0] != "batch" or (here is None and unit != "layer"):
            raise UsageError(
                f"{place} holds ({', '.join(axes)}).", expected=f"Patching by {unit} needs batch and {unit}."
            )
        found[place] = None if here is None else (here, axes.index(here))
    return unit, found


def _part(y: Tensor, axis: tuple[str, int] | None, part: int) -> Tensor:
    return y if axis is None else y.select(axis[1], part)


def _same_length(clean: Reading, corrupt: Reading) -> None:
    for reading in (clean, corrupt):
        one_row(reading, "patching")
    if clean.inputs[0].shape != corrupt.inputs[0].shape:
        texts = [each.words([int(i) for i in each.inputs[0][0]]) for each in (clean, corrupt)]
        raise UsageError(
            f"The texts have {len(texts[0])} and {len(texts[1])} tokens:\n"
            f"  clean    {'|'.join(texts[0])}\n  corrupt  {'|'.join(texts[1])}\n",
            do="Give texts of the same number of tokens, so that each position has its counterpart.",
        )


def _layer(place: str) -> int | None:
    return next((int(word) for word in place.split(".") if word.isdigit()), None)


def _kind(place: str) -> str:
    """The place without its layer's number."""
    return ".".join(word for word in place.split(".") if not word.isdigit() and word != "blocks")
