"""What the recipe says about the network: `[model]`. Arithmetic and checks only; no torch.

Symbols used in the whole project: V vocabulary, d width, L layers, H heads, d_head = head size,
d_ff = width of the feed-forward layer, T context (tokens in a row), B batch (rows).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from glassformer.configs import Clash, Config
from glassformer.errors import ModelError

Kind = Literal["decoder", "encoder", "encoder-decoder"]
Positions = Literal["rope", "learned", "sinusoidal", "sinusoidal_halves", "alibi", "none"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "relu_squared"]


class ModelConfig(Config):
    """One Transformer. A size left out follows from the others by the rule beside it."""

    kind: Kind = "decoder"
    """`decoder` writes on, `encoder` reads a text whole, `encoder-decoder` reads one text and writes another."""
    vocab: int | None = Field(None, ge=2)
    """V; left out, it is the tokenizer's."""
    width: int = Field(256, ge=1)
    """d, the length of each token's vector (the residual stream)."""
    layers: int = Field(6, ge=0)
    """L; of an encoder-decoder, the decoder's."""
    encoder_layers: int | None = Field(None, ge=0)
    """The encoder's layers in an encoder-decoder; left out: as many as `layers`."""
    heads: int | None = Field(None, ge=1)
    """Query heads; left out: one for each `head_size` of width, or for about 64 when that is left out too."""
    kv_heads: int | None = Field(None, ge=1)
    """Key and value heads (grouped-query attention); left out: as many as `heads`."""
    head_size: int | None = Field(None, ge=1)
    """d_head; left out: width / heads."""
    context: int = Field(256, ge=1)
    """The most tokens one row can hold."""
    feedforward: int | None = Field(None, ge=0)
    """d_ff; left out: 4 x width, or 8/3 x width rounded up to 64 when gated. 0: blocks of attention alone."""
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
    """The output matrix is the token embedding (an encoder-decoder has one embedding for both sides)."""
    scale_embeddings: bool = False
    """Token vectors times sqrt(d), as in 2017."""
    embed_norm: bool = False
    """A norm on the sum of token and position vectors, as in BERT."""
    token_types: int = Field(0, ge=0)
    """Vectors that tell a row's parts apart, as BERT's two sentences; only of an encoder."""
    head: Literal["tokens", "classes", "none"] = "tokens"
    """What an encoder gives out: scores over the vocabulary, over `classes`, or its vectors alone."""
    head_bias: bool = False
    """A bias on the scores over the vocabulary, as BERT's and Marian's."""
    head_transform: bool = False
    """A matrix, the activation and a norm before those scores, as in BERT; only of an encoder."""
    classes: int | None = Field(None, ge=2)
    """How many classes a `classes` head tells apart; left out, as many as the text's labels."""
    pooler: bool = False
    """tanh(W x + b) of a row's first vector stands for the row, as in BERT; without it their mean does."""
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
        if self.feedforward == 0:
            for name in ("activation", "gated", "parallel"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    problems.append(f"{name} has no effect with feedforward 0, which leaves attention alone")
        problems += self._of_other_kinds()
        if problems:
            raise Clash(problems)
        return self

    def _of_other_kinds(self) -> list[str]:
        """Settings that have no effect on this kind of model."""
        problems = []
        if self.kind != "encoder-decoder" and self.encoder_layers is not None:
            problems.append(
                f"encoder_layers has no effect with kind '{self.kind}', which has one stack: layers"
            )
        if self.kind == "encoder-decoder" and self.parallel:
            problems.append(
                "parallel has no effect with kind 'encoder-decoder': cross-attention comes between"
            )
        if self.kind != "encoder":
            for name in ("token_types", "head", "head_transform", "classes", "pooler"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    problems.append(f"{name} has no effect with kind '{self.kind}', only with 'encoder'")
            return problems
        if self.head != "tokens":
            for name in ("head_bias", "head_transform"):
                if getattr(self, name):
                    problems.append(f"{name} has no effect with head '{self.head}', only with 'tokens'")
        if self.classes is not None and self.head != "classes":
            problems.append(f"classes has no effect with head '{self.head}', only with 'classes'")
        return problems

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
    def num_encoder_layers(self) -> int:
        """Layers of the encoder of an encoder-decoder."""
        return self.layers if self.encoder_layers is None else self.encoder_layers

    @property
    def num_classes(self) -> int:
        """Of a `classes` head, once it is known."""
        if self.classes is None:
            raise ModelError("The number of classes is not known yet.", do="Set model.classes.")
        return self.classes

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
