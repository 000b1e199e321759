"""Norms against torch's own modules and NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from glassformer.model.norms import Norm


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_equals_torchs_module(tiny, bias):
    ours = Norm(tiny(norm="layernorm", bias=bias)).double()
    theirs = nn.LayerNorm(24, eps=1e-5, bias=bias).double()
    _share(ours, theirs)
    x = torch.randn(3, 5, 24, dtype=torch.float64) * 7 + 2
    assert torch.equal(ours(x), theirs(x))


def test_rmsnorm_equals_torchs_module(tiny):
    ours, theirs = Norm(tiny(norm="rmsnorm")).double(), nn.RMSNorm(24, eps=1e-5).double()
    _share(ours, theirs)
    x = torch.randn(3, 5, 24, dtype=torch.float64) * 7 + 2
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_a_norm_is_the_formula_in_its_docstring(tiny, norm):
    layer = Norm(tiny(norm=norm, bias=True)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = np.random.default_rng(0).normal(3, 2, (4, 24))
    centred = x - x.mean(-1, keepdims=True) if norm == "layernorm" else x
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * layer.weight.detach().numpy()
    expected = expected if layer.bias is None else expected + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_explicit_path_agrees_with_the_fused_one(tiny, norm, dtype):
    layer = Norm(tiny(norm=norm, bias=True)).to(dtype)
    x = torch.randn(3, 5, 24, dtype=dtype)
    torch.testing.assert_close(
        layer.explicit(x, lambda name, y: y), layer(x), atol=2e-6 if dtype is torch.float32 else 1e-14, rtol=0
    )


def test_a_normalised_vector_has_mean_square_one(tiny):
    y = Norm(tiny())(torch.randn(100, 24) * 50)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(100), atol=1e-5, rtol=0)


def _share(ours: nn.Module, theirs: nn.Module) -> None:
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(mine)
        other.data.copy_(mine.data)
