"""Tokenizers and tokens that do not fit, injected for real, numbered as in the project's list of faults."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glassformer.errors import TextError, TokenizerError
from glassformer.text.batches import Batches, validation_batches
from glassformer.text.config import TokenizerConfig
from glassformer.text.shards import Prepared
from glassformer.text.store import StoreWriter, TokenStore
from glassformer.text.tokenizer import END_OF_TEXT, Tokenizer

MakeStore = Callable[..., TokenStore]

Make = Callable[..., Prepared]
Python = Callable[..., subprocess.CompletedProcess[str]]


# 35: tokens that do not fit


def test_35_tokens_of_another_tokenizer_are_refused(make_store: MakeStore) -> None:
    store = make_store([b"text"])
    other = Tokenizer.train(TokenizerConfig(vocab=260), [b"text text"])
    with pytest.raises(TokenizerError, match="made with another tokenizer"):
        TokenStore.open(store.path, tokenizer=other)


def test_35_ids_beyond_the_vocabulary_or_16_bits_are_refused(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    for wrong in (257, 65_536, -1):
        with (
            pytest.raises(TokenizerError, match="Ids from 0 to 256"),
            StoreWriter(tmp_path / f"{wrong}", byte_tokenizer, "") as writer,
        ):
            writer.add("d", 0, np.array([1, wrong]), 2)
        assert not (tmp_path / f"{wrong}/manifest.json").exists()


# 36: too little text


def test_36_too_little_text_is_refused_or_warned_about_with_numbers(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a.txt").write_text("tiny")
    made = make(tmp_path, "a.txt")
    assert "5.0% of 4 bytes is too little to hold out anything: there is no validation loss." in made.warnings
    assert list(validation_batches(made.validation, batch=2, context=8)) == []
    with pytest.raises(TextError, match="has 5 tokens, fewer than one context of 8"):
        Batches(made.train, batch=1, context=8, seed=0)
    with pytest.raises(TextError, match="All 4 bytes of text are held out"):
        make(tmp_path, "a.txt", validation=0.99)


def test_36_validation_that_overlaps_training_is_warned_about_with_numbers(
    tmp_path: Path, make: Make
) -> None:
    (tmp_path / "texts").mkdir()
    rng = np.random.default_rng(0)
    common = rng.bytes(2000).hex()
    for number in range(40):
        (tmp_path / f"texts/{number}.txt").write_text(common + rng.bytes(100).hex())
    made = make(tmp_path, "texts", validation=0.2)
    assert made.report["overlap_stretches"] > 0.9
    assert any("of the validation text (50-byte stretches) also occurs" in w for w in made.warnings)


# 37: files that change while they are used


@pytest.mark.parametrize("fault", ["truncated", "deleted", "changed"])
def test_37_a_token_file_that_changes_in_use_is_a_clear_stop(make_store: MakeStore, fault: str) -> None:
    store = make_store([b"some text " * 5000])
    batches = Batches(store, batch=2, context=16, seed=0)
    batches.batch(0)
    ids = store.path / "ids.npy"
    if fault == "truncated":
        os.truncate(ids, 100)  # reading the mapping now would be SIGBUS
    elif fault == "deleted":
        ids.unlink()
    else:
        with ids.open("r+b") as file:
            file.seek(200)
            file.write(b"\0")
            os.utime(ids)
    with pytest.raises(
        TextError, match=r"ids.npy was changed, truncated or deleted while it was in use.*Run the same"
    ):
        batches.batch(1)
    with pytest.raises(TextError, match=r"ids\.npy was changed"):
        next(validation_batches(store, batch=2, context=16))


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("ids.npy", "truncate", "ids.npy has 99 bytes instead of"),
        ("ids.npy", "flip", "the content of ids.npy has changed"),
        ("starts.npy", "flip", "the content of starts.npy has changed"),
        ("names.txt", "delete", "names.txt is missing"),
        ("manifest.json", "truncate", "its manifest cannot be read"),
    ],
)
def test_37_a_damaged_store_is_refused_when_opened(
    make_store: MakeStore, byte_tokenizer: Tokenizer, name: str, fault: str, reason: str
) -> None:
    store = make_store([b"some text " * 50])
    file = store.path / name
    data = bytearray(file.read_bytes())
    if fault == "delete":
        file.unlink()
    else:
        data[-2] ^= 1
        file.write_bytes(data if fault == "flip" else data[:99])
    with pytest.raises(TextError, match=reason):
        TokenStore.open(store.path, tokenizer=byte_tokenizer)


# 38: special tokens in text


@pytest.mark.parametrize("kind", ["bpe", "characters", "bytes"])
def test_38_a_special_token_in_the_corpus_is_only_text(tmp_path: Path, kind: str, make: Make) -> None:
    (tmp_path / "a.txt").write_text(f"before{END_OF_TEXT}after " * 50)
    config = TokenizerConfig.model_validate({"kind": kind, "vocab": 300})
    made = make(tmp_path, "a.txt", tokenizer=config, validation=0)
    ends = np.flatnonzero(made.train.ids == made.tokenizer.end_of_text)
    assert ends.tolist() == [made.train.num_tokens - 1]
    assert END_OF_TEXT in made.tokenizer.decode(made.train.ids)


# 39: training a tokenizer

TRAIN = """
import sys
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from pathlib import Path
text = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.py"))[:60]]
tokenizer = Tokenizer.train(TokenizerConfig(vocab=2000), text)
print(tokenizer.digest, hash(tuple(int(i) for ids in tokenizer.encode_batch(text) for i in ids)))
"""


def test_39_the_tokenizer_is_the_same_whatever_the_number_of_threads(python: Python) -> None:
    folder = str(Path(os.__file__).parent)
    settings = [{"RAYON_NUM_THREADS": n, "PYTHONHASHSEED": n} for n in ("1", "2", "5")]
    settings.append({"TOKENIZERS_PARALLELISM": "false"})
    assert len({python(TRAIN, folder, **environment).stdout for environment in settings}) == 1


def test_39_a_vocabulary_larger_than_the_text_gives_is_what_it_gives_and_said(
    tmp_path: Path, make: Make
) -> None:
    (tmp_path / "a.txt").write_text("a" * 10_000)
    made = make(tmp_path, "a.txt", tokenizer=TokenizerConfig(vocab=50_000))
    assert 257 < made.tokenizer.vocab_size < 300
    assert made.tokenizer.decode(made.tokenizer.encode("aaaab")) == "aaaab"
    assert any("not the 50,000 asked for" in warning for warning in made.warnings)


def test_39_training_reads_no_more_than_its_limit() -> None:
    taken = 0

    def endless() -> itertools.chain[bytes]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield b"document %d, and some words\n" % number * 10

    config = TokenizerConfig(vocab=300, training_bytes=100_000)
    first, second = (Tokenizer.train(config, endless()) for _ in range(2))
    assert first.digest == second.digest
    assert taken < 2 * 400


# 40: a corpus that grew


def test_40_a_corpus_that_gained_a_file_has_another_digest_and_the_old_tokens_stay(
    tmp_path: Path, make: Make
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number}.txt").write_text(f"text {number} " * 20)
    first = make(tmp_path, "texts", validation=0.2)
    (tmp_path / "texts/new.txt").write_text("a new text")
    second = make(tmp_path, "texts", validation=0.2)
    assert first.digest != second.digest
    assert first.path.is_dir()
    assert set(first.validation.names) <= set(second.validation.names)
    (tmp_path / "texts/new.txt").unlink()
    assert make(tmp_path, "texts", validation=0.2).digest == first.digest
