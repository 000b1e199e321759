"""The feed-forward layer against NumPy and scipy, for every activation, plain and gated."""

import numpy as np
import pytest
import torch
from scipy.special import erf, expit

from glassformer.model.feedforward import ACTIVATIONS, FeedForward

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * expit(x),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


def test_every_activation_has_a_formula_here():
    assert set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
def test_feed_forward_is_the_formula_in_its_docstring(tiny, activation, gated):
    layer = FeedForward(tiny(activation=activation, gated=gated, bias=True)).double()
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    up, up_bias, down, down_bias = (p.detach().numpy() for p in layer.parameters())
    wide = x.numpy() @ up.T + up_bias
    if gated:
        gate, value = np.split(wide, 2, axis=-1)
        expected = FORMULAS[activation](gate) * value
    else:
        expected = FORMULAS[activation](wide)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected @ down.T + down_bias, atol=1e-13)


def test_the_size_left_out_is_four_widths_or_eight_thirds_when_gated(tiny):
    assert FeedForward(tiny()).down.in_features == 96
    assert FeedForward(tiny(width=96, gated=True)).down.in_features == 256
