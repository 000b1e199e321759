"""What a corpus is, before a step is spent on it: sizes, faults, copies, repetition, overlap.

One reading with bounded memory. Faults never stop it: text that `encoding = "strict"` would refuse is counted
here, with its lines, and files that cannot be read are listed.

`bytes per token` needs a tokenizer; without one those columns are left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glassformer.text.config import DataConfig
from glassformer.text.corpus import Document, Skipped, describe_invalid, invalid_lines, read
from glassformer.text.ngrams import LENGTH, Seen
from glassformer.text.split import split, survey
from glassformer.text.tokenizer import Tokenizer

SCHEMA, VERSION = "glassformer.text_report", 1
GIANT = 2**20
"""Bytes from which a document counts as giant."""
NEAR = 0.8
"""A document is a near duplicate when this share of its stretches occurred before."""
ENOUGH = 20
"""Stretches needed to judge repetition or nearness."""
REPETITIVE = 0.5
WORST = 5
LISTED = 100
"""Faults listed by name; all are counted."""


@dataclass
class SourceRow:
    """One source, in numbers."""

    source: str
    documents: int = 0
    bytes: int = 0
    characters: int = 0
    lines: int = 0
    empty: int = 0
    whitespace_only: int = 0
    one_line: int = 0
    giant: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    repetitive: int = 0
    encoding_errors: int = 0
    with_nul: int = 0
    skipped: int = 0
    validation_documents: int = 0
    validation_bytes: int = 0
    tokens: int | None = None
    bytes_per_token: float | None = None


@dataclass(frozen=True)
class TextReport:
    """The report: a row for each source, findings by name, and warnings with numbers."""

    sources: tuple[SourceRow, ...]
    repeated_lines: float
    """Share of lines with text that repeat an earlier line of the same document."""
    repeated_stretches: float
    """Share of stretches of 50 bytes that repeat an earlier one of the same document."""
    overlap_documents: int
    """Validation documents of which an exact copy is in training."""
    overlap_stretches: float | None
    """Share of the validation text's stretches of 50 bytes that occur in training."""
    most_repetitive: tuple[tuple[str, float], ...]
    encoding_errors: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = field(default=())

    def rows(self) -> list[dict[str, Any]]:
        """One row for each source, then their sum; columns without a value are left out."""
        found = [*self.sources, *([_total(self.sources)] if len(self.sources) > 1 else [])]
        return [{name: value for name, value in asdict(row).items() if value is not None} for row in found]

    def chart_rows(self) -> list[dict[str, Any]]:
        """Bytes of each source and side of the split."""
        return [
            {"source": row.source, "side": side, "bytes": size}
            for row in self.sources
            for side, size in (
                ("train", row.bytes - row.validation_bytes),
                ("validation", row.validation_bytes),
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        return {"schema": SCHEMA, "version": VERSION, **asdict(self), "sources": self.rows()}

    def with_tokens(self, num_tokens: Sequence[int]) -> TextReport:
        """The report with the number of tokens of each source."""
        counted = (
            replace(row, tokens=tokens, bytes_per_token=row.bytes / tokens if tokens else None)
            for row, tokens in zip(self.sources, num_tokens, strict=True)
        )
        return replace(self, sources=tuple(counted))


def text_report(data: DataConfig, *, base: Path, tokenizer: Tokenizer | None = None) -> TextReport:
    """Read the corpus of `data` and report on it."""
    forgiving = data.model_copy(update={"encoding": "bytes", "on_error": "skip"})
    skipped: list[Skipped] = []
    found = survey(forgiving, base=base)
    counting = _Counting(data, sum(found.num_bytes))
    num_tokens = [0] * len(data.sources)
    documents = read(forgiving, base=base, skipped=skipped)
    for source, document, border in split(documents, forgiving, found):
        counting.add(source, document, border)
        if tokenizer:
            num_tokens[source] += len(tokenizer.encode(document.data)) + bool(document.data)
    report = counting.report(skipped, list(found.warnings))
    return report.with_tokens(num_tokens) if tokenizer else report


class _Counting:
    """The sums, while documents go by."""

    def __init__(self, data: DataConfig, num_bytes: int) -> None:
        self._rows = [SourceRow(source.path) for source in data.sources]
        self._seen = Seen(expected_bytes=num_bytes)
        self._hashes: dict[bytes, bool] = {}  # of each document with text: was a copy in training?
        self._validation_hashes: Counter[bytes] = Counter()
        self._lines = self._repeated_lines = 0
        self._stretches = self._repeated = 0.0
        self._repetitive: list[tuple[str, float]] = []
        self._encoding_errors: list[tuple[str, str]] = []

    def add(self, source: int, document: Document, border: int) -> None:
        row, data = self._rows[source], document.data
        row.documents += 1
        row.bytes += len(data)
        row.characters += len(data.decode("utf-8", "replace"))
        row.lines += data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))
        row.validation_documents += border < len(data)
        row.validation_bytes += len(data) - border
        if invalid_lines(data, 1):
            row.encoding_errors += 1
            if len(self._encoding_errors) < LISTED:
                self._encoding_errors.append((document.name, describe_invalid(data)))
        row.with_nul += 0 in data
        if not data.strip():
            row.empty += not data
            row.whitespace_only += bool(data)
            return
        row.one_line += b"\n" not in data.strip()
        row.giant += len(data) >= GIANT
        self._copies(row, document, border)

    def _copies(self, row: SourceRow, document: Document, border: int) -> None:
        data = document.data
        digest = hashlib.sha256(data).digest()[:16]
        lines = [line for line in data.split(b"\n") if line.strip()]
        self._lines += len(lines)
        self._repeated_lines += len(lines) - len(set(lines))
        sides = ((data[:border], False), (data[border:], True))
        judgements = [self._seen.add(part, validation=held_out) for part, held_out in sides if part]
        known, repeated, judged = judgements[0]
        if digest in self._hashes:
            row.exact_duplicates += 1
        elif judged >= ENOUGH and known >= NEAR:
            row.near_duplicates += 1
        self._hashes[digest] = self._hashes.get(digest, False) or border > 0
        if border == 0:
            self._validation_hashes[digest] += 1
        weight = max(len(data) - LENGTH + 1, 0) if judged else 0
        self._stretches += weight
        self._repeated += repeated * weight
        if judged >= ENOUGH:
            row.repetitive += repeated >= REPETITIVE
            self._repetitive.append((document.name, repeated))
            if len(self._repetitive) > 100 * WORST:
                self._repetitive = _worst(self._repetitive)

    def report(self, skipped: list[Skipped], warnings: list[str]) -> TextReport:
        for row in self._rows:
            row.skipped = sum(s.source == row.source for s in skipped)
        overlap = self._seen.overlap()
        copies = sum(count for digest, count in self._validation_hashes.items() if self._hashes[digest])
        report = TextReport(
            sources=tuple(self._rows),
            repeated_lines=self._repeated_lines / self._lines if self._lines else 0.0,
            repeated_stretches=self._repeated / self._stretches if self._stretches else 0.0,
            overlap_documents=copies,
            overlap_stretches=None if overlap != overlap else overlap,
            most_repetitive=tuple(_worst(self._repetitive)),
            encoding_errors=tuple(self._encoding_errors),
            skipped=tuple(sorted(skipped, key=lambda s: not s.error)[:LISTED]),
        )
        return replace(report, warnings=(*warnings, *_warnings(report)))


def _worst(found: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return [entry for entry in sorted(found, key=lambda entry: (-entry[1], entry[0]))[:WORST] if entry[1] > 0]


def _total(rows: Sequence[SourceRow]) -> SourceRow:
    total = SourceRow("all")
    for name, value in asdict(rows[0]).items():
        if isinstance(value, int):
            setattr(total, name, sum(getattr(row, name) for row in rows))
    if total.tokens:
        total.bytes_per_token = total.bytes / total.tokens
    return total


def _warnings(report: TextReport) -> list[str]:
    total = _total(report.sources)
    findings = [
        (total.encoding_errors, "documents are not valid UTF-8"),
        (total.with_nul, "documents hold NUL bytes (UTF-16 without a mark, or binary data)"),
        (total.empty, "documents are empty"),
        (total.whitespace_only, "documents hold only white space"),
        (total.exact_duplicates, "documents are exact copies of an earlier one"),
        (total.near_duplicates, f"documents share at least {NEAR:.0%} of their text with earlier ones"),
        (total.repetitive, f"documents repeat themselves in at least {REPETITIVE:.0%} of their text"),
        (total.giant, f"documents are larger than {GIANT // 2**20} MiB"),
        (report.overlap_documents, "validation documents have an exact copy in training"),
    ]
    found = [f"{count:,} of {total.documents:,} {what}." for count, what in findings if count]
    if report.overlap_stretches and report.overlap_stretches >= 0.2:
        found.append(
            f"{report.overlap_stretches:.0%} of the validation text ({LENGTH}-byte stretches) also occurs "
            "in training: the validation loss will look better than it is."
        )
    return found
