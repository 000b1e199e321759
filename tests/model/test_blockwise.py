"""Blockwise attention against torch's own and finite differences, over several blocks of queries."""

import pytest
import torch
import torch.nn.functional as F

from glassformer.model.blockwise import causal_attention


@pytest.mark.parametrize("length", [1, 5, 128, 129, 300, 600])
def test_blocks_of_queries_give_torchs_attention_and_gradients(length):
    inputs = [torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    blame = torch.randn(2, 3, length, 8, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(*inputs, is_causal=True)
    ours = causal_attention(*inputs)
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=0)
    theirs = torch.autograd.grad(expected, inputs, blame)
    for mine, other in zip(torch.autograd.grad(ours, inputs, blame), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_gradients_equal_finite_differences():
    inputs = [torch.randn(1, 1, 130, 1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(causal_attention, inputs, fast_mode=True)


def test_bfloat16_is_within_its_own_precision():
    inputs = [torch.randn(1, 2, 200, 16) for _ in range(3)]
    exact = causal_attention(*inputs)
    short = causal_attention(*(x.bfloat16() for x in inputs))
    assert short.dtype == torch.bfloat16
    assert (short - exact).norm() <= 0.02 * exact.norm()
