"""Masters: nothing that bfloat16 cannot show is lost."""

from __future__ import annotations

import pytest
import torch

from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.stacks import Decoder, build
from glassformer.train.weights import Weights


@pytest.fixture
def model() -> Decoder:
    return build(ModelConfig(vocab=11, width=8, layers=1, heads=2, context=4), seed=0)


def gradients_of(weights: Weights, scale: float) -> None:
    sum((w * scale).sum() for w in weights.working.values()).backward()
    weights.collect()


def test_an_update_too_small_for_bfloat16_is_not_lost(model: Decoder) -> None:
    weights = Weights(model, "bf16")
    name, master = next(iter(weights.masters.items()))
    with torch.no_grad():
        master.fill_(1.0)
    weights.refresh()
    for _ in range(100):
        with torch.no_grad():
            master.add_(2**-12)  # bfloat16 has 8 bits: 1 + 2^-12 is 1
        weights.refresh()
    assert master[0, 0] == 1 + 100 * 2**-12
    assert abs(weights.working[name][0, 0].item() - master[0, 0].item()) <= 2**-8
    assert weights.working[name][0, 0] > 1.0


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_without_bfloat16_the_masters_are_the_weights(model: Decoder, precision: Precision) -> None:
    weights = Weights(model, precision)
    assert all(master is dict(model.named_parameters())[name] for name, master in weights.masters.items())


def test_working_weights_are_the_masters_rounded(model: Decoder) -> None:
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    weights = Weights(model, "bf16")
    for name, w in weights.working.items():
        assert w.dtype == torch.bfloat16 and weights.masters[name].dtype == torch.float32
        assert torch.equal(weights.masters[name], before[name]) and torch.equal(w, before[name].bfloat16())


def test_gradients_of_several_micro_batches_add_up_in_float32(model: Decoder) -> None:
    weights = Weights(model, "bf16")
    weights.zero_gradients()
    gradients_of(weights, 1.0)
    gradients_of(weights, 2**-10)  # in bfloat16 the sum would be 1
    assert all(g.dtype == torch.float32 and torch.all(g == 1 + 2**-10) for g in weights.gradients)
    weights.zero_gradients()
    gradients_of(weights, 3.0)
    assert all(torch.all(g == 3) for g in weights.gradients)


def test_what_is_loaded_is_what_both_hold(model: Decoder) -> None:
    weights = Weights(model, "bf16")
    wanted = {name: torch.randn_like(master) for name, master in weights.masters.items()}
    weights.load(wanted)
    assert all(torch.equal(weights.masters[name], value) for name, value in wanted.items())
    assert all(torch.equal(weights.working[name], value.bfloat16()) for name, value in wanted.items())


def test_at_the_end_the_model_has_the_masters_values_in_float32(model: Decoder) -> None:
    weights = Weights(model, "bf16")
    with torch.no_grad():
        for master in weights.masters.values():
            master.add_(2**-14)
    weights.settle()
    for name, w in model.named_parameters():
        assert w.dtype == torch.float32 and torch.equal(w, weights.masters[name]) and w.grad is None
