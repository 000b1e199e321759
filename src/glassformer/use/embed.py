"""A text as one vector: near vectors, near meanings.

    mean     the mean of its tokens' vectors, as sentence-transformers takes it (Reimers and Gurevych 2019)
    first    the first token's vector: `[CLS]` of a BERT
    pooler   tanh(W x + b) of the first, for models that have one

With `normalize` each vector has length 1, so that the product of two is the cosine between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.text import lines as text_lines
from glassformer.use.load import Loaded
from glassformer.use.rows import rows

Pooling = Literal["mean", "first", "pooler"]


def embed(
    loaded: Loaded, texts: str | Sequence[str], *, pooling: Pooling = "mean", normalize: bool = True
) -> Float[Tensor, "text width"]:
    """A row for each text, in float32 on the CPU."""
    encoder, texts = loaded.encoder, [texts] if isinstance(texts, str) else list(texts)
    if pooling not in get_args(Pooling):
        raise UsageError(
            f"There is no pooling {pooling!r}.", expected="It can be 'mean', 'first' or 'pooler'."
        )
    if pooling == "pooler" and encoder.pooler is None:
        raise ModelError(f"{loaded.path} has no pooler.", do="Take pooling 'mean' or 'first'.")
    found = torch.empty(len(texts), loaded.config.width)
    with torch.inference_mode():
        for group in rows(loaded, texts):
            x = encoder.hidden(group.ids, segments=group.segments)
            if pooling == "mean":
                kept = torch.ones_like(group.ids) if group.segments is None else group.segments + 1
                y = (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
            else:
                y = encoder.pooled(x) if pooling == "pooler" else x[:, 0]
            found[group.numbers] = y.float().cpu()
    return torch.nn.functional.normalize(found) if normalize else found


def compare(vectors: Float[Tensor, "text width"], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The cosine of every two texts, the nearest first."""
    unit = torch.nn.functional.normalize(vectors)
    cosines = unit @ unit.T
    pairs = [
        {"cosine": cosines[i, j].item(), "text": texts[i], "other": texts[j]}
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
    ]
    return sorted(pairs, key=lambda row: -float(row["cosine"]))


def lines(files: Sequence[Path]) -> Iterator[str]:
    """The lines of some files, but the empty ones."""
    for file in files:
        for (line,) in text_lines.rows(file, ("text",)):
            if line.strip():
                yield line.decode("utf-8", "replace")


def save_vectors(file: Path, vectors: Float[Tensor, "text width"]) -> Path:
    """Write an `.npy` file, which NumPy reads as it is."""
    if file.suffix != ".npy":
        raise UsageError(f"{file} does not end in .npy.", expected="Vectors are written as NumPy's .npy.")
    np.save(file, vectors.numpy())
    return file
