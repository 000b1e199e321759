"""Small models for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from glassformer.model.config import ModelConfig

Tiny = Callable[..., ModelConfig]


@pytest.fixture
def tiny() -> Tiny:
    """`tiny(gated=True)`: a config small enough to check by hand, with the changes asked for."""

    def make(**changes: object) -> ModelConfig:
        small = {"vocab": 29, "width": 24, "layers": 2, "heads": 4, "context": 16}
        return ModelConfig.model_validate({**small, **changes})

    return make


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
