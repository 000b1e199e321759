"""One attention head as a picture: which token looks at which, and how much.

When no head is named, the most telling one is taken. A head is dull when most of its attention rests on the
first token (the sink, where heads with nothing to do put it; Xiao et al. 2023) or on the token itself. Of the
others it is the one whose attention is most concentrated: lowest mean of H(row) / log(number of keys), where
H is the entropy of a query's row; 1 is an even spread.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.trace import look
from glassformer.model.stacks import Decoder
from glassformer.text.tokenizer import Tokenizer

_DULL = 0.5
"""A head that spends more than this on the first token, or on the token itself, is passed over."""


def attention_rows(
    model: Decoder, tokenizer: Tokenizer, text: str, layer: int | None = None, head: int | None = None
) -> dict[str, Any]:
    """`{tokens, pattern, layer, head}`: the tokens' texts, and for each a row of weights over all tokens.
    Of a text longer than the context, its beginning."""
    config = model.config
    for name, given, count in (("layer", layer, config.layers), ("head", head, config.num_heads)):
        if given is not None and not 0 <= given < count:
            raise UsageError(
                f"There is no {name} {given}.", expected=f"This model has {name}s 0 to {count - 1}."
            )
    ids = tokenizer.encode(text)[: config.context].tolist()
    trace = look(model, ids, f"blocks.{'*' if layer is None else layer}.attn.pattern")
    patterns = (
        torch.stack([pattern[0] for pattern in trace.values()]).float().cpu()
    )  # (layer, head, query, key)
    dullness = concentration(patterns)
    if head is not None:
        dullness[:, [other for other in range(config.num_heads) if other != head]] = torch.inf
    row, column = divmod(int(dullness.argmin()), config.num_heads)
    return {
        "tokens": [tokenizer.decode([token]) for token in ids],
        "pattern": patterns[row, column].tolist(),
        "layer": row if layer is None else layer,
        "head": column,
    }


def concentration(patterns: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head"]:
    """0 for a head that looks at one token at a time, 1 for an even spread; dull heads come last."""
    num_keys = torch.arange(1, patterns.shape[-1] + 1)
    entropy = torch.special.entr(patterns).sum(-1) / num_keys.log().clamp(min=1e-9)
    queries: Tensor = entropy[..., 1:].mean(-1) if len(num_keys) > 1 else entropy[..., 0]
    dull: Tensor = torch.maximum(patterns[..., 0].mean(-1), patterns.diagonal(dim1=-2, dim2=-1).mean(-1))
    return queries + (dull > _DULL) * (1 + dull)
