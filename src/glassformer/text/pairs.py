"""Pairs of texts, source and target, as a translation is learned from them.

    one .tsv            source, tab, target on each line
    one .csv .jsonl .parquet        two fields of each row, named by source_field and target_field
    two files           line n of the first is the source, line n of the second the target; compressed or not
    python:numbers      numbers and dates in English and in German words, made by the library num2words

Pairs go the same way as text (`shards.py`): read once, split by hash, one vocabulary learned from both sides,
kept in the cache as four token stores, found there again by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.errors import GlassformerError, TextError
from glassformer.text.cache import read_or_make
from glassformer.text.config import PairConfig, TokenizerConfig
from glassformer.text.corpus import apply_encoding
from glassformer.text.lines import rows
from glassformer.text.split import is_held_out
from glassformer.text.store import FORMAT, StoreWriter, TokenStore
from glassformer.text.tokenizer import Tokenizer
from glassformer.units import show_count

NUMBERS = "python:numbers"
SIDES = ("source", "target")
_NUM_NUMBERS, _NUM_DATES = 20_000, 5_000
_ENGLISH_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_GERMAN_MONTHS = (
    "Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
    "Dezember",
)  # fmt: skip
_ENCODED_AT_ONCE = 10_000

Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class PairStore:
    """The training pairs, or those held out: pair number n is document n of both."""

    source: TokenStore
    target: TokenStore


@dataclass(frozen=True)
class PreparedPairs:
    """Pairs, ready to learn from; the fields are those of `shards.Prepared`."""

    tokenizer: Tokenizer
    train: PairStore
    validation: PairStore
    digest: str
    report: dict[str, Any]
    warnings: tuple[str, ...]
    path: Path
    texts: list[tuple[str, str]]
    """The pairs held out, as text."""


def prepare_pairs(
    data: PairConfig,
    tokenizer: TokenizerConfig,
    *,
    base: Path,
    cache: Path,
    progress: Callable[[str], None] = lambda message: None,
) -> PreparedPairs:
    """Read, tokenise and store the pairs of `data`, or find them in `cache` by their content."""
    progress("reading the pairs")
    train, validation = split_pairs(data, base)
    content = _digest(train, validation)
    given = Tokenizer.load(base / tokenizer.path).digest if tokenizer.path else tokenizer.model_dump()
    key = hashlib.sha256(
        json.dumps({"format": FORMAT, "pairs": content, "tokenizer": given}, sort_keys=True).encode()
    ).hexdigest()
    return read_or_make(
        cache, key, read=lambda folder: _open(folder, key, validation),
        make=lambda folder: _write(folder, train, validation, content, tokenizer, base, progress),
        progress=progress, num_bytes=sum(len(side) for pair in (*train, *validation) for side in pair),
    )  # fmt: skip


def split_pairs(data: PairConfig, base: Path) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, pairs held out). A pair is held out by its own hash, so copies stay on one side."""
    found = list(read_pairs(data, data.paths, base))
    if data.validation_paths:
        return found, list(read_pairs(data, data.validation_paths, base))
    held_out = [is_held_out(b"\0".join(pair), data.validation) for pair in found]
    train = [pair for pair, out in zip(found, held_out, strict=True) if not out]
    if not train:
        raise TextError(
            f"All {len(found)} pairs are held out: nothing is left to learn from.",
            do="Give more pairs, or lower data.validation.",
        )
    return train, [pair for pair, out in zip(found, held_out, strict=True) if out]


def read_pairs(data: PairConfig, paths: Sequence[str], base: Path) -> Iterator[Pair]:
    """All pairs in order, turned round where `data.reverse` says so. An empty side is refused by line."""
    number = 0
    for number, pair in enumerate(_pairs(data, paths, base), 1):
        source, target = (
            apply_encoding(side, data.encoding, f"{paths[0]}:{number}").strip() for side in pair
        )
        if not (source and target):
            raise TextError(
                f"Pair {number} of {', '.join(paths)} has an empty {'target' if source else 'source'}.",
                expected="Text on both sides.", do="Mend the line, or take it out of both sides.",
            )  # fmt: skip
        yield (target, source) if data.reverse else (source, target)
    if number == 0:
        raise TextError(f"{', '.join(paths)} holds no pairs.", do="Check data.paths.")


def _pairs(data: PairConfig, paths: Sequence[str], base: Path) -> Iterator[Pair]:
    if list(paths) == [NUMBERS]:
        yield from numbers_in_words()
        return
    files = [base / Path(path).expanduser() for path in paths]
    if len(files) == 1:
        for row in rows(files[0], (data.source_field, data.target_field)):
            yield row[0], row[1]
        return
    sides = [[row[0] for row in rows(file, ("text",))] for file in files]
    if len(sides[0]) != len(sides[1]):
        raise TextError(
            f"{paths[0]} has {len(sides[0]):,} lines, {paths[1]} has {len(sides[1]):,}.",
            expected="Line n of one is the translation of line n of the other.",
        )
    yield from zip(*sides, strict=True)


def numbers_in_words(num_numbers: int = _NUM_NUMBERS, num_dates: int = _NUM_DATES) -> Iterator[Pair]:
    """Numbers below a million, half of them spread evenly over their lengths, and dates of the 20th and the 21st
    century, in English and in German words: the same for everyone."""
    if find_spec("num2words") is None:
        raise TextError(
            f"{NUMBERS} needs num2words, which is not installed.", do="pip install 'glassformer[pairs]'."
        )
    from num2words import num2words

    rng = np.random.default_rng(0)
    numbers: dict[int, None] = {}
    while len(numbers) < num_numbers:
        numbers |= {int(10 ** rng.uniform(0, 6)): None, int(rng.integers(1_000_000)): None}
    for number in list(numbers)[:num_numbers]:
        yield num2words(number, lang="en").encode(), num2words(number, lang="de").encode()
    days: dict[date, None] = {}
    while len(days) < num_dates:
        days[date(1900, 1, 1) + timedelta(days=int(rng.integers(73_000)))] = None
    for day in days:
        english, german = (
            (num2words(day.day, to="ordinal", lang=lang), num2words(day.year, to="year", lang=lang))
            for lang in ("en", "de")
        )
        month = day.month - 1
        source = f"{_ENGLISH_MONTHS[month]} {english[0]}, {english[1]}"
        yield source.encode(), f"{german[0]}r {_GERMAN_MONTHS[month]} {german[1]}".encode()


def _digest(*parts: list[Pair]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\n".encode())
        for source, target in part:
            digest.update(b"%d %d " % (len(source), len(target)) + source + target)
    return digest.hexdigest()


def _write(
    folder: Path,
    train: list[Pair],
    validation: list[Pair],
    content: str,
    config: TokenizerConfig,
    base: Path,
    progress: Callable[[str], None],
) -> None:
    if config.path:
        tokenizer = Tokenizer.load(base / config.path)
    else:
        progress(f"learning a tokenizer ({config.kind}) from both sides of {len(train):,} pairs")
        known = [*train, *validation] if config.kind == "characters" else train
        tokenizer = Tokenizer.train(config, (side for pair in known for side in pair))
    tokenizer.save(folder / "tokenizer.json")
    table: list[dict[str, Any]] = []
    for part, pairs in (("train", train), ("validation", validation)):
        for number, side in enumerate(SIDES):
            with StoreWriter(folder / part / side, tokenizer, content) as store:
                for first in range(0, len(pairs), _ENCODED_AT_ONCE):
                    texts = [pair[number] for pair in pairs[first : first + _ENCODED_AT_ONCE]]
                    for place, ids in enumerate(tokenizer.encode_batch(texts), first):
                        store.add(str(place + 1), 0, ids, len(texts[place - first]))
            row = {"source": f"{part} {side}", "documents": len(pairs), "bytes": store.num_bytes}
            per_token = store.num_bytes / max(1, store.num_tokens - len(pairs))
            table.append({**row, "tokens": store.num_tokens, "bytes_per_token": per_token})
    progress(f"encoded {len(train):,} pairs, {show_count(table[1]['tokens'])} target tokens")
    both = set(train) & set(validation)
    copies = len(train) - len(set(train))
    warnings = [f"{len(both)} pairs held out are in the training pairs too"] * bool(both)
    warnings += [f"{copies} training pairs are copies of others"] * bool(copies)
    (folder / "report.json").write_text(json.dumps({"sources": table, "warnings": warnings}))


def _open(folder: Path, key: str, validation: list[Pair]) -> PreparedPairs:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    stores = [
        PairStore(*(TokenStore.open(folder / part / side, tokenizer=tokenizer) for side in SIDES))
        for part in ("train", "validation")
    ]
    try:
        report = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError) as error:
        raise GlassformerError(
            f"The report in {folder} cannot be read: {error}.", do="Run the command again: it is made anew."
        ) from None
    texts = [
        (source.decode("utf-8", "replace"), target.decode("utf-8", "replace"))
        for source, target in validation
    ]
    return PreparedPairs(
        tokenizer, stores[0], stores[1], key, report, tuple(report["warnings"]), folder, texts
    )
