"""Which class a text is of, by an encoder with a head for classes: softmax(W pooled + b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glassformer.errors import ModelError, UsageError
from glassformer.use.load import Loaded
from glassformer.use.rows import rows


def classify(
    loaded: Loaded, texts: str | Sequence[str], *, top: int = 1, cut: bool = False
) -> list[dict[str, Any]]:
    """For each text its `top` likeliest classes: rows of `text`, `class`, `probability`. `cut` reads the beginning of
    a text that is longer than the context, which is otherwise refused."""
    encoder, texts = loaded.encoder, [texts] if isinstance(texts, str) else list(texts)
    if top < 1:
        raise UsageError(f"top is {top}.", expected="At least 1.")
    if loaded.config.head != "classes":
        raise ModelError(
            f"{loaded.path} has a head for {loaded.config.head}.", expected="This needs a head for classes.",
            do="Train one: glassformer train labelled.csv --task label.",
        )  # fmt: skip
    names = loaded.classes or tuple(f"LABEL_{number}" for number in range(loaded.config.num_classes))
    found = torch.empty(len(texts), len(names))
    with torch.inference_mode():
        for group in rows(loaded, texts, cut=cut):
            logits = encoder(group.ids, segments=group.segments)
            found[group.numbers] = logits.float().softmax(-1).cpu()
    best = found.topk(min(top, len(names)))
    return [
        {"text": text, "class": names[number], "probability": probability}
        for text, numbers, chances in zip(texts, best.indices.tolist(), best.values.tolist(), strict=True)
        for number, probability in zip(numbers, chances, strict=True)
    ]
