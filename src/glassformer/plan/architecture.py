"""A model to be planned: its shape, and every matrix that it multiplies by. From 10 thousand to 10 trillion parameters.

`ModelConfig` says what glassformer builds; an `Architecture` also says what others have built (experts, sliding
windows, latent attention), which can be counted without being built.

Symbols: L layers, d width, h query heads, k key and value heads, e head width, f width of the feed-forward layer, V
vocabulary, s tokens in a row, E experts.

`Architecture.products()` is the one table that parameters, FLOPs, memory and time all read: each matrix with how often
it is held and how often a token is multiplied by it. An expert is held E times and used `active` times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.model.config import ModelConfig
    from glassformer.model.network import NetworkConfig

Kind = Literal["decoder", "encoder", "encoder-decoder", "network"]
Part = Literal["attention", "feedforward", "experts", "router", "head"]
Tokens = Literal["written", "read", "row"]


class Product(NamedTuple):
    """One matrix (inputs, outputs), how many like it are held, and how many of them a token is multiplied by."""

    name: str
    part: Part
    inputs: int
    outputs: int
    held: int
    used: int
    tokens: Tokens = "written"
    """Whose: an encoder-decoder writes tokens (decoder) and reads others (encoder); a head for classes has one vector
    a row."""

    @property
    def entries(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Counted:
    """Parameters by part. A tied head is the embedding and counts there."""

    embedding: int
    positions: int
    attention: int
    feedforward: int
    experts: int
    router: int
    norms: int
    biases: int
    head: int
    others: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in self.__slots__)


@dataclass(frozen=True, slots=True)
class Latent:
    """Latent attention of DeepSeek-V2 (2405.04434): q, k and v from narrow latent vectors."""

    q_rank: int
    kv_rank: int
    rotary: int
    """Entries of each head's q, and of the one shared k, that carry positions."""
    value_width: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of one model."""

    name: str
    kind: Kind = "decoder"
    layers: int = 1
    """L; of an encoder-decoder, the decoder's."""
    width: int = 1
    heads: int = 1
    kv_heads: int = 1
    head_width: int = 1
    ff_width: int = 0
    """f; of a model with experts, that of its layers without them."""
    ff_matrices: int = 2
    """2, or 3 with a gate."""
    vocab: int = 0
    tied: bool = True
    learned_positions: int = 0
    """Vectors held, one a position; 0 for rotary, ALiBi and sinusoidal."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norms: int = 2
    """In each layer."""
    bias: bool = False
    """On every matrix of a layer, and on layernorm."""
    qkv_bias: bool = False
    qk_norm: bool = False
    encoder_layers: int = 0
    window: int = 0
    """Keys that a token sees at most in the layers that have a window; 0: all."""
    window_layers: int = 0
    experts: int = 0
    """E that are held in each layer with experts."""
    active: int = 0
    """Experts that a token is sent to."""
    shared_experts: int = 0
    """Experts that all tokens pass."""
    expert_width: int = 0
    dense_layers: int = 0
    """First layers without experts, in a model that has them."""
    latent: Latent | None = None
    widths: tuple[int, ...] = ()
    """Of a plain network: inputs, hidden layers, outputs."""
    parallel: bool = False
    """Attention and feed-forward read the same residual, side by side."""
    config: ModelConfig | None = None
    """What glassformer builds it from, where it does."""
    others: int = 0
    """Numbers that none of the above accounts for: token types, an embedding's norm, a head's bias."""
    head: Literal["tokens", "classes", "none"] = "tokens"
    """What an encoder gives out."""
    classes: int = 0
    pooler: bool = False
    head_transform: bool = False
    """A matrix before the scores of tokens, as in BERT."""
    final_norm: bool = True
    """After the last layer of a stack; not where each layer ends in its norm."""
    only_last_learns: bool = False
    """Of a plain network of steps, whose other layers get no gradient."""

    @classmethod
    def of(cls, config: ModelConfig | NetworkConfig, name: str = "recipe") -> Architecture:
        """The architecture of a model that glassformer builds."""
        if config.kind == "network":
            stuck = config.activation == "step" and config.layers > 0
            return cls(name=name, kind="network", widths=config.widths, bias=True, only_last_learns=stuck)
        d, norm = config.width, config.width * (2 if config.norm == "layernorm" and config.bias else 1)
        others = {
            "token types": config.token_types * d,
            "embedding's norm": config.embed_norm * norm,
            "pooler's bias": config.pooler * d,
            "transform's bias and norm": config.head_transform * (config.bias * d + norm),
            "scores' bias": config.head_bias * config.vocab_size,
            "classes' bias": config.num_classes if config.head == "classes" else 0,
        }
        return cls(
            name=name, kind=config.kind, layers=config.layers, width=config.width, heads=config.num_heads,
            kv_heads=config.num_kv_heads, head_width=config.head_width, ff_width=config.ff_width,
            ff_matrices=3 if config.gated else 2, vocab=config.vocab_size, tied=config.tied,
            learned_positions=config.context if config.positions == "learned" else 0, norm=config.norm,
            norms=2 if config.ff_width else 1, bias=config.bias, qkv_bias=config.qkv_bias, qk_norm=config.qk_norm,
            encoder_layers=config.num_encoder_layers if config.kind == "encoder-decoder" else 0,
            others=sum(others.values()), head=config.head, pooler=config.pooler,
            classes=config.num_classes if config.head == "classes" else 0,
            head_transform=config.head_transform, final_norm=config.norm_place == "pre",
            parallel=config.parallel, config=config,
        )  # fmt: skip

    def __post_init__(self) -> None:
        if self.kind == "network":
            if len(self.widths) < 2:
                raise UsageError(
                    f"{self.name}: a network needs inputs and outputs.", expected="widths (784, 10)"
                )
            return
        for name in ("width", "heads", "kv_heads", "head_width", "vocab"):
            if getattr(self, name) < 1:
                raise UsageError(f"{self.name}: {name} is {getattr(self, name)}.", expected="At least 1.")
        if self.layers < 0 or self.window_layers > self.layers or self.dense_layers > self.layers:
            raise UsageError(
                f"{self.name}: of {self.layers} layers, {self.window_layers} have a window and {self.dense_layers} "
                "come before the experts.",
                expected="Parts of a whole.",
            )
        if self.heads % self.kv_heads:
            raise UsageError(
                f"{self.name}: {self.heads} heads cannot share {self.kv_heads} key and value heads.",
                expected="A multiple of them.",
            )
        if self.experts and not 1 <= self.active <= self.experts:
            raise UsageError(
                f"{self.name}: a token is sent to {self.active} of {self.experts} experts.",
                expected="At least 1 of them.",
            )

    @property
    def expert_layers(self) -> int:
        """Layers whose feed-forward part is experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def q_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def all_layers(self) -> int:
        """Of both stacks."""
        return self.layers + self.encoder_layers

    @property
    def parameters(self) -> Counted:
        """N, by part."""
        parts = dict.fromkeys(("attention", "feedforward", "experts", "router", "head"), 0)
        biases = 0
        for product in self.products():
            parts[product.part] += product.entries * product.held
            own = self.bias and product.part in ("attention", "feedforward")
            if own or (self.qkv_bias and product.name.endswith((".q", ".kv"))):
                biases += product.outputs * product.held
        return Counted(
            embedding=self.vocab * self.width if self.kind != "network" else 0,
            positions=self.learned_positions * self.width, norms=self._norms(), biases=biases, others=self.others,
            **parts,
        )  # fmt: skip

    @property
    def active_parameters(self) -> int:
        """Numbers that one token meets: of the experts, only those it is sent to."""
        idle = sum(one.entries * (one.held - one.used) for one in self.products() if one.part == "experts")
        return self.parameters.total - idle

    def _norms(self) -> int:
        if self.kind == "network":
            return 0
        numbers = 2 if self.norm == "layernorm" and self.bias else 1
        reads = self.kind == "encoder-decoder"
        cross = self.layers if reads else 0
        whole = self.norms * self.all_layers + cross + (1 + reads) * self.final_norm
        heads = 2 * self.head_width * (self.all_layers + cross) if self.qk_norm else 0
        in_latents = self.layers * (self.latent.q_rank + self.latent.kv_rank) if self.latent else 0
        return numbers * (whole * self.width + heads) + in_latents

    def products(self) -> Iterator[Product]:
        """Every matrix, from the bottom to the top; embeddings are looked up, not multiplied by."""
        if self.kind == "network":
            for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
                yield Product("layer", "feedforward", inputs, outputs, 1, 1)
            return
        reads = self.kind == "encoder-decoder"
        if reads:
            yield from self._attention("encoder", self.encoder_layers, "read")
            yield from self._feedforward("encoder.mlp", self.encoder_layers, "read")
        yield from self._attention("blocks", self.layers, "written")
        if reads:
            d, q, kv, n = self.width, self.q_width, self.kv_width, self.layers
            yield Product("cross.q", "attention", d, q, n, n)
            yield Product("cross.kv", "attention", d, 2 * kv, n, n, "read")
            yield Product("cross.out", "attention", q, d, n, n)
        yield from self._feedforward("blocks.mlp", self.layers - self.expert_layers, "written")
        yield from self._experts()
        yield from self._head()

    def _attention(self, name: str, n: int, tokens: Tokens) -> Iterator[Product]:
        d, q, kv, latent = self.width, self.q_width, self.kv_width, self.latent
        if latent is None:
            yield Product(f"{name}.q", "attention", d, q, n, n, tokens)
            yield Product(f"{name}.kv", "attention", d, 2 * kv, n, n, tokens)
            yield Product(f"{name}.out", "attention", q, d, n, n, tokens)
            return
        if latent.q_rank:
            yield Product(f"{name}.q_down", "attention", d, latent.q_rank, n, n, tokens)
        yield Product(f"{name}.q_up", "attention", latent.q_rank or d, q, n, n, tokens)
        yield Product(f"{name}.kv_down", "attention", d, latent.kv_rank + latent.rotary, n, n, tokens)
        unturned = self.head_width - latent.rotary + latent.value_width
        yield Product(f"{name}.kv_up", "attention", latent.kv_rank, self.heads * unturned, n, n, tokens)
        yield Product(f"{name}.out", "attention", self.heads * latent.value_width, d, n, n, tokens)

    def _feedforward(self, name: str, n: int, tokens: Tokens) -> Iterator[Product]:
        if n and self.ff_width:
            up = (self.ff_matrices - 1) * self.ff_width
            yield Product(f"{name}.up", "feedforward", self.width, up, n, n, tokens)
            yield Product(f"{name}.down", "feedforward", self.ff_width, self.width, n, n, tokens)

    def _head(self) -> Iterator[Product]:
        d, classes = self.width, self.head == "classes"
        if self.pooler:
            yield Product("pooler", "head", d, d, 1, int(classes), "row")
        if self.head_transform:
            yield Product("transform", "head", d, d, 1, 1)
        if self.head == "tokens":
            yield Product("head", "head", d, self.vocab, 0 if self.tied else 1, 1)
        elif classes:
            yield Product("head", "head", d, self.classes, 1, 1, "row")

    def _experts(self) -> Iterator[Product]:
        n, f = self.expert_layers, self.expert_width
        if not n:
            return
        up = (self.ff_matrices - 1) * f
        held, used = n * self.experts, n * self.active
        yield Product("blocks.router", "router", self.width, self.experts, n, n)
        yield Product("blocks.experts.up", "experts", self.width, up, held, used)
        yield Product("blocks.experts.down", "experts", f, self.width, held, used)
        if self.shared_experts:
            every = n * self.shared_experts
            yield Product("blocks.shared.up", "feedforward", self.width, up, every, every)
            yield Product("blocks.shared.down", "feedforward", f, self.width, every, every)
