"""Texts -> rows that an encoder reads, those of about the same length together.

Each text is framed as the tokenizer frames it (`[CLS] ... [SEP]` by BERT's). Shorter ones of a group are padded, and
`segments` is -1 there: no token looks at padding, and none of it is counted. So a text's vectors do not depend on
its company, but for the last digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.use.load import Loaded

_TOKENS_AT_ONCE = 8192
"""Padding included."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of the texts."""

    numbers: list[int]
    """Which."""
    ids: Int[Tensor, "batch position"]
    segments: Int[Tensor, "batch position"] | None
    """0 for a token, -1 where padded; None when nothing is."""


def rows(
    loaded: Loaded, texts: Sequence[str], *, allow_special: bool = False, cut: bool = False
) -> Iterator[Rows]:
    """All texts, each once. One longer than the context is refused, or cut to its beginning."""
    tokenizer, most = loaded.tokenizer, loaded.config.context
    framed = [tokenizer.framed(tokenizer.encode(text, allow_special=allow_special)) for text in texts]
    framed = [ids[:most] for ids in framed] if cut else framed
    for text, ids in zip(texts, framed, strict=True):
        if len(ids) > most:
            raise UsageError(
                f"{text[:40]!r}... has {len(ids)} tokens.", expected=f"At most {most}, the model's context.",
                do="Give it in parts.",
            )  # fmt: skip
    order = sorted(range(len(framed)), key=lambda number: len(framed[number]))
    while order:
        longest = len(framed[order[-1]])
        taken = order[-max(1, _TOKENS_AT_ONCE // longest) :]
        del order[-len(taken) :]
        tokens = torch.full((len(taken), longest), tokenizer.end_of_text)
        segments = torch.full((len(taken), longest), -1)
        for row, number in enumerate(taken):
            size = len(framed[number])
            tokens[row, :size], segments[row, :size] = torch.from_numpy(framed[number]), 0
        whole = bool((segments == 0).all())
        device = loaded.device
        yield Rows(taken, tokens.to(device), None if whole else segments.to(device))
