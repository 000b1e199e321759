"""Integrated gradients: what each token adds to an answer (Sundararajan, Taly and Yan 2017).

    A_i = (x_i - x'_i) * integral over a from 0 to 1 of dF/dx_i (x' + a (x - x')) da
    sum_i A_i = F(x) - F(x')                        completeness: nothing is left over, nothing made up

x are the vectors of the tokens that are read (the place `embed`), x' those of a baseline that says nothing, F the log
probability of one token (or class; of a plain network's numbers the number itself). The integral is Gauss-Legendre
quadrature: a sum over `steps` points, exact for polynomials of degree 2 steps - 1, and what captum computes by default.

What quadrature misses is known exactly, on every piece [a, b] of the line: the parts must sum to F(b) - F(a). While the
pieces' gaps exceed 1 % of F(x) - F(x') together, the worst piece is halved, until `most_steps` points are used.

The baseline decides how hard that is. In a model with RMSNorm and without biases F jumps near vectors of zeros, since a
norm blows up what is nearly nothing, layer after layer; SmolLM2-135M is not closed from there with 2,048 points. So the
baseline is the token that ends a text, in every place, where the tokenizer has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer import charts
from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import class_names, class_number, one_row, position_of, token_id
from glassformer.look.reading import Model, Reading, Text, wide
from glassformer.look.straight_line import Line
from glassformer.look.trace import Recorder
from glassformer.look.visible import visible
from glassformer.model.mlp import Network
from glassformer.model.places import chained
from glassformer.model.stacks import Encoder
from glassformer.use.predict import Predictor, Rows

Baseline = str | int | Sequence[int] | Sequence[float]
CLOSED = 0.01
"""A gap up to this part of F(x) - F(x') counts as closed."""
_LOGITS_AT_ONCE = 2**24
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Integrated:
    """What each token (of a plain network: each input) adds to one answer."""

    reading: Reading = field(repr=False)
    answer: str
    """What F is of: a token, a class, an output."""
    position: int | None
    """Of the token after which F's token would stand (in an encoder: at which); None where F is of the whole row."""
    attributions: Mapping[str, Tensor] = field(repr=False)
    """Place -> (position, width) parts of F(x) - F(x'); of a plain network (input)."""
    value: float
    """F(x)."""
    baseline_value: float
    """F(x')."""
    steps: int
    """Points of the line that were visited."""
    pieces: int
    """Into which the line was divided for it; 1 where plain quadrature was enough."""
    baseline: str
    """What x' are the vectors of."""
    labels: Mapping[str, Sequence[str]] = field(repr=False)

    @property
    def gap(self) -> float:
        """sum of A - (F(x) - F(x')): what quadrature missed."""
        return sum(float(each.sum()) for each in self.attributions.values()) - (
            self.value - self.baseline_value
        )

    @property
    def relative_gap(self) -> float:
        """|gap| / |F(x) - F(x')|."""
        difference = abs(self.value - self.baseline_value)
        return abs(self.gap) / difference if difference else float("inf") if self.gap else 0.0

    @property
    def complete(self) -> bool:
        """Whether the gap is at most 1 %."""
        return self.relative_gap <= CLOSED

    @property
    def verdict(self) -> str:
        """In one sentence."""
        advice = "" if self.complete else " Take more steps, or another baseline."
        return (
            f"The parts sum to {self.value - self.baseline_value + self.gap:.4f}; F(text) - F(baseline) = "
            f"{self.value:.4f} - {self.baseline_value:.4f}; gap {self.gap:.2g} ({self.relative_gap:.2%}), "
            f"{self.steps:,} steps from baseline {self.baseline!r}.{advice}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row for each token in order: `position`, `token`, `attribution`; for a pair also its `side`, for a plain
        network `input` instead."""
        found = []
        for place, tensor in self.attributions.items():
            side = {"encoder.embed": {"side": "read"}, "decoder.embed": {"side": "written"}}.get(place, {})
            for at, part in enumerate(tensor.double().reshape(len(tensor), -1).sum(1).tolist()):
                label = self.labels[place][at]
                what = {"input": label} if place == "inputs" else {"position": at, "token": label}
                found.append({**side, **what, "attribution": part})
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "answer": self.answer, "position": self.position, "value": self.value,
            "baseline_value": self.baseline_value, "gap": self.gap, "relative_gap": self.relative_gap,
            "complete": self.complete, "steps": self.steps, "pieces": self.pieces, "baseline": self.baseline,
            "attributions": self.rows(),
        }  # fmt: skip

    def chart(self) -> charts.Spec:
        """A bar for each token."""
        rows = [
            {
                "name": " ".join(
                    visible(str(row[key])) for key in ("side", "position", "token", "input") if key in row
                ),
                "attribution": row["attribution"],
            }
            for row in self.rows()
        ]
        title = f"What speaks for {visible(self.answer)}, and what against it"
        return charts.bars(
            rows, "name", "attribution", title=title, value_title="part of F(x) - F(baseline) (nats)"
        )


def integrated_gradients(
    model: Model,
    text: Text | Rows,
    *,
    position: int = -1,
    token: int | str | None = None,
    baseline: Baseline | None = None,
    steps: int = 64,
    most_steps: int = 1024,
    target: Text | None = None,
) -> Integrated:
    """Divide the log probability of `token` at `position` among the tokens that were read.

    `token` is an id, or text that is one token; of a classifier a class, of a plain network an output; left out, what
    the model finds likeliest. An encoder-decoder reads the text and has written `target`.

    `baseline` is "zero" (vectors of zeros), an id that stands in every place, or the ids of a whole row (numbers, of a
    plain network); of an encoder-decoder "zero" or one id. Left out, the id that ends a text, or "zero" where there is
    none. `steps` points are visited, and up to `most_steps` where the gap is above 1 %; with `most_steps` 0 never more.

    Raises UsageError for what does not fit, and where several rows are given.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}.", expected="At least 1.")
    reading = Reading.of(model, text, target=target)
    one_row(reading, "an answer's division")
    answer = _Answer.of(reading, position)
    with torch.no_grad():
        start = Recorder(reading.places(), answer.vectors)
        scores = answer.scores(reading, start)
        number = int(scores[0].argmax()) if token is None else answer.number(token)
        value = float(scores[0, number])
        x = {place: start.seen[place] for place in answer.vectors}
        if baseline is None:
            baseline = "zero" if reading.tokenizer is None else reading.tokenizer.end_of_text
        nothing = _baseline(reading, x, baseline)
        baseline_value = float(answer.scores(reading, _Instead(nothing))[0, number])
    line = Line(
        lambda there: answer.scores(_repeated(reading, there), _Instead(there))[:, number],
        nothing,
        x,
        at_once=max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // answer.scores_a_row)),
    )
    tolerance = CLOSED * abs(value - baseline_value)
    pieces, used = line.pieces(steps, max(steps, most_steps), baseline_value, value, tolerance)
    return Integrated(
        reading,
        answer.name(number),
        answer.position,
        {place: torch.stack([piece.parts[place] for piece in pieces]).sum(0) for place in x},
        value,
        baseline_value,
        used,
        len(pieces),
        reading.words([baseline])[0]
        if isinstance(baseline, int)
        else "zero"
        if baseline == "zero"
        else "given",
        {place: _labels(model, reading, place) for place in x},
    )


def _repeated(reading: Reading, vectors: Mapping[str, Tensor]) -> Reading:
    """The same row as often as there are vectors to put in its place."""
    count = len(next(iter(vectors.values())))
    return replace(reading, inputs=tuple(each.expand(count, -1) for each in reading.inputs))


class _Instead:
    """A `see` that puts other vectors in place of the tokens' own."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        self.vectors = vectors

    def wants(self, name: str) -> bool:
        return name in self.vectors

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        return self.vectors.get(name, y)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Which number of the model's answer is F."""

    place: str
    vectors: tuple[str, ...]
    """The places that are moved along the line."""
    position: int | None
    scores_a_row: int
    names: Sequence[str] | None
    reading: Reading

    @classmethod
    def of(cls, reading: Reading, position: int) -> _Answer:
        config = reading.model.config
        plain = isinstance(reading.model, Network)
        if plain or (isinstance(reading.model, Encoder) and config.head == "classes"):
            if position != -1:
                raise UsageError(f"position {position} has no effect where the answer is of the whole row.")
            if plain:
                names = reading.outputs or tuple(map(str, range(config.widths[-1])))  # type: ignore[union-attr]
                return cls("scores", ("inputs",), None, len(names), names, reading)
            known = class_names(reading)
            return cls("class_logits", ("embed",), None, reading.inputs[0].numel(), known, reading)
        if "logits" not in reading.places():
            raise ModelError(
                "This encoder gives out vectors, no answers.", expected="A head 'tokens' or 'classes'."
            )
        pair, length = len(reading.inputs) == 2, reading.inputs[-1].shape[1]
        vectors = ("encoder.embed", "decoder.embed") if pair else ("embed",)
        scores = length * config.vocab_size  # type: ignore[union-attr]
        return cls("logits", vectors, position_of(reading, position), scores, None, reading)

    def scores(self, reading: Reading, see: Any) -> Float[Tensor, "row answer"]:
        """log p of every answer; of a plain network's yes and no log p of yes, of its numbers the numbers."""
        end = Recorder([self.place], self.place, attached=True)
        reading.run(chained(see, end))
        found = end.seen[self.place]
        found = found if self.position is None else found[:, self.position]
        found = wide(found)
        head = reading.model.config.head
        if head == "number":
            return found
        return torch.nn.functional.logsigmoid(found) if head == "scores" else found.log_softmax(-1)

    def number(self, token: int | str) -> int:
        if self.names is not None:
            return class_number(token, self.names)
        return token_id(self.reading, token)

    def name(self, number: int) -> str:
        return self.reading.words([number])[0] if self.names is None else self.names[number]


def _baseline(reading: Reading, x: Mapping[str, Tensor], baseline: Any) -> dict[str, Tensor]:
    """What says nothing: place -> vectors as large as x's."""
    if isinstance(baseline, str):
        if baseline != "zero":
            raise UsageError(
                f"There is no baseline {baseline!r}.", expected='"zero", an id, or the ids of a row.'
            )
        return {place: torch.zeros_like(each) for place, each in x.items()}
    if isinstance(reading.model, Network):
        given = torch.as_tensor(baseline).to(x["inputs"]).reshape(1, -1)
        if given.shape != x["inputs"].shape:
            raise UsageError(
                f"The baseline has {given.numel()} numbers.", expected=f"{x['inputs'].shape[1]}."
            )
        return {"inputs": given}
    if not isinstance(baseline, int) and (len(x) > 1 or len(baseline) != reading.inputs[0].shape[1]):
        raise UsageError(
            f"The baseline has {len(baseline)} ids.",
            expected="One id." if len(x) > 1 else f"{reading.inputs[0].shape[1]}, one for each token.",
        )
    ids = [
        torch.full_like(row, baseline)
        if isinstance(baseline, int)
        else torch.tensor([list(baseline)]).to(row)
        for row in reading.inputs
    ]
    other = Recorder(reading.places(), list(x))
    replace(reading, inputs=tuple(ids)).run(other)
    return {place: other.seen[place] for place in x}


def _labels(model: Model, reading: Reading, place: str) -> Sequence[str]:
    if place == "inputs":
        named = model.columns.input_names if isinstance(model, Predictor) else None
        return named or [str(at) for at in range(reading.inputs[0].shape[1])]
    return reading.source_tokens if place == "encoder.embed" else reading.tokens
