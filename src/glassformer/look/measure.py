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

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import ModelError, UsageError, nearest
from glassformer.look.reading import Model, Reading, Text
from glassformer.model.config import ModelConfig
from glassformer.use.fill import hide
from glassformer.use.load import Loaded

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
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Model, text: Text, *, target: Text | None = None, at: int | None = None) -> Question:
        """`at` counts from 0, or from the end where it is negative."""
        reading = opened(model, text, target)
        config = reading.model.config
        assert isinstance(config, ModelConfig)
        if config.head == "classes":
            if at is not None:
                raise UsageError("`at` has no effect on a classifier, which answers once for a row.")
            return cls(reading, None, model.classes if isinstance(model, Loaded) else ())
        return cls(reading, _position(reading, at))

    def alone(self) -> Question:
        """The same of an output that has the answer's position and no other (`sweep` with `at`)."""
        return self if self.at is None else replace(self, at=0)

    def answers(self, output: Tensor) -> Float[Tensor, "row choice"]:
        """The scores of all tokens (or classes), where the answer stands, in no less than float32."""
        scores = output if self.at is None else output[:, self.at]
        return scores if scores.dtype == torch.float64 else scores.float()

    def best(self, output: Tensor) -> int:
        """What the model thinks likeliest, in the first row."""
        return int(self.answers(output)[0].argmax())

    def number(self, token: Token) -> int:
        """Its id. Raises UsageError for text that is not exactly one token, and shows those it is."""
        config, tokenizer = self.reading.model.config, self.reading.tokenizer
        assert isinstance(config, ModelConfig)
        size = config.num_classes if self.at is None else config.vocab_size
        if isinstance(token, int):
            if not 0 <= token < size:
                raise UsageError(f"There is no answer {token}.", expected=f"Expected 0 to {size - 1}.")
            return token
        if self.at is None:
            if token not in self.classes:
                raise UsageError(f"There is no class {token!r}; {nearest(token, self.classes)}")
            return self.classes.index(token)
        if tokenizer is None:
            raise UsageError("A bare model knows ids, not text.", do="Give the answer's id.")
        ids = tokenizer.encode(token).tolist()
        if len(ids) != 1:
            raise UsageError(
                f"The answer {token!r} is {len(ids)} tokens: {self.reading.words(ids)}.",
                expected="Expected exactly one, with the space before it if one belongs to it.",
                do=f"Give its first token, {self.reading.words(ids)[0]!r}." if ids else "Give some text.",
            )
        return int(ids[0])

    def name(self, number: int) -> str:
        """A token's text, or a class's name."""
        if self.at is None:
            return self.classes[number] if self.classes else str(number)
        return self.reading.words([number])[0]

    def difference(self, answer: int, instead: int) -> Measure:
        """logit(answer) - logit(instead)"""
        return lambda output: self.answers(output)[:, answer] - self.answers(output)[:, instead]

    def probability(self, answer: int) -> Measure:
        """softmax(logits)[answer]"""
        return lambda output: self.answers(output).softmax(-1)[:, answer]


def opened(model: Model, text: Text, target: Text | None = None) -> Reading:
    """`Reading.of` for a Transformer, in which `<|mask|>` hides a token of what an encoder reads."""
    if isinstance(model, Loaded) and model.config.kind == "encoder" and isinstance(text, str):
        tokenizer = model.tokenizer
        if tokenizer.mask is not None and (hidden := hide(model, text)):
            ids = tokenizer.framed(tokenizer.encode(hidden, allow_special=True))
            text = torch.from_numpy(ids.astype(np.int64))[None]
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
    wide = logits if logits.dtype == torch.float64 else logits.float()
    right = ids.repeat(len(logits) // len(ids), 1)[:, 1:]
    return F.cross_entropy(wide[:, :-1].transpose(1, 2), right, reduction="none")


def _position(reading: Reading, at: int | None) -> int:
    length = reading.inputs[-1].shape[1]
    if at is not None:
        if not -length <= at < length:
            raise UsageError(
                f"There is no position {at}.", expected=f"The text has {length} tokens: 0 to {length - 1}."
            )
        return at % length
    config = reading.model.config
    if not isinstance(config, ModelConfig) or config.kind != "encoder":
        return length - 1
    mask = None if reading.tokenizer is None else reading.tokenizer.mask
    hidden = [number for number, token in enumerate(reading.ids) if token == mask]
    if len(hidden) != 1:
        raise UsageError(
            f"{len(hidden)} tokens are hidden in {reading.tokens}.",
            expected="An encoder is asked about one.",
            do="Write <|mask|> in place of one token, or say with `at` which position is meant.",
        )
    return hidden[0]
