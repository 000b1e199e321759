"""What all members of the family share: token vectors, positions, stacks of blocks.

x = embed(ids) [* sqrt(d)] [+ positions] [+ types]; [norm]           one vector a token
x = block_L(... block_1(x)); [norm]                                  for each stack
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.errors import ModelError
from glassformer.model.attention import Attention, Kernel, Keys, KeyValues, Mask, attention_mask
from glassformer.model.block import Block
from glassformer.model.config import ModelConfig
from glassformer.model.dropout import dropout
from glassformer.model.init import initialise
from glassformer.model.loss import linear_cross_entropy
from glassformer.model.norms import Norm
from glassformer.model.places import See, unseen, wants, within
from glassformer.model.positions import alibi_slopes, rotations, sinusoids
from glassformer.model.shapes import Stack, stacks

Ids = Int[Tensor, "batch position"]
Vectors = Float[Tensor, "batch position width"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What an encoder made of a text, ready to be read at every step of writing another."""

    keys: Sequence[tuple[Keys, Keys]]
    """Keys and values for each layer of the decoder."""
    segments: Ids | None
    """Which text of its row each position belongs to, -1 where padded."""

    def rows(self, index: Int[Tensor, " row"]) -> Memory:
        """The same for these rows, in this order."""
        keys = [(k[index], v[index]) for k, v in self.keys]
        return Memory(keys, None if self.segments is None else self.segments[index])


class Transformer(nn.Module):
    """What all members share: token vectors, positions, stacks of blocks, a head on top."""

    turn: Tensor
    table: Tensor
    slopes: Tensor
    head: nn.Linear
    loss: Callable[..., Tensor]
    """Each member's own: what it predicts wrongly, in nats."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.embed_norm = Norm(config) if config.embed_norm else None
        self.stacks = stacks(config)
        pre = config.norm_place == "pre"
        for stack in self.stacks:
            blocks = [
                Block(config, layer, causal=stack.causal, cross=stack.cross) for layer in range(stack.layers)
            ]
            self.add_module(stack.name, nn.ModuleList(blocks))
            self.add_module(
                "encoder_norm" if stack.name == "encoder" else "norm", Norm(config) if pre else None
            )
        self._add_head(config)
        with torch.device("cpu"):  # also where weights have no numbers yet
            self._add_constants(config)
        initialise(self, config, seed)

    def use_attention(self, kernel: Kernel) -> None:
        """Choose which code computes attention in every layer."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = kernel

    def recompute(self, count: int) -> None:
        """Compute the first `count` blocks, as they run, again in the backward pass instead of keeping them."""
        blocks = [block for stack in self.stacks for block in getattr(self, stack.name)]
        for number, block in enumerate(blocks):
            block.recomputed = number < count

    def _add_head(self, config: ModelConfig) -> None:
        self.head = nn.Linear(config.width, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.embed.weight

    def compare(self, x: Vectors, targets: Int[Tensor, "*rows"], **options: Any) -> Float[Tensor, ""]:
        """How wrong the head is about these vectors' targets; `options` are those of `linear_cross_entropy`."""
        return linear_cross_entropy(
            x.flatten(0, 1), self.head.weight, targets.flatten(), bias=self.head.bias, **options
        )

    def _scores(self, x: Vectors, see: See, ids: Ids | None = None) -> Float[Tensor, "batch position vocab"]:
        """Logits, and for one who looks what they say of `ids`, the row that is written."""
        logits: Tensor = see("logits", self.head(x))
        if wants(see, "probabilities"):
            see("probabilities", logits.softmax(-1))
        if ids is not None and wants(see, "loss"):
            see("loss", F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"))
        return logits

    def _add_constants(self, config: ModelConfig) -> None:
        if config.positions == "rope":
            self._constant("turn", rotations(config.context, config.rotary_width, config.rope_base))
        elif config.positions.startswith("sinusoidal"):
            halves = config.positions == "sinusoidal_halves"
            self._constant("table", sinusoids(config.context, config.width, halves=halves))
        elif config.positions == "alibi":
            self._constant("slopes", alibi_slopes(config.num_heads))

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _embedded(
        self,
        ids: Ids,
        *,
        start: int = 0,
        segments: Ids | None = None,
        types: Ids | None = None,
        see: See = unseen,
    ) -> Vectors:
        """Token vectors with what is added to them. With `segments`, positions count within each of them."""
        self._check_length(start + ids.shape[1])
        x = self.embed(ids)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.width)
        x = see("embed", x)
        if self.positions is not None or self.config.positions.startswith("sinusoidal"):
            table = self.table if self.positions is None else self.positions.weight
            rows = table[start : start + ids.shape[1]] if segments is None else table[places_within(segments)]
            x = x + see("pos_embed", rows.to(x.dtype))
        if self.types is not None:
            x = x + see("type_embed", self.types(torch.zeros_like(ids) if types is None else types))
        if self.embed_norm is not None:
            x = self.embed_norm(x, within(see, "embed_ln"))
        return dropout(x, self.config.dropout, self.training)

    def _through(
        self,
        stack: Stack,
        x: Vectors,
        *,
        segments: Int[Tensor, "batch key"] | None = None,
        cache: KeyValues | None = None,
        memory: Memory | None = None,
        memory_mask: Mask | None = None,
        see: See = unseen,
    ) -> Vectors:
        """All blocks of a stack, and the norm after them."""
        start, length = (0 if cache is None else cache.length), x.shape[1]
        slopes = self.slopes.to(x.dtype) if self.config.positions == "alibi" else None
        mask = attention_mask(
            length, start + length, x.device, segments=segments, slopes=slopes, causal=stack.causal
        )
        turn = self.turn[:, start : start + length] if self.config.positions == "rope" else None
        for layer, block in enumerate(getattr(self, stack.name)):
            cross = {} if memory is None else {"memory": memory.keys[layer], "memory_mask": memory_mask}
            x = block(x, mask=mask, turn=turn, cache=cache, **cross, see=within(see, f"{stack.name}.{layer}"))
        norm: Norm | None = getattr(self, "encoder_norm" if stack.name == "encoder" else "norm")
        last = within(see, "ln_final" if stack.name == "blocks" else f"{stack.name}.ln_final")
        result: Tensor = x if norm is None else norm(x, last)
        return result

    def _check_length(self, length: int) -> None:
        if length > self.config.context and self.config.positions not in ("alibi", "none"):
            raise ModelError(
                f"This row holds {length} tokens.",
                expected=f"The model's context is {self.config.context}.",
                do="Give its last tokens, or train with a larger model.context.",
            )


def places_within(segments: Ids) -> Ids:
    """Each token's place among those of its own segment: 0 0 0 1 1 -> 0 1 2 0 1. Segments are runs."""
    same = segments[:, :, None] == segments[:, None, :]
    counted: Tensor = same.tril().sum(-1) - 1
    return counted
