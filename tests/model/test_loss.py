"""The loss against F.cross_entropy, NumPy and finite differences; whole and in chunks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from glassformer.model.loss import IGNORE, linear_cross_entropy
from glassformer.model.stacks import Decoder

SMOOTHING, Z = [0.0, 0.1], [0.0, 0.01]


def case(dtype=torch.float64, tokens=16, vocab=20):
    hidden = torch.randn(tokens, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,))
    targets[::5] = IGNORE
    return hidden, weight, targets


def by_hand(hidden, weight, targets, smoothing, z):
    """Mean over counted tokens of the formula in the module's docstring, in NumPy."""
    logits = hidden.detach().numpy() @ weight.detach().numpy().T
    lse = np.log(np.exp(logits).sum(-1))
    counted = targets.numpy() != IGNORE
    right = logits[np.arange(len(logits)), np.where(counted, targets.numpy(), 0)]
    loss = (1 - smoothing) * (lse - right) + smoothing * (lse - logits.mean(-1)) + z * lse**2
    return loss[counted].mean()


@pytest.mark.parametrize("at_once", [10**9, 60, 1], ids=["whole", "three rows a chunk", "one row a chunk"])
@pytest.mark.parametrize("z", Z)
@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_the_loss_is_the_formula(smoothing, z, at_once):
    hidden, weight, targets = case()
    ours = linear_cross_entropy(
        hidden, weight, targets, label_smoothing=smoothing, z_loss=z, logits_at_once=at_once
    )
    assert ours.item() == pytest.approx(by_hand(hidden, weight, targets, smoothing, z), abs=1e-13)


@pytest.mark.parametrize("at_once", [10**9, 60])
@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_value_and_gradients_equal_torchs_cross_entropy(smoothing, at_once):
    hidden, weight, targets = case()
    theirs = F.cross_entropy(
        F.linear(hidden, weight), targets, ignore_index=IGNORE, label_smoothing=smoothing
    )
    expected = torch.autograd.grad(theirs, (hidden, weight))
    ours = linear_cross_entropy(hidden, weight, targets, label_smoothing=smoothing, logits_at_once=at_once)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    for mine, other in zip(torch.autograd.grad(ours, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-14, rtol=0)


@given(tokens=st.integers(1, 9), at_once=st.integers(1, 100), seed=st.integers(0, 99))
def test_any_chunk_size_gives_the_loss_and_gradients_of_the_whole(tokens, at_once, seed):
    torch.manual_seed(seed)
    hidden, weight, targets = case(tokens=tokens, vocab=7)
    options = {"label_smoothing": 0.2, "z_loss": 0.1, "num_targets": 5}
    results = []
    for size in (10**9, at_once):
        loss = linear_cross_entropy(hidden, weight, targets, logits_at_once=size, **options)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-13, rtol=0)


@pytest.mark.parametrize("at_once", [10**9, 60])
def test_gradients_equal_finite_differences(at_once):
    hidden, weight, targets = case()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(
            h, w, targets, label_smoothing=0.1, z_loss=0.05, num_targets=7, logits_at_once=at_once
        ),
        (hidden, weight),
    )


@pytest.mark.parametrize("at_once", [10**9, 60])
def test_a_row_without_targets_has_no_loss_and_no_gradient(at_once):
    hidden, weight, targets = case()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE), logits_at_once=at_once)
    assert loss.item() == 0.0
    assert all(grad.count_nonzero() == 0 for grad in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("at_once", [10**9, 60])
def test_micro_batches_with_num_targets_add_up_to_the_batch(at_once):
    hidden, weight, targets = case()
    count = int((targets != IGNORE).sum())
    parts = [
        linear_cross_entropy(hidden[rows], weight, targets[rows], num_targets=count, logits_at_once=at_once)
        for rows in (slice(0, 3), slice(3, 16))
    ]
    whole = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(sum(parts), whole, atol=1e-14, rtol=0)


@pytest.mark.parametrize("at_once", [10**9, 60])
def test_bfloat16_is_within_its_own_precision_of_float32(at_once):
    hidden, weight, targets = case(torch.float32)
    exact = linear_cross_entropy(hidden, weight, targets)
    expected = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_cross_entropy(hidden, weight, targets, logits_at_once=at_once)
    working = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, logits_at_once=at_once)
    for loss in (cast, working):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=0.01)
        for mine, other in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
            assert (mine - other).norm() <= 0.02 * other.norm()


def test_an_untrained_models_loss_is_the_logarithm_of_its_vocabulary(tiny):
    ids = torch.randint(0, 29, (4, 16))
    assert Decoder(tiny()).loss(ids, ids.roll(-1)).item() == pytest.approx(np.log(29), rel=0.01)
