"""Text -> a tokenizer and two token stores, made once and kept in a cache.

1. Read everything once: content digest, sizes, split (`split.survey`).
2. The key of the cache follows from that digest and the settings. What is there and whole is used (`cache`).
3. Otherwise train the tokenizer, make the text report, and encode.

The content digest is taken again while encoding, so a file that changes between the two readings is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from glassformer.errors import TextError
from glassformer.text.cache import read_or_make
from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.corpus import Document, read
from glassformer.text.report import text_report
from glassformer.text.split import ContentDigest, Survey, by_source, split, survey
from glassformer.text.store import FORMAT, StoreWriter, TokenStore
from glassformer.text.tokenizer import Tokenizer
from glassformer.units import show_bytes, show_count

__all__ = ["Prepared", "TokenStore", "prepare"]

ENCODED_AT_ONCE = 8 * 2**20  # bytes of text held while encoding


@dataclass(frozen=True)
class Prepared:
    """Text, ready to train on."""

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    digest: str
    """Of content, settings and tokenizer: a run resumes only on the same."""
    report: dict[str, Any]
    """The text report, as `TextReport.to_dict` gives it."""
    warnings: tuple[str, ...]
    path: Path
    """The folder in the cache."""


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    base: Path,
    cache: Path,
    progress: Callable[[str], None] = lambda message: None,
) -> Prepared:
    """Read, tokenise and store the text of `data`, or find it in `cache` by its content."""
    progress("reading the text")
    found = survey(data, base=base)
    key = _key(found, data, tokenizer, base)
    return read_or_make(
        cache, key, read=lambda folder: _open(folder, key, found),
        make=lambda folder: _write(folder, found, data, tokenizer, base, progress),
        progress=progress, num_bytes=sum(found.num_bytes),
    )  # fmt: skip


def _key(found: Survey, data: DataConfig, tokenizer: TokenizerConfig, base: Path) -> str:
    given = (
        Tokenizer.load(base / tokenizer.path).digest
        if tokenizer.path
        else tokenizer.model_dump(exclude={"path"})
    )
    shape = {
        "format": FORMAT,
        "content": found.digest,
        "validation": data.validation,
        "tail": found.tail,
        "tokenizer": given,
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _open(folder: Path, key: str, found: Survey) -> Prepared:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    stores = [TokenStore.open(folder / side, tokenizer=tokenizer) for side in ("train", "validation")]
    try:
        report = json.loads((folder / "report.json").read_text())
        warnings = json.loads((folder / "warnings.json").read_text())
    except (OSError, ValueError) as error:
        raise TextError(f"The report in {folder} cannot be read: {error}.") from None
    every_warning = tuple(dict.fromkeys([*found.warnings, *warnings]))
    return Prepared(tokenizer, stores[0], stores[1], key, report, every_warning, folder)


def _write(
    folder: Path,
    found: Survey,
    data: DataConfig,
    config: TokenizerConfig,
    base: Path,
    progress: Callable[[str], None],
) -> None:
    size = sum(found.num_bytes)
    progress(f"looking at {sum(found.num_documents):,} documents, {show_bytes(size)}")
    report = text_report(data, base=base)
    if config.path:
        tokenizer = Tokenizer.load(base / config.path)
    else:
        progress(f"learning a tokenizer ({config.kind})")
        tokenizer = Tokenizer.train(config, _training_text(found, data, config, base))
    tokenizer.save(folder / "tokenizer.json")
    progress(f"encoding with {tokenizer.vocab_size:,} tokens")
    num_tokens = [0] * len(data.sources)
    with (
        StoreWriter(folder / "train", tokenizer, found.digest) as train,
        StoreWriter(folder / "validation", tokenizer, found.digest) as validation,
    ):
        for group in _groups(_read_again(found, data, base)):
            encoded = tokenizer.encode_batch([part.data for part in group])
            for part, ids in zip(group, encoded, strict=True):
                side = validation if part.held_out else train
                side.add(part.name, part.source, ids, len(part.data))
                num_tokens[part.source] += len(ids) + 1
            done = show_bytes(train.num_bytes + validation.num_bytes)
            progress(f"encoded {done} of {show_bytes(size)}, {show_count(sum(num_tokens))} tokens")
    warnings = [*report.warnings, *_size_warnings(config, tokenizer, train, validation, data)]
    (folder / "report.json").write_text(json.dumps(report.with_tokens(num_tokens).to_dict()))
    (folder / "warnings.json").write_text(json.dumps(warnings))


@dataclass(frozen=True, slots=True)
class _Part:
    """A document, or the half of it that lies on one side of the split."""

    source: int
    name: str
    data: bytes
    held_out: bool


def _read_again(found: Survey, data: DataConfig, base: Path) -> Iterator[_Part]:
    """Everything with text, as split; raises at the end when it is not what the survey saw."""
    digest = ContentDigest()

    def counted() -> Iterator[Document]:
        for source, document in by_source(read(data, base=base), data):
            digest.add(source, document.data)
            yield document

    for source, document, border in split(counted(), data, found):
        if border:
            yield _Part(source, document.name, document.data[:border], held_out=False)
        if border < len(document.data):
            yield _Part(source, document.name, document.data[border:], held_out=True)
    if digest.hexdigest() != found.digest:
        raise TextError(
            "The text changed while it was being read.",
            expected="The same content at both readings.",
            do="Run the command again when nothing writes to it.",
        )


def _training_text(found: Survey, data: DataConfig, config: TokenizerConfig, base: Path) -> Iterator[bytes]:
    """What the tokenizer learns from: the training side, every n-th document of it when there is too much.
    `characters` reads all, both sides: it must know every character that will occur."""
    everything = config.kind == "characters"
    step = 1 if everything else -(-sum(found.num_bytes) // config.training_bytes)
    documents = split(read(data, base=base), data, found)
    texts = (document.data if everything else document.data[:border] for _, document, border in documents)
    return islice(texts, 0, None, step)


def _groups(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    group, size = [], 0
    for part in parts:
        group.append(part)
        size += len(part.data)
        if size >= ENCODED_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size_warnings(
    config: TokenizerConfig,
    tokenizer: Tokenizer,
    train: StoreWriter,
    validation: StoreWriter,
    data: DataConfig,
) -> list[str]:
    if train.num_tokens == 0:
        raise TextError(
            f"All {validation.num_bytes:,} bytes of text are held out: nothing is left to train on.",
            do="Give more text, or lower data.validation.",
        )
    found = []
    if validation.num_tokens == 0 and data.validation:
        found.append(
            f"{data.validation:.1%} of {train.num_bytes:,} bytes is too little to hold out anything: "
            "there is no validation loss."
        )
    if config.kind == "bpe" and not config.path and tokenizer.vocab_size < config.vocab:
        found.append(
            f"The text gives {tokenizer.vocab_size:,} tokens, not the {config.vocab:,} asked for: "
            "no further pair of tokens occurs twice."
        )
    return found
