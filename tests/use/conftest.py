"""A small model whose tokens are bytes: untrained, so its texts are noise, but quick and exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])


@pytest.fixture(scope="session")
def make(tokenizer: Tokenizer) -> Callable[..., Loaded]:
    def make(**changes: Any) -> Loaded:
        small = {
            "vocab": tokenizer.vocab_size,
            "width": 32,
            "layers": 2,
            "heads": 4,
            "context": 32,
            "init": "xavier",
        }
        config = ModelConfig.model_validate(small | changes)
        return Loaded(build(config).eval().requires_grad_(False), tokenizer, config, Path("made"))

    return make


@pytest.fixture(scope="session")
def loaded(make: Callable[..., Loaded]) -> Loaded:
    return make()
