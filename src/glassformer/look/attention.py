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

from glassformer.look.asked import check_number
from glassformer.look.trace import look
from glassformer.model.stacks import Decoder, Encoder
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

_DULL = 0.5
"""A head that spends more than this on the first token, or on the token itself, is passed over."""


def attention_rows(
    model: Decoder | Encoder,
    tokenizer: Tokenizer,
    text: str,
    layer: int | None = None,
    head: int | None = None,
) -> dict[str, Any]:
    """`{tokens, pattern, layer, head}`: the tokens' texts, and for each a row of weights over all tokens.
    Of a text longer than the context, its beginning."""
    config = model.config
    for name, given, count in (("layer", layer, config.layers), ("head", head, config.num_heads)):
        if given is not None:
            check_number(name, given, count)
    encoded = tokenizer.encode(text)
    ids = (tokenizer.framed(encoded) if isinstance(model, Encoder) else encoded)[: config.context].tolist()
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


def cross_attention_rows(loaded: Loaded, source: str, target: str) -> dict[str, Any]:
    """`{tokens, keys, pattern, layer, head}` of the most telling head that reads the source while the target is
    written: `tokens` are the target's as they are fed in, `keys` the source's."""
    tokenizer, model = loaded.tokenizer, loaded.translator
    end, most = tokenizer.end_of_text, loaded.config.context
    read = [*tokenizer.encode(source).tolist(), end][:most]
    fed = [end, *tokenizer.encode(target).tolist()][:most]
    trace = look(loaded, source, "decoder.*.cross_attn.pattern", target=target)
    patterns = torch.stack([pattern[0] for pattern in trace.values()]).float().cpu()
    row, column = divmod(int(concentration(patterns).argmin()), model.config.num_heads)
    return {
        "tokens": ["<start>", *(tokenizer.decode([token]) for token in fed[1:])],
        "keys": [tokenizer.decode([token]) if token != end else "<end>" for token in read],
        "pattern": patterns[row, column].tolist(),
        "layer": row,
        "head": column,
    }


def concentration(patterns: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head"]:
    """0 for a head that looks at one token at a time, 1 for an even spread; dull heads come last."""
    triangle = patterns.shape[-1] == patterns.shape[-2] and not patterns.triu(1).count_nonzero()
    num_keys = torch.arange(1, patterns.shape[-1] + 1) if triangle else torch.tensor(patterns.shape[-1])
    entropy = torch.special.entr(patterns).sum(-1) / num_keys.log().clamp(min=1e-9)
    queries: Tensor = entropy[..., 1:].mean(-1) if entropy.shape[-1] > 1 else entropy[..., 0]
    if not triangle:  # a head that reads another text: dull when it rests on that text's end
        return queries + (patterns[..., -1].mean(-1) > _DULL) * 2
    dull: Tensor = torch.maximum(patterns[..., 0].mean(-1), patterns.diagonal(dim1=-2, dim2=-1).mean(-1))
    return queries + (dull > _DULL) * (1 + dull)
