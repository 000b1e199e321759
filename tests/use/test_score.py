"""Scores against closed forms, and against reading one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glassformer.errors import ModelError, TextError
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded
from glassformer.use.score import score

Make = Callable[..., Loaded]


def one_at_a_time(loaded: Loaded, text: str) -> list[float]:
    """Each token predicted from what its window holds before it, by the definition."""
    context, half = loaded.config.context, loaded.config.context // 2
    ids = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(text).tolist()]
    nats = []
    for target in range(1, len(ids)):
        moves = max(0, -(-(target - context) // (context - half)))
        start = moves * (context - half)
        logits = loaded.model(torch.tensor([ids[start:target]]))[0, -1]
        nats.append(-logits.log_softmax(-1)[ids[target]].item())
    return nats


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 48, 49, 100])
@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"context": 31}, {"context": 1}])
def test_every_token_is_counted_once_as_if_read_alone(
    make: Make, changes: dict[str, object], length: int
) -> None:
    loaded = make(**changes)
    text = ("It was a bright cold day in April, and the clocks were striking thirteen. " * 2)[:length]
    found = score(loaded, text, per_token=True)
    expected = one_at_a_time(loaded, text)
    assert found.tokens == length == len(expected)
    assert found.per_token is not None
    torch.testing.assert_close(found.per_token[0], expected, rtol=0, atol=2e-5)
    assert found.loss == pytest.approx(sum(expected) / length, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_a_model_that_knows_nothing_has_the_logarithm_of_the_vocabulary_as_loss(make: Make) -> None:
    loaded = make(tied=False)
    with torch.no_grad():
        loaded.model.head.weight.zero_()
    found = score(loaded, "ünïcødé " * 40)
    assert found.loss == pytest.approx(math.log(257), abs=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(257), abs=1e-6)
    assert found.bytes == found.tokens == len(("ünïcødé " * 40).encode())


def test_bits_per_byte_count_the_bytes_of_the_text_whatever_the_tokens() -> None:
    from glassformer.model.config import ModelConfig
    from glassformer.model.stacks import build

    text = "the cat sat on the mat and the dog sat on the cat " * 20
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bpe", vocab=300), [text.encode()])
    config = ModelConfig(vocab=tokenizer.vocab_size, width=16, layers=1, heads=2, context=16)
    found = score(Loaded(build(config).eval(), tokenizer, config, Path("made")), text)
    assert found.bytes == len(text) and found.tokens == len(tokenizer.encode(text)) < len(text)
    assert found.bits_per_byte == pytest.approx(found.loss * found.tokens / found.bytes / math.log(2))


def test_texts_bytes_and_files_are_documents_that_do_not_see_each_other(
    loaded: Loaded, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff not utf-8 \r\n" * 5)
    documents = ["short", b"bytes " * 30, file, "", "x"]
    together = score(loaded, documents, per_token=True)
    alone = [score(loaded, document, per_token=True) for document in documents if document != ""]
    assert together.documents == 5 and together.per_token is not None
    rows = [row for row in together.per_token if row]
    for row, single in zip(rows, alone, strict=True):
        assert single.per_token is not None
        torch.testing.assert_close(row, single.per_token[0], rtol=0, atol=1e-5)
    nats = sum(single.loss * single.tokens for single in alone)
    assert together.loss == pytest.approx(nats / together.tokens, abs=1e-6)


def test_nothing_to_score_is_an_error(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for nothing in ("", b"", tmp_path / "empty", ["", b""], []):
        with pytest.raises(TextError, match="empty"):
            score(loaded, nothing)  # type: ignore[arg-type] # a list of both is an iterable of either
    with pytest.raises(TextError, match=r"absent.txt cannot be read: No such file"):
        score(loaded, tmp_path / "absent.txt")
    with pytest.raises(TextError, match="cannot be read"):
        score(loaded, tmp_path)


def test_a_model_that_has_overflowed_says_so(make: Make) -> None:
    loaded = make()
    with torch.no_grad():
        loaded.model.embed.weight[5] = math.nan
    with pytest.raises(ModelError, match="The loss of this text is nan"):
        score(loaded, "abc")


def test_its_document_carries_the_agreed_keys(loaded: Loaded) -> None:
    document = score(loaded, "abc").to_dict()
    assert (document["schema"], document["version"]) == ("glassformer.score", 1)
    assert {"loss", "bits_per_byte", "tokens", "bytes"} <= document.keys()
