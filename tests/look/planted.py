"""A model of two layers of attention alone, its weights set by hand: L0H0 looks at the token before and notes it
beside each token; L1H0 looks for where the token it reads was noted, and writes the token that stands there.

The stream is four tables side by side: token | position | token before | what to write. Heads L0H1 and L1H1 have no
weights and spread evenly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glassformer.model.config import ModelConfig
from glassformer.model.stacks import Decoder, build

VOCAB, CONTEXT, SHARP = 60, 100, 20.0
WIDTH = VOCAB + CONTEXT + VOCAB + VOCAB
TOKEN, POSITION = slice(0, VOCAB), slice(VOCAB, VOCAB + CONTEXT)
BEFORE, WRITE = slice(VOCAB + CONTEXT, WIDTH - VOCAB), slice(WIDTH - VOCAB, WIDTH)


def planted() -> Decoder:
    config = ModelConfig(
        vocab=VOCAB, width=WIDTH, layers=2, heads=2, head_size=CONTEXT, context=CONTEXT, feedforward=0,
        positions="learned", tied=False,
    )  # fmt: skip
    model = build(config).requires_grad_(False).eval()
    assert isinstance(model, Decoder) and model.positions is not None
    for parameter in model.parameters():
        parameter.zero_()
    for norm in (model.norm, *(block.norm1 for block in model.blocks)):  # type: ignore[union-attr]
        norm.weight.fill_(1)  # type: ignore[union-attr, operator]
    model.embed.weight[:, TOKEN] = torch.eye(VOCAB)
    model.positions.weight[:, POSITION] = torch.eye(CONTEXT)
    _head(model, 0, query=(POSITION, torch.eye(CONTEXT).roll(-1, 0)), key=POSITION, write=BEFORE)
    _head(model, 1, query=(TOKEN, torch.eye(VOCAB)), key=BEFORE, write=WRITE)
    model.head.weight[:, WRITE] = SHARP * torch.eye(VOCAB)
    return model


def _head(model: Decoder, layer: int, *, query: tuple[slice, Tensor], key: slice, write: slice) -> None:
    """The first head of a layer: it compares the query's part of the stream with the key's, and copies the token."""
    attention = model.blocks[layer].attn  # type: ignore[index, union-attr]
    q, k, v = attention.qkv.weight.split(2 * CONTEXT)  # type: ignore[union-attr]
    q[: len(query[1]), query[0]] = SHARP * query[1]
    k[: len(query[1]), key] = torch.eye(len(query[1]))
    v[:VOCAB, TOKEN] = torch.eye(VOCAB)
    attention.out.weight[write, :VOCAB] = torch.eye(VOCAB)  # type: ignore[union-attr]
