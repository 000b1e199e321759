"""A map of token vectors: which are near each other, drawn in the directions in which they differ most.

    X = rows - their mean                        the chosen tokens' vectors, centred
    X = U S V^T                                  singular values from large to small
    coordinates = X V_c,  explained_i = S_i^2 / sum_j S_j^2            principal components (Pearson 1901)

A component and its opposite are equally right; here each points so that its entry of largest size is positive.
Neighbours are taken in the full space, over the whole vocabulary, by the cosine of the uncentred vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer import charts
from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import token_id
from glassformer.look.reading import Reading
from glassformer.look.visible import visible
from glassformer.model.transformer import Transformer
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

Vectors = Literal["embed", "head", "positions"]
"""Which vectors: the tokens' as they enter, the rows of the head that scores them, or the positions'."""


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Points in the plane (or more dimensions) for vectors of the model."""

    of: Vectors
    ids: tuple[int, ...]
    """The rows that are drawn."""
    words: tuple[str, ...]
    coordinates: Float[Tensor, "row component"] = field(repr=False)
    components: Float[Tensor, "component width"] = field(repr=False)
    """The directions, of length 1."""
    mean: Float[Tensor, " width"] = field(repr=False)
    explained: tuple[float, ...]
    """The share of the variance along each component."""
    names: tuple[str, ...] = field(repr=False)
    """Of every row of the matrix."""
    vectors: Float[Tensor, "every width"] = field(repr=False)
    """The matrix itself."""

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point: its name, number, and coordinates `c1`, `c2`, ..."""
        return [
            {"token": word, "id": i, **{f"c{n}": value for n, value in enumerate(point, start=1)}}
            for word, i, point in zip(self.words, self.ids, self.coordinates.tolist(), strict=True)
        ]

    def neighbours(self, token: str | int, top: int = 10) -> list[dict[str, Any]]:
        """The rows nearest to a token by cosine, of all there are, itself left out."""
        row = _row_of(token, self.names)
        unit = F.normalize(self.vectors.double(), dim=-1)
        cosines = (unit @ unit[row]).index_fill(0, torch.tensor(row, device=unit.device), -torch.inf)
        nearest = cosines.argsort(descending=True, stable=True)[: min(top, len(self.names) - 1)]
        return [{"token": self.names[i], "id": i, "cosine": float(cosines[i])} for i in nearest.tolist()]

    def to_dict(self) -> dict[str, Any]:
        return {"of": self.of, "explained": list(self.explained), "rows": self.rows()}

    def chart(self) -> charts.Spec:
        """The first two components."""
        shares = [f"component {n} ({share:.1%})" for n, share in enumerate(self.explained, start=1)]
        words = _readable(distinct(self.words, self.ids), self.coordinates[:, :2])
        rows = [{**row, "name": word} for row, word in zip(self.rows(), words, strict=True)]
        return charts.points(
            rows, "c1", "c2", words="name", title=f"PCA of {len(rows)} {_WHAT[self.of]}",
            x_title=shares[0], y_title=shares[1], size=_SIZE,
        )  # fmt: skip


_WHAT = {"embed": "token vectors", "head": "rows of the head", "positions": "position vectors"}
_SHOWN = 100
"""Tokens that are drawn when none are named."""
_SIZE = (720, 560)


def embedding_map(
    model: Loaded | Transformer,
    tokens: Sequence[str | int] | None = None,
    *,
    of: Vectors = "embed",
    components: int = 2,
) -> EmbeddingMap:
    """The principal components of some rows of a matrix: of `tokens`, by text or id, or when none are named of the
    first 100 that are text of more than one character, which in a vocabulary learned by frequency are the most common;
    of positions, of all."""
    module, tokenizer = transformer_of(model)
    vectors, names = _matrix(module, tokenizer, of, model.classes if isinstance(model, Loaded) else ())
    of_tokens = of == "embed" or (of == "head" and module.config.head == "tokens")
    if tokens is not None:
        ids = _ids(tokens, names, Reading(module, (), tokenizer) if of_tokens and tokenizer else None)
    elif tokenizer is None or not of_tokens:
        ids = list(range(len(names)))[: None if of == "positions" else _SHOWN]
    else:
        ids = _first_texts(tokenizer, names)
    most = min(len(ids), vectors.shape[1])
    if not 2 <= components <= most:
        raise UsageError(
            f"{len(ids)} vectors of {vectors.shape[1]} entries have no {components} components to draw.",
            expected=f"2 to {most} components." if most >= 2 else "At least two vectors of two entries.",
        )
    chosen = vectors[torch.tensor(ids, device=vectors.device)].double()
    if not bool(chosen.isfinite().all()):
        raise ModelError("Some of these vectors are not finite.", do="Use an earlier checkpoint.")
    mean = chosen.mean(0)
    _, sizes, directions = torch.linalg.svd(chosen - mean, full_matrices=False)
    directions = directions[:components]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    variance = sizes.square()
    total = float(variance.sum())
    if total == 0:
        raise UsageError("These vectors are all the same; there is nothing to draw.")
    return EmbeddingMap(
        of, tuple(ids), tuple(names[i] for i in ids), (chosen - mean) @ directions.T, directions, mean,
        tuple((variance[:components] / total).tolist()), tuple(names), vectors,
    )  # fmt: skip


def transformer_of(model: object) -> tuple[Transformer, Tokenizer | None]:
    """The Transformer that was given, and its tokenizer where it has one."""
    module = model.model if isinstance(model, Loaded) else model
    if not isinstance(module, Transformer):
        raise UsageError(
            f"This takes a Transformer, not a {type(module).__name__}.",
            do="Give what gf.load returned. A plain network has neither tokens nor positions.",
        )
    return module, model.tokenizer if isinstance(model, Loaded) else None


def distinct(words: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Names for a chart, the number added where two look alike."""
    names = [visible(word) for word in words]
    count = Counter(names)
    return [f"{name} #{i}" if count[name] > 1 else name for name, i in zip(names, ids, strict=True)]


def _readable(words: Sequence[str], points: Float[Tensor, "row 2"]) -> list[str]:
    """The words that have room beside their dots, those of earlier rows first; the others are empty."""
    span = (points.amax(0) - points.amin(0)).clamp(min=1e-30)
    pixels = (points - points.amin(0)) / span * torch.tensor(_SIZE, dtype=points.dtype, device=points.device)
    taken: list[tuple[float, float, float]] = []
    shown = []
    for word, (x, y) in zip(words, pixels.tolist(), strict=True):
        end = x + 12 + 6.5 * len(word)  # the dot, the gap and letters of 11 pixels
        free = all(end < left or x - 4 > right or abs(y - other) > 12 for left, right, other in taken)
        taken += [(x - 4, end if free else x + 4, y)]
        shown.append(word if free else "")
    return shown


def _matrix(
    module: Transformer, tokenizer: Tokenizer | None, of: Vectors, classes: Sequence[str]
) -> tuple[Float[Tensor, "every width"], list[str]]:
    """The matrix, and a name for each row."""
    config = module.config
    if of == "positions":
        table = (
            module.table
            if config.positions.startswith("sinusoidal")
            else getattr(module.positions, "weight", None)
        )
        if table is None:
            raise UsageError(
                f"This model has no vectors for positions: its config says '{config.positions}'.",
                do="See gf.positions for what it has instead.",
            )
        return table.detach(), [str(position) for position in range(len(table))]
    if of == "embed":
        return module.embed.weight.detach(), _names(module, tokenizer)
    if of != "head":
        raise UsageError(f"There are no vectors {of!r}.", expected="'embed', 'head' or 'positions'.")
    head = getattr(module, "head", None)
    if head is None:
        raise UsageError("This encoder has no head; it gives its vectors themselves.", do="Take of='embed'.")
    if config.head == "classes":
        return head.weight.detach(), list(classes) or [str(i) for i in range(config.num_classes)]
    return head.weight.detach(), _names(module, tokenizer)


def _names(module: Transformer, tokenizer: Tokenizer | None) -> list[str]:
    """Of every token; ids beyond the tokenizer's, in a padded vocabulary, by their number."""
    size = module.config.vocab_size
    known = 0 if tokenizer is None else min(size, tokenizer.vocab_size)
    return [*Reading(module, (), tokenizer).words(range(known)), *(str(i) for i in range(known, size))]


def _ids(tokens: Sequence[str | int], names: Sequence[str], reading: Reading | None) -> list[int]:
    """The rows that are meant: with `reading` those of tokens, without it of what is called so."""
    found = [
        token_id(reading, token) if isinstance(token, str) and reading is not None else _row_of(token, names)
        for token in tokens
    ]
    if repeated := [names[i] for i, count in Counter(found).items() if count > 1]:
        raise UsageError(f"Given more than once: {', '.join(map(repr, repeated))}.")
    return found


def _row_of(token: str | int, names: Sequence[str]) -> int:
    if isinstance(token, int):
        if not 0 <= token < len(names):
            raise UsageError(f"There is no row {token}.", expected=f"0 to {len(names) - 1}.")
        return token
    if token not in names:
        raise UsageError(
            f"There is no token {token!r}.",
            do="A word within a text usually begins with its space; ids can be given too.",
        )
    return names.index(token)


def _first_texts(tokenizer: Tokenizer, names: Sequence[str]) -> list[int]:
    """Longer tokens first: a learned vocabulary begins with single characters, common or not."""

    def texts() -> Iterator[tuple[int, str]]:
        for i, word in enumerate(names[: tokenizer.vocab_size]):
            if (
                word not in tokenizer.specials
                and word.strip()
                and word.isprintable()
                and "\ufffd" not in word
            ):
                yield i, word.strip()

    long = [i for i, word in texts() if len(word) > 1]
    return (long + [i for i, word in texts() if len(word) == 1])[:_SHOWN]
