"""What a step learns from: texts, or rows, as the arrays that a model's loss takes; and the loss of each target.

A text of T tokens is T - 1 lessons: given the tokens so far, the next one. So ids are the text without its last
token, and targets the text without its first. Shorter texts beside longer ones are filled up with targets that carry
no loss (-100); a causal model does not look at what fills them up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.reading import Model, Reading, Text
from glassformer.model.loss import IGNORE
from glassformer.model.mlp import Network
from glassformer.model.places import See, unseen
from glassformer.model.stacks import Decoder, EncoderDecoder
from glassformer.model.transformer import Transformer
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor

Batch = Text | Sequence[str] | Sequence[Sequence[int]] | tuple[Any, Any] | Mapping[str, Any]
"""A text or several; ids; of a plain network (rows, targets); or what the model's loss takes, by name."""

_OF_THE_LOSS = ("targets", "places", "num_targets", "label_smoothing", "z_loss")
"""What `loss` takes and `forward` does not."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """The arrays of one step, and what its targets are called."""

    arrays: dict[str, Any] = field(repr=False)
    words: list[str] | None = None
    """Each target that counts, as text, row after row; of a plain network none."""

    @property
    def counted(self) -> Tensor:
        """True for each target, flattened, that carries loss."""
        targets: Tensor = self.arrays["targets"]
        if targets.is_floating_point():
            return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        return targets.flatten() != IGNORE

    def each_loss(self, model: Transformer | Network, see: See = unseen) -> Float[Tensor, " target"]:
        """The loss of each target that counts, in nats (of numbers: squared error). Their mean is the loss, but for
        label smoothing and z-loss."""
        targets = self.arrays["targets"]
        if isinstance(model, Network):
            return _of_rows(model, self.arrays["inputs"], targets, see)[self.counted]
        given = {name: value for name, value in self.arrays.items() if name not in _OF_THE_LOSS}
        logits = model(**given, see=see)
        places = self.arrays.get("places")
        if places is not None:
            logits = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
        loss = F.cross_entropy(logits.movedim(-1, 1), targets, ignore_index=IGNORE, reduction="none")
        return loss.flatten()[self.counted]


def lessons(model: Model, batch: Batch, *, target: Text | None = None) -> Lessons:
    """Raises UsageError for what the model cannot learn from like this, and says what it takes."""
    module = model.model if isinstance(model, Loaded) else model
    if isinstance(module, Predictor):
        module = module.network
    device = next(module.parameters()).device
    if isinstance(batch, Mapping):
        arrays = {name: _tensor(value, device) for name, value in batch.items() if value is not None}
        if "targets" not in arrays:
            raise UsageError(
                f"The batch has {', '.join(arrays) or 'nothing'}.",
                expected="It needs 'targets' to be wrong about.",
            )
        return Lessons(arrays, _words(model, arrays["targets"]))
    if isinstance(module, Network):
        if not (isinstance(batch, tuple) and len(batch) == 2):
            raise UsageError("A plain network learns from (rows, targets).", do="Give two arrays in a tuple.")
        given_rows, given_targets = cast(tuple[Any, Any], batch)
        inputs = Reading.of(model, given_rows).inputs[0]
        targets = torch.as_tensor(given_targets, device=device)
        if module.config.head != "distribution":
            targets = targets.to(inputs.dtype)
        return Lessons({"inputs": inputs, "targets": targets})
    if isinstance(module, EncoderDecoder):
        source, fed = Reading.of(model, batch, target=target).inputs  # type: ignore[arg-type] # Reading says no
        rows, extra = [*fed], {"source": source}
    elif isinstance(module, Decoder) and target is None:
        rows, extra = [row for text in _texts(batch) for row in Reading.of(model, text).inputs[0]], {}
    else:
        given = f"and {'a' if target is not None else 'no'} target"
        raise UsageError(
            f"A text {given} is no lesson for a model of kind '{module.config.kind}'.",
            expected="A decoder learns from a text, an encoder-decoder from a text and its target.",
            do="Give what the model's loss takes, by name: {'ids': ..., 'targets': ..., 'places': ...}.",
        )
    arrays = extra | _shifted(rows)
    return Lessons(arrays, _words(model, arrays["targets"]))


def _shifted(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """ids, and as targets what comes after each of them."""
    if max(map(len, rows)) < 2:
        raise UsageError("One token alone has no next one to learn.", do="Give a text of two or more.")
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "ids": pad([row[:-1] for row in rows], batch_first=True),
        "targets": pad([row[1:] for row in rows], batch_first=True, padding_value=IGNORE),
    }


def _texts(batch: Any) -> list[Any]:
    several = (
        isinstance(batch, list | tuple) and len(batch) > 0 and not isinstance(batch[0], int | np.integer)
    )
    return list(batch) if several else [batch]


def _words(model: Model, targets: Tensor) -> list[str] | None:
    module = model.model if isinstance(model, Loaded) else model
    if not isinstance(module, Transformer) or targets.ndim != 2:
        return None
    tokenizer = model.tokenizer if isinstance(model, Loaded) else None
    counted = targets[targets != IGNORE].tolist()
    return Reading(module, (), tokenizer).words(counted)


def _tensor(value: Any, device: torch.device) -> Any:
    return torch.as_tensor(value, device=device) if isinstance(value, Tensor | np.ndarray | list) else value


def _of_rows(model: Network, inputs: Tensor, targets: Tensor, see: See) -> Float[Tensor, " row"]:
    scores = model.scores(inputs, see=see)
    match model.config.head:
        case "distribution":
            return F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")
        case "number":
            return F.mse_loss(scores, targets.to(scores.dtype), reduction="none").mean(1)
        case _:
            wide = targets.to(scores.dtype)
            return F.binary_cross_entropy_with_logits(scores, wide, reduction="none").mean(1)
