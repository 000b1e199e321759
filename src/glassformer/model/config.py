"""What the recipe says about the network: `[model]`. Arithmetic and checks only; no torch.

Symbols used in the whole project: V vocabulary, d width, L layers, H heads, d_head = head size,
d_ff = width of the feed-forward layer, T context (tokens in a row), B batch (rows).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from glassformer.configs import Clash, Config
from glassformer.errors import ModelError

Positions = Literal["rope", "learned", "sinusoidal", "alibi", "none"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "relu_squared"]


class ModelConfig(Config):
    """One decoder Transformer. A size left out follows from the others by the rule beside it."""

    kind: Literal["decoder"] = "decoder"
    vocab: int | None = Field(None, ge=2)
    """V; left out, it is the tokenizer's."""
    width: int = Field(256, ge=1)
    """d, the length of each token's vector (the residual stream)."""
    layers: int = Field(6, ge=0)
    heads: int | None = Field(None, ge=1)
    """Query heads; left out: one for each `head_size` of width, or for about 64 when that is left out too."""
    kv_heads: int | None = Field(None, ge=1)
    """Key and value heads (grouped-query attention); left out: as many as `heads`."""
    head_size: int | None = Field(None, ge=1)
    """d_head; left out: width / heads."""
    context: int = Field(256, ge=1)
    """The most tokens one row can hold."""
    feedforward: int | None = Field(None, ge=1)
    """d_ff; left out: 4 x width, or 8/3 x width rounded up to 64 when gated."""
    activation: Activation = "relu_squared"
    gated: bool = False
    """Feed-forward as down(activation(gate(x)) * up(x)) (Shazeer 2020, GLU variants)."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_place: Literal["pre", "post"] = "pre"
    """`pre`: x + f(norm(x)); `post`: norm(x + f(x)), as in 2017."""
    parallel: bool = False
    """x + attn(norm1(x)) + mlp(norm2(x)): both read the same stream, as in GPT-NeoX."""
    norm_epsilon: float = Field(1e-5, gt=0)
    qk_norm: bool = False
    """The same norm on each head's query and key before their product (Henry et al. 2020)."""
    positions: Positions = "rope"
    rope_base: float = Field(10000.0, gt=0)
    rotary_fraction: float = Field(1.0, gt=0, le=1)
    """The part of each head, from its first entry on, that rope turns (GPT-NeoX: a quarter)."""
    bias: bool = False
    """Biases in linear layers and LayerNorm."""
    qkv_bias: bool = False
    """Biases on queries, keys and values alone, as in Qwen2."""
    tied: bool = True
    """The output matrix is the token embedding."""
    scale_embeddings: bool = False
    """Token vectors times sqrt(d), as in 2017."""
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Literal["gpt2", "xavier", "unit"] = "gpt2"
    """A column of the table in `model/init.py`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if self.head_size is None and self.width % self.num_heads:
            near = [h for h in range(1, min(self.width, 2 * self.num_heads) + 1) if self.width % h == 0]
            best = min(near, key=lambda h: abs(h - self.num_heads))
            problems.append(
                f"width {self.width} does not divide into {self.num_heads} heads; heads = {best} would fit"
            )
        if self.num_heads % self.num_kv_heads:
            problems.append(f"heads {self.num_heads} is not a multiple of kv_heads {self.num_kv_heads}")
        if self.positions == "rope" and not problems and (self.rotary_width % 2 or not self.rotary_width):
            part = "the head size" if self.rotary_fraction == 1 else "head size x rotary_fraction"
            problems.append(f"rope rotates pairs, so {part} must be even; it is {self.rotary_width}")
        for name in ("rope_base", "rotary_fraction"):
            value = getattr(self, name)
            if self.positions != "rope" and value != type(self).model_fields[name].default:
                problems.append(f"{name} {value:g} has no effect with positions '{self.positions}'")
        if self.qkv_bias and self.bias:
            problems.append("qkv_bias has no effect with bias = true, which includes it")
        if self.parallel and self.norm_place == "post":
            problems.append("parallel needs norm_place 'pre': both layers read the stream through their norm")
        if problems:
            raise Clash(problems)
        return self

    @property
    def num_heads(self) -> int:
        """H."""
        if self.heads is not None:
            return self.heads
        if self.head_size is not None:
            return max(1, self.width // self.head_size)
        even = [size for size in range(2, 257, 2) if self.width % size == 0]  # rope turns pairs
        return self.width // min(even, key=lambda size: abs(size - 64), default=self.width)

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """d_head."""
        return self.head_size or self.width // self.num_heads

    @property
    def rotary_width(self) -> int:
        """Entries of a head that rope turns."""
        return int(self.head_width * self.rotary_fraction)

    @property
    def ff_width(self) -> int:
        """d_ff."""
        if self.feedforward is not None:
            return self.feedforward
        return -(-8 * self.width // 3 // 64) * 64 if self.gated else 4 * self.width

    @property
    def vocab_size(self) -> int:
        """V, once it is known."""
        if self.vocab is None:
            raise ModelError(
                "The model's vocabulary is not known yet.",
                expected="It comes from the tokenizer.",
                do="Set model.vocab to build or count a model without one.",
            )
        return self.vocab
