"""Whole models: embeddings, a stack of blocks, and a head.

decoder   ids -> token vectors (+ positions) -> causal blocks -> norm -> logits over the vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.errors import ModelError
from glassformer.model.attention import Attention, Kernel, KeyValues, attention_mask
from glassformer.model.block import Block
from glassformer.model.config import ModelConfig
from glassformer.model.init import initialise
from glassformer.model.loss import linear_cross_entropy
from glassformer.model.norms import Norm
from glassformer.model.places import See, unseen, within
from glassformer.model.positions import alibi_slopes, rotations, sinusoids

Ids = Int[Tensor, "batch position"]


class Decoder(nn.Module):
    """Reads tokens from left to right and gives, at each, a score for every token that could come next."""

    turn: Tensor
    table: Tensor
    slopes: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config) if config.norm_place == "pre" else None
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        if config.positions == "rope":
            self._constant("turn", rotations(config.context, config.rotary_width, config.rope_base))
        elif config.positions == "sinusoidal":
            self._constant("table", sinusoids(config.context, config.width))
        elif config.positions == "alibi":
            self._constant("slopes", alibi_slopes(config.num_heads))
        initialise(self, config, seed)

    def forward(
        self,
        ids: Ids,
        *,
        segments: Int[Tensor, "batch key"] | None = None,
        cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits. `segments` numbers the document of each token, and attention stays inside documents; with a
        `cache`, `ids` are the tokens after those it holds."""
        logits: Tensor = see("logits", self.head(self.hidden(ids, segments=segments, cache=cache, see=see)))
        return logits

    def hidden(
        self,
        ids: Ids,
        *,
        segments: Int[Tensor, "batch key"] | None = None,
        cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Float[Tensor, "batch position width"]:
        """The last layer's vectors after the final norm: what the head turns into logits."""
        start, length = (0 if cache is None else cache.length), ids.shape[1]
        if start + length > self.config.context and self.config.positions not in ("alibi", "none"):
            raise ModelError(
                f"This row holds {start + length} tokens.",
                expected=f"The model's context is {self.config.context}.",
                do="Give its last tokens, or train with a larger model.context.",
            )
        x = self.embed(ids)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.width)
        x = see("embed", x)
        if self.positions is not None:
            x = x + see("pos_embed", self.positions.weight[start : start + length])
        elif self.config.positions == "sinusoidal":
            x = x + see("pos_embed", self.table[start : start + length].to(x.dtype))
        x = F.dropout(x, self.config.dropout, self.training)
        slopes = self.slopes.to(x.dtype) if self.config.positions == "alibi" else None
        mask = attention_mask(length, start + length, ids.device, segments=segments, slopes=slopes)
        turn = self.turn[:, start : start + length] if self.config.positions == "rope" else None
        for layer, block in enumerate(self.blocks):
            x = block(x, mask=mask, turn=turn, cache=cache, see=within(see, f"blocks.{layer}"))
        last: Tensor = x if self.norm is None else self.norm(x, within(see, "ln_final"))
        return last

    def loss(
        self,
        ids: Ids,
        targets: Ids,
        *,
        segments: Ids | None = None,
        num_targets: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats over the targets that are not -100.

        `num_targets` divides instead of this row's own count, so that micro-batches add up to the mean.
        """
        hidden = self.hidden(ids, segments=segments).flatten(0, 1)
        return linear_cross_entropy(
            hidden, self.head.weight, targets.flatten(),
            num_targets=num_targets, label_smoothing=label_smoothing, z_loss=z_loss,
        )  # fmt: skip

    def use_attention(self, kernel: Kernel) -> None:
        """Choose which code computes attention in every layer."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = kernel

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def count_parameters(model: nn.Module) -> int:
    """Distinct weights; a tied head is the embedding and counts once."""
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def build(config: ModelConfig, *, seed: int = 0, device: str | torch.device = "cpu") -> Decoder:
    """The model a config describes, its weights drawn from `seed`."""
    return Decoder(config, seed=seed).to(device)
