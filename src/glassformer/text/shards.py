"""Text -> a tokenizer and two token stores, made once and kept in a cache.

1. Read everything once: content digest, sizes, split (`split.survey`).
2. The key of the cache follows from that digest and the settings. What is there and whole is used.
3. Otherwise train the tokenizer, make the text report, encode, and write beside the place; then rename.

The content digest is taken again while encoding, so a file that changes between the two readings is noticed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from glassformer.errors import GlassformerError, TextError
from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.corpus import Document, read
from glassformer.text.report import text_report
from glassformer.text.split import ContentDigest, Survey, by_source, split, survey
from glassformer.text.store import FORMAT, StoreWriter, TokenStore
from glassformer.text.tokenizer import Tokenizer
from glassformer.units import show_bytes, show_count

__all__ = ["Prepared", "TokenStore", "prepare"]

ENCODED_AT_ONCE = 8 * 2**20  # bytes of text held while encoding
PARTIAL_LIVES = 24 * 3600  # seconds after which a killed writer's folder is removed


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
    folder = cache / key[:32]
    if folder.is_dir():
        try:
            return _open(folder, key, found)
        except GlassformerError as error:
            progress(f"the cached tokens are damaged and are made again: {error}")
            shutil.rmtree(folder, ignore_errors=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}.partial-", dir=cache, ignore_cleanup_errors=True
        ) as partial:
            _write(Path(partial), found, data, tokenizer, base, progress)
            if not folder.is_dir():  # another process may have been first, with the same content
                Path(partial).rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise TextError(
                f"The tokens cannot be written to {cache}: {error.strerror or error}.",
                expected=f"A folder with room for about {show_bytes(2 * sum(found.num_bytes))}.",
                do="Free some space, or set GLASSFORMER_HOME to another folder.",
            ) from None
    return _open(folder, key, found)


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


def _sweep(cache: Path) -> None:
    """Remove what killed writers left, once it is too old to be a writer still at work."""
    for partial in cache.glob("*.partial-*"):
        if time.time() - partial.stat().st_mtime > PARTIAL_LIVES:
            shutil.rmtree(partial, ignore_errors=True)
