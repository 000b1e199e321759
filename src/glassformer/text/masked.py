"""Rows with some of their tokens hidden: what an encoder learns from (Devlin et al. 2019).

In each row n = round(share * context) places are picked (at least one), never an end of text and never a padded
place. What stands there has to be guessed. Of the picked tokens `hidden` (80 %) are replaced by the mask token,
`random` (10 %) by any token that is not special, and the rest are left as they are, so that the model cannot trust
a token that it sees.

    text      the  cat  sat  on   the  mat          picked: 2 and 5
    ids       the  cat  MASK on   the  mat
    places    2 5
    targets   sat  mat

A row is what the decoder's batches feed in: texts end to end, each after the `<|endoftext|>` that opens it. What is
hidden in it is a pure function of (seed, key), and the key of training is the step, so every epoch hides others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TokenizerError
from glassformer.seeds import generator
from glassformer.text.batches import NO_LOSS, Batch, Batches
from glassformer.text.config import MaskConfig
from glassformer.text.tokenizer import Tokenizer

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskBatch:
    """Rows to learn from."""

    ids: Integers
    """(batch, context): the row, some of it hidden."""
    targets: Integers
    """(batch, picked): what stands at the picked places, NO_LOSS where a row has too few to pick."""
    places: Integers
    """(batch, picked): where, in rising order."""
    segments: NDArray[np.int32] | None
    """(batch, context): which document of the row, -1 where padded; None when all is one text."""
    sample_ids: Integers

    @property
    def num_targets(self) -> int:
        return int((self.targets != NO_LOSS).sum())

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """What the model's loss takes, by name."""
        return {"ids": self.ids, "targets": self.targets, "places": self.places, "segments": self.segments}


class MaskedBatches:
    """The batches of a decoder, with tokens hidden."""

    def __init__(self, plain: Batches, config: MaskConfig, tokenizer: Tokenizer, seed: int) -> None:
        self._plain, self._config, self._tokenizer, self._seed = plain, config, tokenizer, seed
        self._padded = plain.waste > 0
        self.num_samples, self.tokens_per_batch = plain.num_samples, plain.tokens_per_batch
        self.waste, self.warnings = plain.waste, plain.warnings

    def batch(self, step: int) -> MaskBatch:
        """The batch of this step, counted from 0."""
        batch = self._plain.batch(step)
        return masked(batch, self._config, self._tokenizer, self._seed, step, padded=self._padded)


def num_picked(config: MaskConfig, context: int) -> int:
    """Places picked in a row."""
    return max(1, round(config.share * context))


def masked(
    batch: Batch, config: MaskConfig, tokenizer: Tokenizer, seed: int, key: str | int, *, padded: bool = True
) -> MaskBatch:
    """Hide tokens of each row; the same `seed` and `key` hide the same ones.

    `padded` says that rows may be padded, so that segments keep the padding out of sight.
    """
    rng = generator(seed, "mask", key)
    shape = batch.ids.shape[0], num_picked(config, batch.ids.shape[1])
    empty = batch.targets == NO_LOSS
    chance = rng.random(batch.ids.shape)
    chance[empty | np.isin(batch.ids, list(tokenizer.specials.values()))] = 2.0  # after all others
    places = np.sort(np.argsort(chance, axis=1, kind="stable")[:, : shape[1]], axis=1)
    found = np.take_along_axis(batch.ids, places, axis=1)
    fair = np.take_along_axis(chance, places, axis=1) < 1
    fate = rng.random(shape)
    shown = np.where(fate < config.hidden, mask_id(tokenizer), rng.choice(_ordinary(tokenizer), shape))
    shown = np.where((fate < config.hidden + config.random) & fair, shown, found)
    ids = batch.ids.copy()
    np.put_along_axis(ids, places, shown, axis=1)
    segments = batch.segments
    if segments is None and padded:
        segments = np.where(empty, -1, 0).astype(np.int32)
    return MaskBatch(ids, np.where(fair, found, NO_LOSS), places, segments, batch.sample_ids)


def mask_id(tokenizer: Tokenizer) -> int:
    """The token that hides another, which the tokenizer must have."""
    if tokenizer.mask is None:
        raise TokenizerError(
            "The tokenizer has no token that stands for a hidden one.",
            expected="<|mask|>, [MASK] or <mask> among its special tokens.",
            do="Leave tokenizer.path out to train one, with mask_token = true.",
        )
    return tokenizer.mask


def _ordinary(tokenizer: Tokenizer) -> Integers:
    special: Sequence[int] = list(tokenizer.specials.values())
    return np.setdiff1d(np.arange(tokenizer.vocab_size), special)
