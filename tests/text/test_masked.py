"""What is hidden: how much, where, how, and the same again for the same seed and step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import TokenizerError
from glassformer.text.batches import NO_LOSS, Batch
from glassformer.text.config import MaskConfig, TokenizerConfig
from glassformer.text.masked import masked, num_picked
from glassformer.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="bytes", mask_token=True), [b""])
END, MASK = TOKENIZER.end_of_text, TOKENIZER.mask
rows_of_tokens = st.tuples(st.integers(1, 5), st.integers(2, 60), st.integers(0, 10**6))


def made(rows: int, context: int, seed: int, ends: float = 0.1, padded: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(256, size=(rows, context))
    ids[rng.random((rows, context)) < ends] = END
    targets = rng.integers(256, size=(rows, context))
    if padded:
        ids[0, -padded:], targets[0, -padded:] = END, NO_LOSS
    return Batch(ids, targets, None, np.arange(rows))


@given(rows_of_tokens, st.floats(0.01, 0.9))
@settings(deadline=None)
def test_exactly_a_share_of_each_row_is_picked_and_targets_are_what_stood_there(
    shape: tuple[int, int, int], share: float
) -> None:
    batch, config = made(*shape, ends=0.0), MaskConfig(share=share)
    found = masked(batch, config, TOKENIZER, 3, 7)
    assert found.places.shape == (shape[0], max(1, round(share * shape[1])))
    assert (np.diff(found.places, axis=1) > 0).all()  # no place twice
    assert (found.targets == np.take_along_axis(batch.ids, found.places, axis=1)).all()
    assert found.num_targets == found.targets.size
    hidden = np.zeros(batch.ids.shape, bool)
    np.put_along_axis(hidden, found.places, True, axis=1)
    assert (found.ids[~hidden] == batch.ids[~hidden]).all()


@given(rows_of_tokens, st.integers(1, 30))
@settings(deadline=None)
def test_ends_of_text_and_padding_are_never_hidden_and_padding_is_out_of_sight(
    shape: tuple[int, int, int], padded: int
) -> None:
    padded = min(padded, shape[1] - 1)
    batch = made(*shape, ends=0.7, padded=padded)
    found = masked(batch, MaskConfig(share=0.5), TOKENIZER, 0, 0)
    assert (found.ids[batch.ids == END] == END).all()
    assert END not in found.targets and found.segments is not None
    assert ((found.segments == -1) == (batch.targets == NO_LOSS)).all()
    real = ((batch.ids != END) & (batch.targets != NO_LOSS)).sum(1)
    assert (
        (found.targets != NO_LOSS).sum(1) == np.minimum(real, num_picked(MaskConfig(share=0.5), shape[1]))
    ).all()


def test_of_what_is_picked_eight_tenths_are_hidden_one_is_another_token_and_one_stays() -> None:
    batch = made(200, 400, 5, ends=0.0)
    found = masked(batch, MaskConfig(), TOKENIZER, 1, 1)
    shown = np.take_along_axis(found.ids, found.places, axis=1)
    same, hid = (shown == found.targets).mean(), (shown == MASK).mean()
    # 12,000 picks: the standard error of a share is below 0.004; a random token is the same one in 1/256 of cases
    assert abs(hid - 0.8) < 0.015 and abs(same - 0.1 - 0.1 / 256) < 0.012
    assert END not in shown
    everything = masked(batch, MaskConfig(hidden=1.0, random=0.0), TOKENIZER, 1, 1)
    assert (np.take_along_axis(everything.ids, everything.places, axis=1) == MASK).all()


def test_the_same_seed_and_step_hide_the_same_and_others_hide_others() -> None:
    batch = made(4, 64, 0)
    first, again, step, seed = (
        masked(batch, MaskConfig(), TOKENIZER, s, k) for s, k in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    for name, array in first.arrays().items():
        assert np.array_equal(array, again.arrays()[name])  # type: ignore[arg-type] # all are given
    assert not np.array_equal(first.places, step.places) and not np.array_equal(first.places, seed.places)


def test_a_tokenizer_without_a_token_that_hides_is_refused() -> None:
    plain = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    with pytest.raises(TokenizerError, match="mask_token = true"):
        masked(made(1, 8, 0), MaskConfig(), plain, 0, 0)
