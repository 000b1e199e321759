"""Compiled gradients have the same bits every time, on as many threads as there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from glassformer.train.compiler import cannot_compile, compile_steadily

pytestmark = pytest.mark.skipif(cannot_compile("cpu") is not None, reason="no C++ compiler")


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_the_gradient_of_an_embedding_is_the_same_to_the_bit(dtype: torch.dtype, error: float) -> None:
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(50, 64, generator=draw).to(dtype).requires_grad_()
    ids = torch.randint(0, 50, (16384,), generator=draw)  # each token some 330 times, in both halves
    factors = torch.rand(16384, 64, generator=draw).to(dtype)

    def loss(table: Tensor) -> Tensor:
        return (embedding(ids, table) * factors).float().sum()

    compiled = torch.compile(loss, backend=compile_steadily, dynamic=False)
    found = [torch.autograd.grad(compiled(table), table)[0] for _ in range(10)]
    assert all(torch.equal(one, found[0]) for one in found)
    right = torch.zeros(50, 64, dtype=torch.float64).index_add_(0, ids, factors.double())
    torch.testing.assert_close(found[0].double(), right, rtol=error, atol=0.0)
