"""What could stand where a text is hidden: `The <|mask|> sat` -> cat 0.31, dog 0.12, ...

The probability of a token t at a hidden place is softmax(logits)[t], given all that is left of the text, on both
sides. Several hidden places are guessed one by one, each without knowing what the others come to.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.text.masked import mask_id
from glassformer.text.tokenizer import MASKS, Ids
from glassformer.use.load import Loaded
from glassformer.use.rows import rows


def fill(loaded: Loaded, text: str, *, top: int = 5) -> list[dict[str, Any]]:
    """The `top` likeliest tokens for each hidden place: rows of `place` (counted from 0), `token`, `id`,
    `probability` and the whole `text` with that token in it. A place is hidden by `<|mask|>`."""
    if top < 1:
        raise UsageError(f"top is {top}.", expected="At least 1.")
    ids, chances = _chances(loaded, text)
    hidden = np.flatnonzero(ids == mask_id(loaded.tokenizer))
    found = []
    for number, (place, chance) in enumerate(zip(hidden, chances, strict=True)):
        best = chance.topk(min(top, len(chance)))
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            word = loaded.tokenizer.decode([token])
            written = _written(loaded, ids, {int(place): token})
            found.append(
                {"place": number, "token": word, "id": token, "probability": probability, "text": written}
            )
    return found


def fill_in(loaded: Loaded, text: str) -> str:
    """The text with the likeliest token at each hidden place."""
    ids, chances = _chances(loaded, text)
    hidden = np.flatnonzero(ids == mask_id(loaded.tokenizer)).tolist()
    return _written(loaded, ids, dict(zip(hidden, chances.argmax(-1).tolist(), strict=True)))


def hide(loaded: Loaded, text: str) -> str:
    """The text with the tokenizer's own name where any of `MASKS` stands. By ours, words begin with their space, so
    one before a hidden place is hidden too."""
    tokenizer = loaded.tokenizer
    number = mask_id(tokenizer)
    name = next(name for name, other in tokenizer.specials.items() if other == number)
    space = " ?" if tokenizer.kind == "bpe" else ""
    return re.sub(space + "(" + "|".join(map(re.escape, MASKS)) + ")", lambda found: name, text)


def _chances(loaded: Loaded, text: str) -> tuple[Ids, Float[Tensor, "hidden vocab"]]:
    """The framed ids, and the probabilities at each hidden place."""
    encoder = loaded.encoder
    if loaded.config.head != "tokens":
        raise ModelError(
            f"{loaded.path} has a head for {loaded.config.head}.",
            expected="Guessing tokens needs head 'tokens'.",
        )
    number = mask_id(loaded.tokenizer)
    (group,) = rows(loaded, [hide(loaded, text)], allow_special=True)
    hidden = group.ids[0] == number
    if not hidden.any():
        raise UsageError(
            f"Nothing is hidden in {text[:60]!r}.", do="Write <|mask|> where a token is to be guessed."
        )
    with torch.inference_mode():
        vectors = encoder.transformed(encoder.hidden(group.ids)[0, hidden])
        chances = encoder.head(vectors)[:, : loaded.tokenizer.vocab_size].float().softmax(-1)
    return group.ids[0].cpu().numpy(), chances.cpu()


def _written(loaded: Loaded, ids: Ids, tokens: dict[int, int]) -> str:
    """The text with these tokens at these places; `<|mask|>` at places that stay hidden."""
    tokenizer = loaded.tokenizer
    if tokenizer.kind == "wordpiece":
        return tokenizer.decode([tokens.get(place, number) for place, number in enumerate(ids.tolist())])
    pieces = [MASKS[0].encode() if number == tokenizer.mask and place not in tokens
              else tokenizer.decode_bytes([tokens.get(place, number)])
              for place, number in enumerate(ids.tolist())]  # fmt: skip
    return b"".join(pieces).decode("utf-8", "replace")
