"""The digest of many tensors: every bit of every one counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glassformer.train.digests import digests_of, fold, pieces
from glassformer.train.memory import Memory
from glassformer.train.weights import Weights

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def digest(tensors: dict[str, Tensor]) -> int:
    return fold(list(digests_of(tensors).values()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_single_bit_that_flips_in_any_tensor_changes_the_digest(data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    tensors = {}
    for number in range(data.draw(st.integers(1, 5))):
        size, dtype = data.draw(st.integers(1, 1500)), data.draw(st.sampled_from(DTYPES[:-1]))
        memory = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator)
        tensors[str(number)] = memory.view(dtype)
    before, each = digest(tensors), digests_of(tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    memory = tensors[name].view(torch.uint8)
    place, bit = data.draw(st.integers(0, memory.numel() - 1)), data.draw(st.integers(0, 7))
    memory[place] ^= 1 << bit
    assert digest(tensors) != before
    assert [key for key, number in digests_of(tensors).items() if number != each[key]] == [name]
    memory[place] ^= 1 << bit
    assert digest(tensors) == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_of_the_numbers_wherever_they_lie(dtype: torch.dtype) -> None:
    x = (torch.arange(1, 4001) % 200).to(dtype)
    odd, turned = x[3:1200], x.view(80, 50).t()
    assert digests_of({"a": odd}) == digests_of({"a": odd.clone()})
    assert digests_of({"a": turned}) == digests_of({"a": turned.contiguous()})
    assert torch.equal(torch.cat(list(pieces(x, 999))), x)
    assert digests_of({}) == {} and digests_of({"empty": x[:0]}) == {"empty": 0}


def test_two_tensors_that_changed_places_are_not_the_same() -> None:
    a, b = torch.randn(2, 100)
    assert digest({"a": a, "b": b}) != digest({"a": b, "b": a})
    swapped = a.clone()
    swapped[[0, 3]] = a[[3, 0]]
    assert digest({"a": a}) != digest({"a": swapped})


def test_a_state_that_comes_back_from_memory_has_the_digest_it_had() -> None:
    weights, memory = Weights(torch.nn.Linear(300, 7), "fp32"), Memory()
    before = digests_of(weights.masters)
    assert memory.keep(3, weights, [], {})
    with torch.no_grad():
        weights.masters["weight"][0, 0] += 1e-7
    assert digests_of(weights.masters) != before
    memory.restore(weights, [])
    assert digests_of(weights.masters) == before
