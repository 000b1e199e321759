"""How well a model predicts a text: every token once, in nats a token and in bits a byte.

    loss = - 1/n * sum_i log p(token_i | tokens before it)          nats a token; exp(loss) is the perplexity
    bits per byte = n * loss / (ln 2 * number of bytes)             does not depend on the tokenizer

Each document begins after an end-of-text token, as in training. A document longer than the context is read in
windows that move on by half a context; a window counts only what the one before did not reach, so every token
beyond the first half context is predicted from at least half a context of text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from glassformer.errors import ModelError, TextError
from glassformer.model.loss import IGNORE
from glassformer.stats import bits_per_byte
from glassformer.use.load import Loaded

Text = str | bytes | Path

_Window = tuple[NDArray[np.int64], NDArray[np.int64]]

_BATCH_TOKENS = 4096
"""Windows are read together up to about this many tokens."""

_CHUNK_LOGITS = 2**24
"""Logits that exist at a time (64 MiB)."""


@dataclass(frozen=True, slots=True)
class Score:
    """The mean over every token of every document."""

    loss: float
    """Nats a token."""
    bits_per_byte: float
    perplexity: float
    tokens: int
    bytes: int
    documents: int
    per_token: list[list[float]] | None = None
    """Nats of each token of each document, when asked for."""

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema": "glassformer.score", "version": 1, **values}


@torch.inference_mode()
def score(loaded: Loaded, text: Text | Iterable[Text], *, per_token: bool = False) -> Score:
    """Score a text, a file (a Path), or several of them, each a document of its own."""
    sizes: list[tuple[int, int]] = []
    nats, kept = 0.0, []
    documents = [text] if isinstance(text, str | bytes | Path) else text
    for batch in _together(_windows(loaded, documents, sizes)):
        losses = _losses(loaded, batch)
        nats += losses.sum().item()
        if per_token:
            kept.append(losses)
    num_tokens, num_bytes = (sum(counts) for counts in zip(*sizes, strict=True)) if sizes else (0, 0)
    if not num_tokens:
        raise TextError(
            "There is no text to score: it is empty.", do="Give some text, or a file that holds some."
        )
    if not math.isfinite(nats):
        raise ModelError(
            f"The loss of this text is {nats}.",
            expected="Expected a finite number, so the weights or the arithmetic have overflowed.",
            do="Use an earlier checkpoint, or precision='fp32' if this was bf16.",
        )
    loss = nats / num_tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    each = (
        [row.tolist() for row in torch.split(torch.cat(kept), [n for n, _ in sizes])] if per_token else None
    )
    return Score(loss, bits_per_byte(nats, num_bytes), perplexity, num_tokens, num_bytes, len(sizes), each)


def _windows(loaded: Loaded, documents: Iterable[Text], sizes: list[tuple[int, int]]) -> Iterator[_Window]:
    """Inputs and targets of every window; each document's tokens and bytes are added to `sizes`."""
    context, end_of_text = loaded.config.context, loaded.tokenizer.end_of_text
    half = context // 2
    for document in documents:
        data = _read(document)
        targets = loaded.tokenizer.encode(data)
        inputs = np.concatenate([[end_of_text], targets])[:-1]
        sizes.append((len(targets), len(data)))
        for start in range(0, max(1, len(targets) - half), context - half):
            window = targets[start : start + context].copy()
            if start:
                window[:half] = IGNORE
            if len(window):
                yield inputs[start : start + context], window


def _together(windows: Iterator[_Window]) -> Iterator[list[_Window]]:
    """Windows in groups that fill a batch."""
    batch: list[_Window] = []
    longest = 0
    for window in windows:
        longest = max(longest, len(window[0]))
        if batch and longest * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch, longest = [], len(window[0])
        batch.append(window)
    if batch:
        yield batch


def _losses(loaded: Loaded, batch: list[_Window]) -> Float[Tensor, " token"]:
    """Nats of every token that counts, in order. Rows are padded at the end, where nothing looks."""
    shape = len(batch), max(len(inputs) for inputs, _ in batch)
    ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
    for row, (inputs, window) in enumerate(batch):
        ids[row, : len(inputs)], targets[row, : len(window)] = inputs, window
    counted = torch.from_numpy(targets != IGNORE).to(loaded.device)
    hidden = loaded.decoder.hidden(torch.from_numpy(ids).to(loaded.device))[counted]
    right = torch.from_numpy(targets).to(loaded.device)[counted]
    size = max(1, _CHUNK_LOGITS // loaded.config.vocab_size)
    chunks = zip(torch.split(hidden, size), torch.split(right, size), strict=True)
    return torch.cat(
        [F.cross_entropy(loaded.model.head(h).float(), t, reduction="none") for h, t in chunks]
    ).double()


def _read(document: Text) -> bytes:
    if isinstance(document, str):
        return document.encode("utf-8", "surrogatepass")
    if isinstance(document, bytes):
        return document
    try:
        return document.read_bytes()
    except OSError as error:
        raise TextError(
            f"{document} cannot be read: {error.strerror}.", do="Give the path of a text file."
        ) from None
