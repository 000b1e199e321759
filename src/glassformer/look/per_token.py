"""How wrong a model is, token by token: the losses that blame is taken of.

    decoder, encoder-decoder    l_i = -log p(token i | the tokens before it)      i from 1; token 0 is only read
    encoder, head "tokens"      l_i = -log p(token i | the whole row), the row as it is given
                                with a `target`: -log p(its token i), where it differs from the row
    encoder, head "classes"     l   = -log p(target)                              one for a row
    plain network               l   = the loss of its head (model/mlp.py)         one for a row

    total = sum_i l_i        loss = total / number of them, which is what training makes smaller

Everything is computed here from the scores, in the precision they have (float32 at least): a float64 copy of the
model gives a float64 loss, which finite differences need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import class_names, class_number
from glassformer.look.reading import Model, Reading, Text, wide
from glassformer.look.trace import Recorder
from glassformer.model.mlp import Network
from glassformer.model.places import See, chained, unseen
from glassformer.model.stacks import Encoder
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor, Rows

Target = Text | Any
"""What should have been said: a text (encoder-decoder, encoder), a class, or a network's targets, one for each row."""


@dataclass(frozen=True, slots=True)
class PerToken:
    """The losses that count, of one model and text. `PerToken.of` makes one and says what does not fit."""

    reading: Reading
    place: str
    """What they are computed from: `logits`, `class_logits`, `scores`."""
    rows: Int[Tensor, " item"]
    positions: Int[Tensor, " item"]
    """Of the tokens whose losses count; of a class and of a network's rows, 0."""
    before: int
    """How far in front of a token its prediction stands: 1 where the next is predicted."""
    targets: Tensor
    """(item) ids or classes, or (item, output) numbers."""
    labels: tuple[str, ...]
    """Each item's token, class, or row."""

    @classmethod
    def of(
        cls,
        model: Model,
        text: Text | Rows,
        *,
        target: Target | None = None,
        tokens: Sequence[int] | None = None,
    ) -> PerToken:
        """`tokens`: the positions (of a network: the rows) whose losses count; left out, all that there are."""
        module = model.model if isinstance(model, Loaded) else model
        if isinstance(module, Predictor | Network):
            return _of_network(model, Reading.of(model, text), target, tokens)
        if not isinstance(module, Encoder):
            reading = Reading.of(model, text, target=target)
            return _of_tokens(reading, reading.inputs[-1], tokens, first=1)
        reading = Reading.of(model, text)
        if module.config.head == "classes":
            return _of_classes(reading, target, tokens)
        if module.config.head != "tokens":
            raise ModelError(
                "This encoder gives out vectors and predicts nothing, so that it cannot be wrong.",
                expected="An encoder with head 'tokens' or 'classes'.",
            )
        if target is None:
            return _of_tokens(reading, reading.inputs[0], tokens, first=0)
        right = Reading.of(model, target).inputs[0]
        if right.shape != reading.inputs[0].shape:
            raise UsageError(
                f"The text has {reading.inputs[0].shape[1]} tokens, the target {right.shape[1]}.",
                expected="A token in the target for each in the text: what should stand there.",
            )
        if tokens is None:
            tokens = (right != reading.inputs[0]).any(0).nonzero()[:, 0].tolist()
            if not tokens:
                raise UsageError("Text and target are the same, so that no token is to be mended.")
        return _of_tokens(reading, right, tokens, first=0)

    def run(
        self, see: See = unseen, *, weights: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, " item"]:
        """One pass, and the loss of each token that counts, in nats; their mean is what training makes smaller."""
        end = Recorder([self.place], self.place, attached=True)
        self.reading.run(chained(see, end), weights=weights)
        return self.losses(end.seen[self.place])

    def losses(self, scores: Tensor) -> Float[Tensor, " item"]:
        """The same from what the place of the scores holds."""
        picked = scores[self.rows, self.positions - self.before] if scores.ndim == 3 else scores[self.rows]
        picked = wide(picked)
        if not self.targets.is_floating_point():
            return F.cross_entropy(picked, self.targets, reduction="none")
        wanted = self.targets.to(picked.dtype)
        if getattr(self.reading.model.config, "head", None) == "number":
            return (picked - wanted).square().mean(-1)
        return F.binary_cross_entropy_with_logits(picked, wanted, reduction="none").mean(-1)

    def in_double(self) -> PerToken:
        """The same of a float64 copy of the model."""
        return replace(self, reading=self.reading.in_double())

    @property
    def what(self) -> str:
        """What has a loss of its own."""
        return {"logits": "token", "class_logits": "text"}.get(self.place, "row")


def _of_tokens(reading: Reading, right: Tensor, tokens: Sequence[int] | None, *, first: int) -> PerToken:
    num_rows, length = right.shape
    if tokens is None:
        special = set(reading.tokenizer.specials.values()) if reading.tokenizer and not first else set()
        tokens = [at for at in range(first, length) if int(right[0, at]) not in special or num_rows > 1]
    counted = _within(tokens, first, length, "token")
    rows = torch.arange(num_rows, device=right.device).repeat_interleave(len(counted))
    positions = torch.tensor(counted, device=right.device).repeat(num_rows)
    targets = right[rows, positions]
    labels = tuple(reading.words(targets.tolist()))
    return PerToken(reading, "logits", rows, positions, first, targets, labels)


def _of_classes(reading: Reading, target: Any, tokens: Sequence[int] | None) -> PerToken:
    if tokens is not None:
        raise UsageError("tokens has no effect with a head for classes, whose loss is of the whole text.")
    known = class_names(reading)
    number = class_number(target, known)
    rows = torch.arange(len(reading.inputs[0]), device=reading.inputs[0].device)
    labels = (known[number],) * len(rows)
    return PerToken(reading, "class_logits", rows, rows * 0, 0, torch.full_like(rows, number), labels)


def _of_network(model: Any, reading: Reading, target: Any, tokens: Sequence[int] | None) -> PerToken:
    inputs, config = reading.inputs[0], reading.model.config
    if target is None:
        raise UsageError(
            "No target was given.",
            expected="What is right for each row: a class, or numbers for its outputs.",
        )
    given = [target] if isinstance(target, str | int | float) else list(target)
    if len(given) != len(inputs):
        raise UsageError(
            f"There are {len(inputs)} rows and {len(given)} targets.", expected="One for each row."
        )
    columns = model.columns if isinstance(model, Predictor) else None
    if config.head == "distribution":
        outputs = columns.outputs if columns else tuple(map(str, range(config.widths[-1])))
        targets = torch.tensor([class_number(_plain(one), outputs) for one in given])
    else:
        targets = torch.tensor([_numbers(one, columns) for one in given], dtype=torch.float64)
        width = config.widths[-1]  # type: ignore[union-attr]
        if targets.ndim == 1 and width == 1:
            targets = targets[:, None]
        if targets.shape != (len(inputs), width):
            raise UsageError(
                f"A row's target has shape {list(targets.shape[1:])}.",
                expected=f"Expected {width} numbers for each row.",
            )
        if columns is not None and columns.kind == "numbers":  # the network's loss is in standard units
            targets = (targets - torch.tensor(columns.target_mean)) / torch.tensor(columns.target_scale)
    counted = _within(range(len(inputs)) if tokens is None else tokens, 0, len(inputs), "row")
    rows = torch.tensor(counted, device=inputs.device)
    labels = tuple(str(row) for row in counted)
    return PerToken(reading, "scores", rows, rows * 0, 0, targets.to(inputs.device)[rows], labels)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _numbers(target: Any, columns: Any) -> list[float]:
    if isinstance(target, Mapping):
        return [float(target[name]) for name in columns.outputs]
    return [float(one) for one in (target if hasattr(target, "__iter__") else [target])]


def _within(tokens: Sequence[int], first: int, length: int, what: str) -> list[int]:
    """Positions counted from the front, in order; from the end where they are below 0."""
    found = sorted({at + length if at < 0 else at for at in tokens})
    bad = [at for at in found if not first <= at < length]
    if bad or not found:
        raise UsageError(
            f"{what.capitalize()} {bad[0]} has no loss." if bad else f"No {what} here has a loss.",
            expected=f"Losses are of {what}s {first} to {length - 1}." if length > first else "",
            do="Give a longer text." if length <= first else "",
        )
    return found
