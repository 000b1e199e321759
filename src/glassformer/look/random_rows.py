"""Rows of random tokens, once or twice in a row, as each kind of model reads them.

The tokens of a row all differ, so that in a row that holds them twice each has one earlier copy. Special tokens
are not among them. A decoder reads them bare; an encoder framed, as its texts are; an encoder-decoder writes them
after its start token while it reads other random tokens, which tell it nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.reading import Reading
from glassformer.model.stacks import Decoder, Encoder
from glassformer.model.transformer import Transformer
from glassformer.seeds import generator
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

LENGTH = 50
"""Random tokens in a row, where the context and the vocabulary allow as many."""

_TOKENS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class RandomRows:
    """`num_rows` rows of `length` random tokens, drawn from `seed`."""

    model: Loaded | Transformer
    num_rows: int
    length: int
    seed: int

    @classmethod
    def of(cls, model: Loaded | Transformer, num_rows: int, length: int | None, seed: int) -> RandomRows:
        """`length` left out: LENGTH, or as many as fit twice."""
        if num_rows < 1:
            raise UsageError(
                f"{num_rows} rows of random tokens were asked for.", expected="Expected 1 or more."
            )
        module, tokenizer = _parts(model)
        framed = 0 if isinstance(module, Decoder) or tokenizer is None else 2
        ordinary = len(_ordinary(model))
        most = min((module.config.context - framed) // 2, ordinary)
        found = min(LENGTH, most) if length is None else length
        if not 2 <= found <= most:
            raise UsageError(
                f"Rows of {found} random tokens, each twice, do not fit." if length else "Random rows do not fit.",
                expected=f"A context of {module.config.context} and {ordinary} ordinary tokens leave room for "
                f"2 to {most}." if most >= 2 else "A context of at least 4 and 2 ordinary tokens are needed.",
            )  # fmt: skip
        return cls(model, num_rows, found, seed)

    def readings(self, times: int) -> list[Reading]:
        """All rows, each so many times in a row, a few rows at a time."""
        size = max(1, _TOKENS_AT_ONCE // (self.length * times))
        module, tokenizer = _parts(self.model)
        rows = self._drawn("written").repeat(1, times)
        if isinstance(module, Encoder) and tokenizer is not None:
            rows = torch.from_numpy(np.stack([tokenizer.framed(row.numpy()) for row in rows]))
        if isinstance(module, Decoder | Encoder):
            return [Reading.of(self.model, part) for part in torch.split(rows, size)]
        sources = self._drawn("read").repeat(1, times)
        pairs = zip(torch.split(sources, size), torch.split(rows, size), strict=True)
        return [Reading.of(self.model, source, target=part) for source, part in pairs]

    def start(self, stack: str) -> int:
        """Where in its row a stack finds the first random token."""
        module, tokenizer = _parts(self.model)
        framed = tokenizer is not None and tokenizer.end_of_text is not None
        bare = isinstance(module, Decoder) or (not isinstance(module, Encoder) and stack != "decoder")
        return int(framed and not bare)

    def _drawn(self, what: str) -> Int[Tensor, "row position"]:
        chance, ordinary = generator(self.seed, "random rows", what), _ordinary(self.model)
        rows = [chance.choice(ordinary, self.length, replace=False) for _ in range(self.num_rows)]
        return torch.from_numpy(np.stack(rows))


def _parts(model: Loaded | Transformer) -> tuple[Transformer, Tokenizer | None]:
    return (model.model, model.tokenizer) if isinstance(model, Loaded) else (model, None)


def _ordinary(model: Loaded | Transformer) -> Int[np.ndarray, " token"]:
    """The tokens that stand for text."""
    module, tokenizer = _parts(model)
    if tokenizer is None:
        return np.arange(module.config.vocab_size)
    known = np.arange(min(module.config.vocab_size, tokenizer.vocab_size))
    return np.setdiff1d(known, list(tokenizer.specials.values()))
