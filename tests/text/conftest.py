"""What several tests of the text room need: a tokenizer, and a store made of given documents."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.shards import Prepared, prepare
from glassformer.text.store import StoreWriter, TokenStore
from glassformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind="bytes"), [])


@pytest.fixture
def make_store(tmp_path: Path, byte_tokenizer: Tokenizer) -> Callable[..., TokenStore]:
    """Each document becomes len + 1 tokens: its bytes, then end_of_text (256)."""

    def make(documents: Sequence[bytes], sources: Sequence[int] | None = None) -> TokenStore:
        folder = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        with StoreWriter(folder, byte_tokenizer, "content") as writer:
            for number, data in enumerate(documents):
                source = sources[number] if sources else 0
                writer.add(f"doc-{number}", source, byte_tokenizer.encode(data), len(data))
        return TokenStore.open(folder, tokenizer=byte_tokenizer)

    return make


@pytest.fixture
def make() -> Callable[..., Prepared]:
    """Prepare `paths` below `base`, as bytes unless another tokenizer is named."""

    def make(
        base: Path, *paths: str, tokenizer: TokenizerConfig | None = None, **settings: object
    ) -> Prepared:
        data = DataConfig.model_validate({"paths": paths, **settings})
        return prepare(data, tokenizer or TokenizerConfig(kind="bytes"), base=base, cache=base / "cache")

    return make


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own, with the tokenizers library's variable not set."""

    def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**own, **environment},
        )

    return python
