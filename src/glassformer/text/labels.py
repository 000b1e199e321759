"""Texts with their classes -> rows to learn from, as a pure function of (texts, seed, step).

    ids         [CLS] the cat sat [SEP]  .  .      framed as the tokenizer frames a text; its beginning, if it is long
    segments      0    0   0   0   0    -1 -1      -1 where padded
    targets     2                                  the number of its class

Classes are numbered in the order of their names. Every epoch takes the texts in an order of its own, as
`batches.py` does. Everything is held in memory: labelled text is small.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import TextError
from glassformer.text.batches import NO_LOSS
from glassformer.text.config import DataConfig, LabelConfig, TokenizerConfig
from glassformer.text.corpus import apply_encoding, read
from glassformer.text.lines import rows
from glassformer.text.order import permute, round_keys
from glassformer.text.split import is_held_out
from glassformer.text.tokenizer import Ids, Tokenizer

Integers = NDArray[np.int64]
Labelled = tuple[bytes, str]
PACKAGES = "python:packages"
_PACKAGES, _FUNCTIONS, _LONGEST = (
    10,
    400,
    600,
)  # so many packages, functions of each, characters of a function
_DEFINITION = re.compile(rb"^(?=(?:    )?(?:async )?def )", re.M)


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """Rows to learn from, each a text."""

    ids: Integers
    """(batch, context)"""
    targets: Integers
    """(batch,): each row's class, NO_LOSS of an empty row."""
    segments: NDArray[np.int32]
    """(batch, context): 0, and -1 where padded."""
    sample_ids: Integers

    @property
    def num_targets(self) -> int:
        return int((self.targets != NO_LOSS).sum())

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        """What the model's loss takes, by name."""
        return {"ids": self.ids, "targets": self.targets, "segments": self.segments}


@dataclass(frozen=True, slots=True)
class PreparedLabels:
    """Texts ready to learn from."""

    tokenizer: Tokenizer
    classes: tuple[str, ...]
    train: list[tuple[Ids, int]]
    """Framed ids, and the number of the class."""
    validation: list[tuple[Ids, int]]
    texts: list[Labelled]
    """Those held out, as they were."""
    digest: str
    report: dict[str, Any]
    warnings: tuple[str, ...]


def prepare_labels(
    data: LabelConfig,
    tokenizer: TokenizerConfig,
    *,
    base: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> PreparedLabels:
    """Read and tokenise the texts of `data`."""
    progress("reading the texts and their labels")
    train, held_out = split_labelled(data, base)
    digest = hashlib.sha256()
    for part in (train, held_out):
        for text, label in part:
            digest.update(b"%d %d " % (len(text), len(label)) + text + label.encode())
        digest.update(b"|")
    if tokenizer.path:
        made = Tokenizer.load(base / tokenizer.path)
    else:
        progress(f"learning a tokenizer ({tokenizer.kind})")
        known = [*train, *held_out] if tokenizer.kind == "characters" else train
        made = Tokenizer.train(tokenizer, (text for text, _ in known))
    classes = sorted({label for _, label in train})
    if len(classes) < 2:
        raise TextError(f"All texts are of the class {classes[0]!r}.", expected="At least two classes.")
    if strange := sorted({label for _, label in held_out} - set(classes)):
        raise TextError(
            f"Held-out texts are of classes that training has not: {', '.join(strange[:5])}.",
            do="Give training texts of every class, or hold out others (data.validation).",
        )
    parts = [_encode(made, part, classes) for part in (train, held_out)]
    table = [
        {"source": name, "documents": len(part), "bytes": sum(len(text) for text, _ in part),
         "tokens": sum(len(ids) for ids, _ in encoded)}
        for name, part, encoded in zip(("train", "validation"), (train, held_out), parts, strict=True)
    ]  # fmt: skip
    counts = Counter(label for _, label in train)
    both = {text for text, _ in train} & {text for text, _ in held_out}
    warnings = [f"{len(both)} texts held out are in the training texts too"] * bool(both)
    report = {"sources": table, "classes": {name: counts[name] for name in classes}, "warnings": warnings}
    return PreparedLabels(
        made, tuple(classes), parts[0], parts[1], held_out, digest.hexdigest(), report, tuple(warnings)
    )


def split_labelled(data: LabelConfig, base: Path) -> tuple[list[Labelled], list[Labelled]]:
    """(training texts, texts held out). A text is held out by its own hash, so copies stay on one side."""
    found = list(read_labelled(data, data.paths, base))
    if data.validation_paths:
        return found, list(read_labelled(data, data.validation_paths, base))
    out = [is_held_out(text, data.validation) for text, _ in found]
    train = [one for one, held in zip(found, out, strict=True) if not held]
    if not train:
        raise TextError(
            f"All {len(found)} texts are held out.", do="Give more texts, or lower data.validation."
        )
    return train, [one for one, held in zip(found, out, strict=True) if held]


def read_labelled(data: LabelConfig, paths: Sequence[str], base: Path) -> Iterator[Labelled]:
    """All texts in order, each with its class. An empty text or label is refused by its number."""
    number = 0
    for path in paths:
        found = packages() if path == PACKAGES else (
            (row[0], row[1]) for row in rows(base / Path(path).expanduser(), (data.text_field, data.label_field))
        )  # fmt: skip
        for number, (raw, label) in enumerate(found, 1):
            text = apply_encoding(raw, data.encoding, f"{path}:{number}").strip()
            name = label.decode("utf-8", "replace").strip()
            if not (text and name):
                raise TextError(
                    f"Row {number} of {path} has an empty {'label' if text else 'text'}.", do="Mend the row."
                )
            yield text, name
    if number == 0:
        raise TextError(f"{', '.join(paths)} holds no texts.", do="Check data.paths.")


def packages() -> Iterator[tuple[bytes, bytes]]:
    """The beginnings of functions of Python's standard library, each with the name of its package: the first so many
    of the packages that have most of them."""
    found: dict[str, list[bytes]] = {}
    for document in read(DataConfig(paths=("python:stdlib",)), base=Path()):
        package, _, rest = document.name.partition("/")
        if rest:
            pieces = _DEFINITION.split(document.data)[1:]
            found.setdefault(package, []).extend(piece[:_LONGEST] for piece in pieces if piece.strip())
    largest = sorted(found, key=lambda name: (-len(found[name]), name))[:_PACKAGES]
    for name in sorted(largest):
        for piece in found[name][:_FUNCTIONS]:
            yield piece.decode("utf-8", "ignore").encode(), name.encode()


class LabelBatches:
    """The batches of labelled texts. Everything is set when it is made; `batch` keeps no state."""

    def __init__(
        self, texts: Sequence[tuple[Ids, int]], *, batch: int, context: int, seed: int, end_of_text: int
    ) -> None:
        self._texts, self._end, self.batch_size, self.context = texts, end_of_text, batch, context
        self.num_samples, self.tokens_per_batch = len(texts), batch * context
        self._keys = round_keys(seed, "order", 0)
        filled = sum(min(len(ids), context) for ids, _ in texts)
        self.waste = 1 - filled / (len(texts) * context)
        cut = sum(len(ids) > context for ids, _ in texts)
        self.warnings = [
            f"{cut} texts are longer than {context} tokens: only their beginnings are read"
        ] * bool(cut)

    def batch(self, step: int) -> LabelBatch:
        """The batch of this step, counted from 0."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch, index = np.divmod(numbers.astype(np.uint64), np.uint64(self.num_samples))
        chosen = permute(index, self.num_samples, epoch, self._keys).astype(np.int64)
        texts = [self._texts[number] for number in chosen.tolist()]
        return gather(texts, self.batch_size, self.context, self._end, numbers)


def label_validation_batches(
    texts: Sequence[tuple[Ids, int]], *, batch: int, context: int, end_of_text: int
) -> Iterator[LabelBatch]:
    """All texts in order; the last batch is filled up with empty rows."""
    for first in range(0, len(texts), batch):
        yield gather(
            texts[first : first + batch], batch, context, end_of_text, np.arange(first, first + batch)
        )


def gather(
    texts: Sequence[tuple[Ids, int]], batch: int, context: int, end_of_text: int, sample_ids: Integers
) -> LabelBatch:
    """So many rows, the first of them these texts."""
    ids = np.full((batch, context), end_of_text, np.int64)
    segments = np.full((batch, context), -1, np.int32)
    targets = np.full(batch, NO_LOSS, np.int64)
    for row, (text, number) in enumerate(texts):
        size = min(len(text), context)
        ids[row, :size], segments[row, :size], targets[row] = text[:size], 0, number
    return LabelBatch(ids, targets, segments, sample_ids)


def _encode(tokenizer: Tokenizer, texts: Sequence[Labelled], classes: Sequence[str]) -> list[tuple[Ids, int]]:
    number = {name: index for index, name in enumerate(classes)}
    encoded = tokenizer.encode_batch([text for text, _ in texts])
    return [(tokenizer.framed(ids), number[label]) for ids, (_, label) in zip(encoded, texts, strict=True)]
