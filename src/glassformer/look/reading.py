"""What is looked at: a model and what it is given to read, ready to be run any number of times.

    reading = Reading.of(loaded, "the cat sat")
    reading.run()                                      what the model's forward returns, dropout off
    reading.run(see=recorder)                          the same, with a `see` at every place
    reading.run(weights={"embed.weight": changed})     with other weights; the model itself stays as it is
    reading.tokens                                     ["the", " cat", " sat"]

Nothing here changes the model: not its weights, not its mode, not what of it asks for gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.func import functional_call

from glassformer.errors import ModelError, UsageError
from glassformer.model import network
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.places import See, find, names, unseen
from glassformer.model.stacks import Encoder, EncoderDecoder
from glassformer.model.transformer import Transformer
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.fill import hide
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor, Rows, encoded

Text = str | bytes | Sequence[int] | Int[Tensor, "batch position"]
"""Words for a model with a tokenizer, or ids: of one row, or of several of one length."""
Model = Loaded | Transformer | Predictor | Network


@dataclass(frozen=True, slots=True)
class Reading:
    """A model and its inputs. `Reading.of` makes one and says what does not fit."""

    model: Transformer | Network
    inputs: tuple[Tensor, ...]
    """(batch, position) ids; of an encoder-decoder the source's, then those the decoder is fed. A plain network's
    are (row, input) numbers."""
    tokenizer: Tokenizer | None = None
    outputs: tuple[str, ...] = ()
    """What a classifier's classes or a network's outputs are called, where that is known."""

    @classmethod
    def of(cls, model: Model, text: Text | Rows, *, target: Text | None = None) -> Reading:
        """Raises ModelError for a text that is empty or longer than the context, UsageError where the model
        reads something else. In an encoder's text `<|mask|>` hides a token. An encoder-decoder reads the text and
        writes `target`; an end-of-text token stands after its source and before its target, as in training, where
        the tokenizer has one."""
        module = model.model if isinstance(model, Loaded) else model
        if isinstance(module, Predictor | Network):
            return _of_rows(module, text)
        tokenizer = model.tokenizer if isinstance(model, Loaded) else None
        rows = [_ids(tokenizer, text)]
        if isinstance(model, Loaded) and isinstance(module, Encoder) and isinstance(text, str | bytes):
            ids = rows[0][0].numpy()
            if isinstance(text, str) and model.tokenizer.mask is not None:  # `<|mask|>` hides a token
                ids = model.tokenizer.encode(hide(model, text), allow_special=True)
            rows = [torch.from_numpy(model.tokenizer.framed(ids).astype(np.int64))[None]]
        pair = isinstance(module, EncoderDecoder)
        if pair != (target is not None):
            raise UsageError(
                f"The model is of kind '{module.config.kind}', and {'no' if pair else 'a'} target was given.",
                expected="An encoder-decoder needs a target, others take none.",
            )
        if target is not None:
            rows.append(_ids(tokenizer, target))
            if tokenizer is not None and tokenizer.end_of_text is not None:
                end = torch.tensor([[tokenizer.end_of_text]])
                rows = [
                    torch.cat([rows[0], end.expand(len(rows[0]), 1)], 1),
                    torch.cat([end.expand(len(rows[1]), 1), rows[1]], 1),
                ]
        for row in rows:
            _check(row, module.config)
        device = module.embed.weight.device
        classes = model.classes if isinstance(model, Loaded) else ()
        return cls(module, tuple(row.to(device) for row in rows), tokenizer, classes)

    def run(self, see: See = unseen, *, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the model's forward returns (logits, of a network its prediction), dropout off. `weights` stand in
        for the model's own of these names. Gradients are tracked where the caller has them on and asks for some:
        of a model from `gf.load` no weight asks, so give `weights` that do."""
        learning = [module for module in self.model.modules() if module.training]
        for module in learning:
            module.training = False
        try:
            given: Tensor = (
                self.model(*self.inputs, see=see)
                if weights is None
                else functional_call(self.model, dict(weights), self.inputs, {"see": see})
            )
        finally:
            for module in learning:
                module.training = True
        return given

    def weights(self, *, gradient: bool = False, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Every weight by name, each once, apart from the model's graph; with `gradient` they ask for theirs."""
        return {
            name: (weight.detach() if dtype is None else weight.detach().to(dtype)).requires_grad_(gradient)
            for name, weight in self.model.named_parameters()
        }

    def in_double(self) -> Reading:
        """The same with a copy of the model in float64, where rounding is out of the way."""
        inputs = tuple(each.double() if each.is_floating_point() else each for each in self.inputs)
        return replace(self, model=copy.deepcopy(self.model).double(), inputs=inputs)

    @property
    def ids(self) -> list[int]:
        """The row that is written, or read where nothing is."""
        if isinstance(self.model, Network):
            raise UsageError("A plain network reads numbers; it has no tokens.")
        return [int(i) for i in self.inputs[-1][0]]

    @property
    def tokens(self) -> list[str]:
        """`ids`, each as text (as its number, without a tokenizer)."""
        return self.words(self.ids)

    @property
    def source_tokens(self) -> list[str]:
        """What an encoder-decoder reads, token by token."""
        return self.words([int(i) for i in self.inputs[0][0]])

    def words(self, ids: Sequence[int]) -> list[str]:
        """Tokens as text, those that are no text by their names, or as numbers where only the model has them."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return [str(i) for i in ids]
        special = {number: name for name, number in tokenizer.specials.items()}
        return [
            special.get(int(i)) or (tokenizer.decode([int(i)]) if i < tokenizer.vocab_size else f"<{int(i)}>")
            for i in ids
        ]

    def places(self) -> list[str]:
        """Every place of the model in the order of a pass."""
        if isinstance(self.model, Network):
            return network.network_places(self.model.config)
        return names(self.model.config)

    def axes(self, place: str) -> tuple[str, ...]:
        """What each axis of a place's tensor counts."""
        return network.find(place).axes if isinstance(self.model, Network) else find(place).axes


def wide(y: Tensor) -> Tensor:
    """In no less than float32, as what is made of scores has to be."""
    return y if y.dtype == torch.float64 else y.float()


def _of_rows(model: Predictor | Network, rows: Any) -> Reading:
    if isinstance(model, Predictor):
        inputs = torch.from_numpy(encoded(model, rows)).to(model.network.head.weight)
        return Reading(model.network, (inputs,), outputs=tuple(model.columns.outputs))
    return Reading(model, (torch.as_tensor(rows).to(model.head.weight),))


def _ids(tokenizer: Tokenizer | None, text: Any) -> Tensor:
    """(batch, position)"""
    if isinstance(text, Tensor):
        return text if text.ndim == 2 else text[None]
    if not isinstance(text, str | bytes):
        return torch.tensor([[int(i) for i in text]], dtype=torch.long)
    if tokenizer is None:
        raise UsageError("A bare model reads ids, not text.", do="Give ids, or what gf.load returned.")
    return torch.from_numpy(tokenizer.encode(text).astype(np.int64))[None]


def _check(row: Tensor, config: ModelConfig) -> None:
    length = row.shape[1]
    if not 0 < length <= config.context:
        raise ModelError(
            f"The text has {length} tokens.",
            expected=f"Expected 1 to {config.context}, the model's context.",
            do="Give a part of it." if length else "Give some text.",
        )
    low, high = int(row.min()), int(row.max())
    if not 0 <= low <= high < config.vocab_size:
        raise ModelError(
            f"The ids run from {low} to {high}.", expected=f"The model knows 0 to {config.vocab_size - 1}."
        )
