"""One number for what a model says, so that a change inside it can be judged.

    logit difference = logit(answer) - logit(instead)        at one position
    probability      = softmax(logits)[answer]               at one position
    loss             = mean of -log p(next token)            over a text, in nats

The position is the last of the row; of an encoder with scores of tokens it is the one hidden token. A classifier has
one answer for a row: there an answer is a class, by its name or number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import class_names, class_number, position_of, token_id
from glassformer.look.reading import Model, Reading, Text, wide
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import Encoder

Measure = Callable[[Tensor], Float[Tensor, " row"]]
"""From the model's output to a number for each row."""
Token = str | int
"""By its text or its id."""


@dataclass(frozen=True, slots=True)
class Question:
    """A reading, and where in what the model says of it the answer stands."""

    reading: Reading
    at: int | None
    """The position; None where the row as a whole is answered."""

    @classmethod
    def of(cls, model: Model, text: Text, *, target: Text | None = None, at: int | None = None) -> Question:
        """`at` counts from 0, or from the end where it is negative."""
        reading = answering(model, text, target)
        if reading.model.config.head != "classes":
            return cls(reading, _position(reading, at))
        if at is not None:
            raise UsageError("`at` has no effect on a classifier, which answers once for a row.")
        return cls(reading, None)

    def alone(self) -> Question:
        """The same of an output that has the answer's position and no other (`sweep` with `at`)."""
        return self if self.at is None else replace(self, at=0)

    def answers(self, output: Tensor) -> Float[Tensor, "row choice"]:
        """The scores of all tokens (or classes), where the answer stands, in no less than float32."""
        return wide(output if self.at is None else output[:, self.at])

    def best(self, output: Tensor) -> int:
        """What the model thinks likeliest, in the first row."""
        return int(self.answers(output)[0].argmax())

    def number(self, token: Token) -> int:
        """A token's id, or a class's number."""
        if self.at is None:
            return class_number(token, class_names(self.reading))
        return token_id(self.reading, token)

    def name(self, number: int) -> str:
        """A token's text, or a class's name."""
        return class_names(self.reading)[number] if self.at is None else self.reading.words([number])[0]

    def difference(self, answer: int, instead: int) -> Measure:
        """logit(answer) - logit(instead)"""
        return lambda output: self.answers(output)[:, answer] - self.answers(output)[:, instead]

    def probability(self, answer: int) -> Measure:
        """softmax(logits)[answer]"""
        return lambda output: self.answers(output).softmax(-1)[:, answer]


def answering(model: Model, text: Text, target: Text | None = None) -> Reading:
    """`Reading.of`, of a Transformer that scores tokens or classes."""
    reading = Reading.of(model, text, target=target)
    config = reading.model.config
    if not isinstance(config, ModelConfig):
        raise UsageError("A plain network reads rows, not a text.", expected="This needs a Transformer.")
    if config.head == "none":
        raise ModelError(
            "This encoder gives vectors alone.", expected="This needs one that scores tokens or classes."
        )
    return reading


def token_losses(
    logits: Float[Tensor, "row position vocab"], ids: Int[Tensor, "text position"]
) -> Float[Tensor, "row next"]:
    """-log p of each token after the first, in nats; of one row of ids, for every row of logits."""
    right = ids.repeat(len(logits) // len(ids), 1)[:, 1:]
    return F.cross_entropy(wide(logits)[:, :-1].transpose(1, 2), right, reduction="none")


def _position(reading: Reading, at: int | None) -> int:
    if at is not None or not isinstance(reading.model, Encoder):
        return position_of(reading, -1 if at is None else at)
    mask = None if reading.tokenizer is None else reading.tokenizer.mask
    hidden = [number for number, token in enumerate(reading.ids) if token == mask]
    if len(hidden) != 1:
        raise UsageError(
            f"{len(hidden)} tokens are hidden in {reading.tokens}.",
            expected="An encoder is asked about one.",
            do="Write <|mask|> in place of one token, or say with `at` which position is meant.",
        )
    return hidden[0]
