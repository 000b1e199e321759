"""Which text is held out for validation, decided before anything is trained on.

`documents`: a document is held out when the first 8 bytes of its SHA-256, read as a fraction of 2^64, are
below the share asked for. Adding files moves no other document, and exact copies land on the same side.
`tail`: the last share of every source's bytes is held out; the document that lies across the border is cut
there. When `documents` would leave one side empty (a single file), `tail` is used and a warning says so.

`survey` reads everything once: it takes the content digest and the sizes that the split needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import TextError
from glassformer.text.config import DataConfig
from glassformer.text.corpus import Document, Skipped, read
from glassformer.text.formats import character_boundary


class ContentDigest:
    """SHA-256 over the SHA-256 of each document and its source's number; names and folders do not count."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, source: int, data: bytes) -> None:
        self._sum.update(source.to_bytes(4, "big") + hashlib.sha256(data).digest())

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading of the corpus found."""

    digest: str
    num_documents: tuple[int, ...]
    """Of each source, empty ones included."""
    num_bytes: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    tail: bool
    """The split is by tail, asked for or because one side would be empty."""
    warnings: tuple[str, ...]


def survey(data: DataConfig, *, base: Path) -> Survey:
    """Read everything once. Refused when there is no text at all."""
    digest = ContentDigest()
    documents, num_bytes = [0] * len(data.sources), [0] * len(data.sources)
    skipped: list[Skipped] = []
    held_out = empty = 0
    for source, document in by_source(read(data, base=base, skipped=skipped), data):
        digest.add(source, document.data)
        documents[source] += 1
        num_bytes[source] += len(document.data)
        empty += not document.data
        held_out += bool(document.data) and is_held_out(document.data, data.validation)
    full = sum(documents) - empty
    if full == 0:
        raise TextError(
            f"There is no text: {sum(documents)} documents, all empty ({len(skipped)} skipped).",
            expected="At least one document with text.",
            do="Check data.paths and data.field.",
        )
    one_sided = data.validation > 0 and held_out in (0, full)
    warnings = []
    if one_sided and data.split == "documents":
        warnings.append(
            f"Splitting {full} document{'s' * (full > 1)} by hash would hold out {held_out}; "
            f"the last {data.validation:.1%} of each source is held out instead (data.split = 'tail')."
        )
    if data.validation == 0:
        warnings.append("data.validation is 0: nothing is held out, so there is no validation loss.")
    if faults := [s for s in skipped if s.error]:
        warnings.append(
            f"{len(faults)} files or documents could not be read and were skipped: {_names(faults)}."
        )
    tail = data.split == "tail" or one_sided
    return Survey(
        digest.hexdigest(), tuple(documents), tuple(num_bytes), tuple(skipped), tail, tuple(warnings)
    )


def split(
    documents: Iterable[Document], data: DataConfig, found: Survey
) -> Iterator[tuple[int, Document, int]]:
    """(number of the source, document, how many of its first bytes are for training) for each document."""
    border = [round(size * (1 - data.validation)) for size in found.num_bytes]
    for source, document in by_source(documents, data):
        size = len(document.data)
        if not found.tail:
            yield source, document, 0 if is_held_out(document.data, data.validation) else size
            continue
        room = min(max(border[source], 0), size)
        border[source] -= size
        yield source, document, character_boundary(document.data, room)


def is_held_out(data: bytes, fraction: float) -> bool:
    """Whether the hash of this document puts it into validation."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") < fraction * 2**64


def by_source(documents: Iterable[Document], data: DataConfig) -> Iterator[tuple[int, Document]]:
    """Each document with the number of its source in `data.sources`."""
    numbers = {source.path: number for number, source in enumerate(data.sources)}
    return ((numbers[document.source], document) for document in documents)


def _names(skipped: list[Skipped], at_most: int = 3) -> str:
    names = ", ".join(s.name for s in skipped[:at_most])
    return names + (f" and {len(skipped) - at_most} more" if len(skipped) > at_most else "")
