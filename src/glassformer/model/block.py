"""One block: attention moves information between positions, feed-forward works on each; both add to it.

    pre   x = x + attn(norm1(x));  x = x + mlp(norm2(x))            GPT-2 and after
    post  x = norm1(x + attn(x));  x = norm2(x + mlp(x))            Vaswani et al. 2017
    parallel  x = x + attn(norm1(x)) + mlp(norm2(x))                GPT-NeoX (Black et al. 2022)

With `cross`, a second attention between the two reads the encoder's output. With feedforward 0 the block is its
attention alone, and resid_mid is what leaves it (Elhage et al. 2021).

A block that is `recomputed` keeps only x for the backward pass, and computes the rest again when that pass comes to it,
with the same random numbers (Chen et al. 2016): the same gradient, to the bit, for one more forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glassformer.model.attention import Attention, Keys, Mask
from glassformer.model.config import ModelConfig
from glassformer.model.dropout import dropout
from glassformer.model.feedforward import FeedForward
from glassformer.model.norms import Norm
from glassformer.model.places import See, unseen, within

Stream = Float[Tensor, "batch position width"]


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, *, causal: bool = True, cross: bool = False) -> None:
        super().__init__()
        self.pre, self.parallel, self.dropout = config.norm_place == "pre", config.parallel, config.dropout
        self.norm1 = Norm(config)
        self.attn = Attention(config, layer, causal=causal)
        self.norm_cross = Norm(config) if cross else None
        self.cross = Attention(config, layer, causal=False) if cross else None
        self.norm2 = Norm(config) if config.ff_width else None
        self.mlp = FeedForward(config) if config.ff_width else None
        self.recomputed = False

    def forward(self, x: Stream, *, see: See = unseen, **given: Any) -> Stream:
        """`given` as in `computed`. One who looks sees every number once, so then nothing is computed again."""
        if not (self.recomputed and torch.is_grad_enabled() and see is unseen):
            return self.computed(x, see=see, **given)
        noise = self.training and self.dropout > 0
        y: Stream = checkpoint(self.computed, x, use_reentrant=False, preserve_rng_state=noise, **given)
        return y

    def computed(
        self,
        x: Stream,
        *,
        memory: tuple[Keys, Keys] | None = None,
        memory_mask: Mask | None = None,
        see: See = unseen,
        **attention: Any,
    ) -> Stream:
        """`memory` are the encoder's keys and values for this block, `memory_mask` says which of them a query may
        look at; `attention` is handed on to self-attention: turn, mask, cache."""
        x = see("resid_pre", x)
        ln1, ln2, ln_cross = within(see, "ln1"), within(see, "ln2"), within(see, "ln_cross")
        out = self.attn(self.norm1(x, ln1) if self.pre else x, see=within(see, "attn"), **attention)
        if self.parallel and self.mlp is not None and self.norm2 is not None:
            added = self.mlp(self.norm2(x, ln2), within(see, "mlp"))
            x = self._add(x, see("attn_out", out), self.norm1, ln1)
            both: Tensor = see("resid_post", self._add(x, see("mlp_out", added), self.norm2, ln2))
            return both
        x = see("resid_mid", self._add(x, see("attn_out", out), self.norm1, ln1))
        if self.cross is not None and self.norm_cross is not None:
            y = self.norm_cross(x, ln_cross) if self.pre else x
            out = self.cross(y, memory=memory, mask=memory_mask, see=within(see, "cross_attn"))
            x = see("resid_mid_cross", self._add(x, see("cross_attn_out", out), self.norm_cross, ln_cross))
        if self.mlp is not None and self.norm2 is not None:
            out = self.mlp(self.norm2(x, ln2) if self.pre else x, within(see, "mlp"))
            x = self._add(x, see("mlp_out", out), self.norm2, ln2)
        seen: Tensor = see("resid_post", x)
        return seen

    def _add(self, x: Stream, out: Stream, norm: Norm, see: See) -> Stream:
        x = x + dropout(out, self.dropout, self.training)
        return x if self.pre else norm(x, see)
