"""What was seen in one forward pass: numbers by the names of their places.

    trace = look(loaded, "the cat sat", "blocks.*.attn.pattern")
    trace["blocks.0.attn.pattern"]                    (batch, head, query, key), see model/places.py
    trace["blocks.0.attn.hook_pattern"]               the same: TransformerLens's spelling

Only what was asked for is held; attention shows its numbers only in the layers where one of them was.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassformer.errors import ModelError, UsageError, nearest
from glassformer.model.config import ModelConfig
from glassformer.model.places import canonical, find, names
from glassformer.model.stacks import Encoder, EncoderDecoder
from glassformer.model.transformer import Transformer
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded


class Recorder:
    """A `see` that keeps what some places hold, given by name or pattern (`blocks.*.attn.pattern`)."""

    def __init__(self, config: ModelConfig, places: str | Sequence[str]) -> None:
        known = names(config)
        self.seen: dict[str, Tensor] = {}
        self._wanted: set[str] = set()
        for pattern in [places] if isinstance(places, str) else places:
            found = fnmatch.filter(known, canonical(pattern))
            if not found:
                raise UsageError(f"This model has no place {pattern!r}; {nearest(canonical(pattern), known)}")
            self._wanted.update(found)

    def wants(self, name: str) -> bool:
        return name in self._wanted

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name in self._wanted:
            self.seen[name] = y.detach()
        return y


@dataclass(frozen=True, slots=True)
class Trace(Mapping[str, Tensor]):
    """Place -> its numbers, in the order of the forward pass."""

    ids: list[int]
    tensors: dict[str, Tensor] = field(repr=False)

    def __getitem__(self, place: str) -> Tensor:
        name = canonical(place)
        if name not in self.tensors:
            raise UsageError(f"{place!r} was not recorded; {nearest(name, self.tensors)}")
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def axes(self, place: str) -> tuple[str, ...]:
        """What each axis of a place's tensor counts."""
        return find(place).axes

    def rows(self) -> list[dict[str, Any]]:
        """One row for each place: its name, axes, shape, and the range of the finite numbers in it."""
        rows = []
        for name, tensor in self.tensors.items():
            wide = tensor.double()[tensor.isfinite()]
            numbers = {
                "mean": wide.mean(),
                "std": wide.std(correction=0),
                "min": wide.min(),
                "max": wide.max(),
            }
            about = {"place": name, "axes": list(self.axes(name)), "shape": list(tensor.shape)}
            rows.append({**about, **{key: value.item() for key, value in numbers.items()}})
        return rows


def look(
    model: Loaded | Transformer,
    text: str | bytes | Sequence[int],
    places: str | Sequence[str] | None = None,
    *,
    target: str | bytes | Sequence[int] | None = None,
) -> Trace:
    """Run the model over a text, or over ids, and keep what `places` hold (left out: the patterns of attention).
    Dropout is off while looking. An encoder-decoder reads the text and writes `target`."""
    tokenizer = model.tokenizer if isinstance(model, Loaded) else None
    module = model.model if isinstance(model, Loaded) else model
    ids = _ids(tokenizer, text)
    if isinstance(module, Encoder) and tokenizer is not None and isinstance(text, str | bytes):
        ids = tokenizer.framed(np.array(ids, np.int64)).tolist()
    pair = isinstance(module, EncoderDecoder)
    if pair != (target is not None):
        raise UsageError(
            f"The model is of kind '{module.config.kind}', and {'no' if pair else 'a'} target was given.",
            expected="An encoder-decoder needs a target, others take none.",
        )
    rows = [ids]
    if target is not None:
        written = _ids(tokenizer, target)
        end = None if tokenizer is None else tokenizer.end_of_text
        rows = [ids, written] if end is None else [[*ids, end], [end, *written]]
    for row in rows:
        if not 0 < len(row) <= module.config.context:
            raise ModelError(
                f"The text has {len(row)} tokens.",
                expected=f"Expected 1 to {module.config.context}, the model's context.",
            )
    recorder = Recorder(module.config, places or [f"{s.name}.*.attn.pattern" for s in module.stacks])
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            device = module.embed.weight.device
            module(*(torch.tensor([row], device=device) for row in rows), see=recorder)
    finally:
        module.train(training)
    return Trace(ids, recorder.seen)


def _ids(tokenizer: Tokenizer | None, text: str | bytes | Sequence[int]) -> list[int]:
    if not isinstance(text, str | bytes):
        return [int(i) for i in text]
    if tokenizer is None:
        raise UsageError("A bare model reads ids, not text.", do="Give ids, or what gf.load returned.")
    return [int(i) for i in tokenizer.encode(text)]
