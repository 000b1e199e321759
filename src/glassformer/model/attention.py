"""Scaled dot-product attention with several heads (Vaswani et al. 2017).

    q = W_q x,  k = W_k x,  v = W_v x            each split into heads of d_head entries
    scores  = q k^T / sqrt(d_head)               one number for each query and key
    pattern = softmax(scores + mask)             over keys; each query's row sums to 1
    z       = pattern v                          values blended
    out     = W_o concat(z over heads)

Grouped-query attention (Ainslie et al. 2023) shares each key and value head among heads / kv_heads queries.
Two paths compute the same: `explicit` shows every number and is also the faster one for short rows; the fused
path is torch's scaled_dot_product_attention. A test holds them equal.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glassformer.model.blockwise import causal_attention
from glassformer.model.config import ModelConfig
from glassformer.model.dropout import dropout
from glassformer.model.norms import Norm
from glassformer.model.places import See, unseen, wants
from glassformer.model.positions import rotate

Kernel = Literal["fused", "explicit", "blocks"]
"""Which code computes attention: torch's, ours, or ours in blocks of queries. The numbers agree."""

Queries = Float[Tensor, "batch head query head_size"]
Keys = Float[Tensor, "batch kv_head key head_size"]
"""And values."""
Mask = Float[Tensor, "#batch #head query key"] | Bool[Tensor, "#batch #head query key"]
"""Numbers to be added to the scores, or True where a query may look."""


@runtime_checkable
class KeyValues(Protocol):
    """Keys and values of the tokens before, kept so that they need not be computed again."""

    length: int
    """How many positions are held."""

    def extend(self, layer: int, k: Keys, v: Keys) -> tuple[Keys, Keys]:
        """All keys and values of this layer, the new ones last."""
        ...


class Attention(nn.Module):
    """Self-attention, or cross-attention when `memory` is given to forward."""

    def __init__(self, config: ModelConfig, layer: int, *, causal: bool = True) -> None:
        super().__init__()
        self.layer, self.causal = layer, causal
        self.kernel: Kernel = "fused"
        self.whole = True
        """False where other ranks hold the rest of the heads; then `result` is nowhere to be seen."""
        self.heads, self.kv_heads, self.head_size = config.num_heads, config.num_kv_heads, config.head_width
        self.dropout = config.dropout
        self.sizes = [heads * self.head_size for heads in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = nn.Linear(config.width, sum(self.sizes), bias=config.bias or config.qkv_bias)
        self.out = nn.Linear(self.sizes[0], config.width, bias=config.bias)
        self.q_norm = Norm(config, self.head_size) if config.qk_norm else None
        self.k_norm = Norm(config, self.head_size) if config.qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "batch query width"],
        *,
        memory: tuple[Keys, Keys] | None = None,
        turn: Float[Tensor, "2 query half"] | None = None,
        mask: Mask | None = None,
        cache: KeyValues | None = None,
        see: See = unseen,
    ) -> Float[Tensor, "batch query width"]:
        """`turn` is RoPE's table, `mask` is added to the scores (a boolean one keeps where it is true);
        without a mask, a causal layer looks at itself and the tokens before. `memory` are the keys and values of
        another stack's output, as `remember` gives them, to look at in place of x's own."""
        if memory is None:
            q, k, v = map(self._split, torch.split(self.qkv(x), self.sizes, dim=-1))
        else:
            q, (k, v) = self._split(self.project(x, slice(0, self.sizes[0]))), memory
        q = self._turned(see, "q", q, self.q_norm, turn)
        k = self._turned(see, "k", k, self.k_norm, turn) if memory is None else _see_heads(see, "k", k)
        v = _see_heads(see, "v", v)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        causal = self.causal and mask is None and q.shape[2] > 1
        seen = wants(see, "dots", "scaled", "scores", "pattern")
        dropout = self.dropout if self.training else 0.0
        if self.kernel == "blocks" and causal and cache is None and not (seen or dropout):
            z = causal_attention(q, *self._share(k, v))
        elif self.kernel != "explicit" and not seen:
            z = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads,
                dropout_p=dropout,
            )  # fmt: skip
        else:
            z = self.explicit(q, k, v, causal_mask(q.shape[2], k.shape[2], q.device) if causal else mask, see)
        z = _see_heads(see, "z", z)
        if self.whole and wants(see, "result"):
            weight = self.out.weight.view(-1, self.heads, self.head_size)
            result = see("result", torch.einsum("bhqs,whs->bqhw", z, weight))
            y: Tensor = result.sum(2) if self.out.bias is None else result.sum(2) + self.out.bias
        else:
            y = self.out(z.transpose(1, 2).flatten(2))
        return y

    def explicit(self, q: Queries, k: Keys, v: Keys, mask: Tensor | None, see: See = unseen) -> Queries:
        """q k^T -> / sqrt(d_head) -> mask -> softmax -> v, line by line."""
        k, v = self._share(k, v)
        dots = see("dots", q @ k.transpose(-2, -1))
        scores = dots.float() if dots.dtype == torch.bfloat16 else dots
        scores = see("scaled", scores / math.sqrt(self.head_size))
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        scores = see("scores", scores)
        pattern = see("pattern", scores.softmax(dim=-1)).to(v.dtype)
        z: Tensor = dropout(pattern, self.dropout, self.training) @ v
        return z

    def _turned(self, see: See, name: str, y: Queries, norm: Norm | None, turn: Tensor | None) -> Queries:
        """Queries or keys as they meet in the product: normed and turned, where the model does so."""
        y = _see_heads(see, name, y)
        if norm is None and turn is None:
            return y
        y = y if norm is None else norm(y)
        return _see_heads(see, f"rot_{name}", y if turn is None else rotate(y, turn))

    def _share(
        self, k: Keys, v: Keys
    ) -> tuple[Float[Tensor, "batch head key head_size"], Float[Tensor, "batch head key head_size"]]:
        """Grouped-query attention: each key and value head, once for every query head that uses it."""
        groups = self.heads // self.kv_heads
        if groups == 1:
            return k, v
        return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def remember(self, memory: Float[Tensor, "batch key width"]) -> tuple[Keys, Keys]:
        """Keys and values of another stack's output, once for however many queries look at it."""
        projected = self.project(memory, slice(self.sizes[0], sum(self.sizes)))
        k, v = map(self._split, torch.split(projected, self.sizes[1:], dim=-1))
        return (k if self.k_norm is None else self.k_norm(k)), v

    def project(
        self, x: Float[Tensor, "batch position width"], rows: slice
    ) -> Float[Tensor, "batch position entries"]:
        """Queries alone, or keys and values alone: cross-attention takes them of two texts."""
        return F.linear(x, self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows])

    def _split(self, y: Float[Tensor, "batch position entries"]) -> Queries:
        """Entries of all heads side by side -> one axis for the heads."""
        return y.view(*y.shape[:-1], -1, self.head_size).transpose(1, 2)


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "query key"]:
    """True where a query may look: at keys no later than itself, the last query standing at the last key."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def attention_mask(
    num_queries: int,
    num_keys: int,
    device: torch.device,
    *,
    segments: Int[Tensor, "batch key"] | None = None,
    slopes: Float[Tensor, " head"] | None = None,
    causal: bool = True,
) -> Mask | None:
    """What a layer may look at; None where plain causality, or its absence, says it all.

    `segments` numbers the document of each position: attention stays inside it. `slopes` are ALiBi's, which
    turns the mask into a number to be added.
    """
    plain = not causal or num_queries in (num_keys, 1)
    if segments is None and slopes is None and plain:
        return None
    allowed = causal_mask(num_queries, num_keys, device)[None, None]
    if not causal:
        allowed = torch.ones_like(allowed)
    if segments is not None:
        allowed = allowed & (segments[:, None, -num_queries:, None] == segments[:, None, None, :])
    if slopes is None:
        return allowed
    key = torch.arange(num_keys, device=device)
    distance = (key[-num_queries:, None] - key[None, :]).abs().to(slopes.dtype)
    return (-slopes[:, None, None] * distance)[None].masked_fill(~allowed, -math.inf)


def _see_heads(see: See, name: str, y: Queries) -> Queries:
    """Places hold heads after positions, as TransformerLens does; inside, heads come first."""
    if not wants(see, name):
        return y
    seen: Tensor = see(name, y.transpose(1, 2)).transpose(1, 2)
    return seen
