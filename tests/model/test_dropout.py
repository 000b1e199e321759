"""Dropout: the right share, the mean kept, the same entries for the same seed, compiled or not."""

from __future__ import annotations

import pytest
import torch

from glassformer.model.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p_and_the_mean_stays(p: float) -> None:
    y = dropout(torch.ones(1_000_003), p, True)
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5)
    kept = y[y != 0]
    assert (kept == kept[0]).all() and kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-4)
    neighbours = ((y[:-1] == 0) & (y[1:] == 0)).double().mean().item()
    assert neighbours == pytest.approx(p * p, abs=0.002)  # four entries share a draw, and are independent


def test_nothing_is_dropped_when_not_training_or_with_p_zero() -> None:
    x = torch.randn(5)
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0, True) is x


def test_the_gradient_goes_through_what_was_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = dropout(x, 0.3, True)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_compiled_step_drops_the_same_entries() -> None:
    x = torch.randn(64, 33)
    torch.manual_seed(7)
    plain = dropout(x, 0.2, True)
    compiled = torch.compile(lambda y: dropout(y, 0.2, True) + 0.0)
    torch.manual_seed(7)
    assert torch.equal(compiled(x), plain)
