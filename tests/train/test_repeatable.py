"""`engine.deterministic`: an operation without a repeatable way is refused by name; a training step has none."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from sessions import Breaker
from torch import Tensor

from glassformer.train.loop import Session
from glassformer.train.repeatable import NotDeterministic, refused_operation, repeatable


def scatter(module: Any, given: Any, out: Tensor) -> Tensor:
    """`put_` writes in any order where a place is named twice, and torch has no other way."""
    return out + torch.zeros_like(out).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)


def test_an_operation_without_a_repeatable_way_is_named_and_the_choice_is_offered(breaker: Breaker) -> None:
    def prepare(session: Session) -> None:
        session.model.blocks[1].mlp.register_forward_hook(scatter)

    short = {"train__steps": 4}
    with pytest.raises(NotDeterministic) as raised:
        breaker("refused", prepare=prepare, engine__deterministic=True, **short)
    said = str(raised.value)
    assert said.startswith("put_ gives other bits each time")
    for choice in ("engine.deterministic = false", "engine.attention", "engine.device cpu"):
        assert choice in said
    assert not torch.are_deterministic_algorithms_enabled()
    breaker("allowed", prepare=prepare, **short)


@pytest.mark.parametrize(
    ("attention", "settings"),
    [
        ("explicit", {"optimizer__kind": "muon"}),
        ("fused", {"model__dropout": 0.1, "engine__precision": "bf16"}),
        ("blocks", {"engine__precision": "autocast", "train__label_smoothing": 0.1, "train__z_loss": 1e-4}),
        ("auto", {}),
    ],
)
def test_a_step_with_any_kind_of_attention_has_only_repeatable_operations(
    breaker: Breaker, attention: str, settings: dict[str, Any]
) -> None:
    seen = []

    def prepare(session: Session) -> None:
        session.model.embed.register_forward_hook(
            lambda module, given, out: seen.append(torch.are_deterministic_algorithms_enabled())
        )

    short = {"train__steps": 4, "engine__attention": attention, **settings}
    found = breaker(
        f"steady {attention}", prepare=prepare, engine__deterministic=True, faults__replay_every=2, **short
    )
    assert sum(seen) >= 6 and not torch.are_deterministic_algorithms_enabled()
    assert found.warned == ""
    if attention != "auto":
        assert found.story == breaker(f"usual {attention}", **short).story


def test_where_it_is_not_asked_for_nothing_is_changed() -> None:
    with repeatable(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with repeatable(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="another"), repeatable(True):
        raise RuntimeError("another")
    assert refused_operation(ValueError("put_ failed")) is None
    cublas = RuntimeError(
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
        "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses "
        "CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment "
        "variable before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8"
    )
    assert refused_operation(cublas) == "a product by cuBLAS"
