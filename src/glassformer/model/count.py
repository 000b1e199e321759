"""What a model costs, from its config alone: parameters, FLOPs, bytes. Arithmetic; no torch.

Symbols: N parameters, V vocabulary, d width, L layers, H heads, K key and value heads, d_head head size,
T tokens in a row, B rows, n = B T tokens. A multiplication and the addition after it are 2 FLOPs.

Forward FLOPs per token, by the convention's name. Training is three times that: the backward pass multiplies
each product's gradient by both of its factors.

    six_n                2 N, so that training is 6 N (Kaplan et al. 2020)
    six_n_non_embedding  2 (N - embedding - positions - head), Kaplan's own N
    nanogpt              2 (N - positions) + 4 L H d_head T: nanoGPT's estimate_mfu, after appendix B of PaLM
                         (Chowdhery et al. 2022)
    matmul               2 (entries of all matrices, head included) + 4 L H d_head T: every product there is
    matmul_causal        the same with the (T + 1) / 2 keys that a token sees on average

Bytes: see `Memory`. Activations are what autograd keeps from the forward pass for the backward one; the
formula is within 3% of what torch keeps (a test measures it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Literal, get_args

from glassformer.model.config import ModelConfig
from glassformer.model.shapes import Shape, in_block, matrices, shapes, stacks

Convention = Literal["six_n", "six_n_non_embedding", "nanogpt", "matmul", "matmul_causal"]
Precision = Literal["fp32", "autocast", "bf16"]
"""`autocast`: float32 weights, matrix products in bfloat16; `bf16`: bfloat16 weights with float32 masters."""
Optimizer = Literal["sgd", "momentum", "adam", "adamw", "lion", "adafactor", "muon"]

LOGITS_AT_ONCE = 2**24
"""The loss holds at most this many logits (64 MiB in float32) and works in chunks beyond."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers in each part of the model. A tied head is the embedding and counts there."""

    embedding: int
    positions: int
    attention: int
    feedforward: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def non_embedding(self) -> int:
        """N of Kaplan et al.: without the vocabulary's and the positions' vectors."""
        return self.attention + self.feedforward + self.norms


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held while training."""

    weights: int
    """4 N, or 2 N as bfloat16."""
    copies: int
    """bfloat16 casts of the matrices (autocast, 2 each) or float32 masters (bf16, 4 N)."""
    gradients: int
    """As the weights."""
    optimizer: int
    """In float32: none (sgd), N numbers (momentum, lion), 2 N (adam, adamw), rows + columns of each matrix
    (adafactor), N of the hidden matrices and 2 N of the rest (muon, which leaves the rest to adamw)."""
    activations: int
    """Kept by the forward pass for the backward one."""
    logits: int
    """Logits, their logarithms and gradients, while the loss is computed."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Cost:
    """All of it, for training on batches of `tokens` tokens."""

    tokens: int
    parameters: Parameters
    flops_per_token: dict[Convention, int]
    """Training: forward and backward."""
    bytes: Memory
    cache_bytes_per_token: int
    """Keys and values kept for each token while generating."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a number: what, name, value, unit."""
        parts = [("parameters", name, value, "parameters") for name, value in asdict(self.parameters).items()]
        parts += [
            ("parameters", name, getattr(self.parameters, name), "parameters")
            for name in ("total", "non_embedding")
        ]
        for name, flops in self.flops_per_token.items():
            parts += [
                ("training", name, flops, "FLOPs per token"),
                ("training", name, flops * self.tokens, "FLOPs per batch"),
            ]
        parts += [
            ("memory", field.name, getattr(self.bytes, field.name), "bytes") for field in fields(self.bytes)
        ]
        parts += [("memory", "total", self.bytes.total, "bytes")]
        parts += [("generating", "cache", self.cache_bytes_per_token, "bytes per token")]
        return [dict(zip(("what", "name", "value", "unit"), part, strict=True)) for part in parts]


def cost(
    config: ModelConfig,
    *,
    batch: int = 1,
    length: int | None = None,
    precision: Precision = "fp32",
    optimizer: Optimizer = "adamw",
    fused: bool = True,
) -> Cost:
    """What training this model costs, with `batch` rows of `length` tokens (left out: the context)."""
    length = length or config.context
    return Cost(
        tokens=batch * length,
        parameters=parameters(config),
        flops_per_token={name: flops_per_token(config, name, length=length) for name in get_args(Convention)},
        bytes=memory(
            config, batch=batch, length=length, precision=precision, optimizer=optimizer, fused=fused
        ),
        cache_bytes_per_token=cache_bytes_per_token(config, precision=precision),
    )


def parameters(config: ModelConfig) -> Parameters:
    """Parameters by part."""
    parts = dict.fromkeys((field.name for field in fields(Parameters)), 0)
    for name, shape in shapes(config).items():
        parts[_part(name)] += prod(shape)
    return Parameters(**parts)


def flops_per_token(
    config: ModelConfig,
    convention: Convention = "matmul",
    *,
    length: int | None = None,
    training: bool = True,
    recompute: bool = False,
    predicted: float = 1.0,
) -> int:
    """FLOPs for each token of a row of `length`, by one of the conventions above.

    In an encoder-decoder a token is one of the decoder's row and one of the encoder's, which is as long.
    `predicted` is the part of the tokens that the head is computed for: the masked ones of an encoder.
    `recompute` adds the q k^T that fused attention computes once more in its backward pass: what the machine
    does, where the conventions count what the model needs (PaLM, appendix B: hardware and model FLOPs).
    """
    length = length or config.context
    count = parameters(config)
    head = prod(matrices(config).get("head.weight", (0,)))
    entries = sum(map(prod, matrices(config).values())) - head + predicted * head
    one = 2 * config.num_heads * config.head_width * length  # q k^T of a layer; pattern v is as much
    causal = sum(stack.layers for stack in stacks(config) if stack.causal)
    whole = sum(stack.layers * ((not stack.causal) + stack.cross) for stack in stacks(config))
    product = one * (causal + whole)
    seen = one * causal * (length + 1) // (2 * length) + one * whole
    forward = {
        "six_n": 2 * count.total,
        "six_n_non_embedding": 2 * count.non_embedding,
        "nanogpt": 2 * (count.total - count.positions) + 2 * product,
        "matmul": round(2 * entries) + 2 * product,
        "matmul_causal": round(2 * entries) + 2 * seen,
    }
    again = seen if convention == "matmul_causal" else product
    return forward[convention] * (3 if training else 1) + (again if training and recompute else 0)


def memory(
    config: ModelConfig,
    *,
    batch: int,
    length: int | None = None,
    precision: Precision = "fp32",
    optimizer: Optimizer = "adamw",
    fused: bool = True,
    recomputed: int = 0,
) -> Memory:
    """Bytes held at the worst moment of a training step, part by part. `recomputed` as in `activation_bytes`."""
    total = parameters(config).total
    multiplied = sum(map(prod, matrices(config).values()))
    copies = {"fp32": 0, "autocast": 2 * multiplied, "bf16": 4 * total}
    length = length or config.context
    return Memory(
        weights=(2 if precision == "bf16" else 4) * total,
        copies=copies[precision],
        gradients=(2 if precision == "bf16" else 4) * total,
        optimizer=optimizer_bytes(shapes(config), optimizer),
        activations=activation_bytes(
            config, batch=batch, length=length, precision=precision, fused=fused, recomputed=recomputed
        ),
        logits=min(batch * length * config.vocab_size, LOGITS_AT_ONCE) * (8 if precision == "fp32" else 10),
    )


def optimizer_bytes(tensors: Mapping[str, Shape], optimizer: Optimizer) -> int:
    """What the optimizer remembers between steps for tensors of these names and shapes, in float32."""
    total = sum(map(prod, tensors.values()))
    hidden = sum(prod(shape) for name, shape in tensors.items() if len(shape) == 2 and in_block(name))
    numbers = {
        "sgd": 0,
        "momentum": total,
        "lion": total,
        "adam": 2 * total,
        "adamw": 2 * total,
        "adafactor": sum(sum(shape) for shape in tensors.values()),
        "muon": 2 * total - hidden,
    }
    return 4 * numbers[optimizer]


def activation_bytes(
    config: ModelConfig,
    *,
    batch: int,
    length: int | None = None,
    precision: Precision = "fp32",
    fused: bool = True,
    recomputed: int = 0,
) -> int:
    """What autograd keeps for the backward pass, without dropout; the first `recomputed` blocks keep what they read,
    and compute the rest again. Per token:

    each norm      rmsnorm: its input and the normalised vector in float32; layernorm: its input; statistics
    each matrix    its input: d for qkv and up, H d_head for out, d_ff for down, d for the head
    attention      fused: q, k, v, z, a number a head; explicit: q, k, v of every head and H T of the pattern
    feed-forward   what the activation, and the gate, need besides
    """
    length = length or config.context
    blocks, last = _kept_per_token(config, length, precision, fused)
    product = 4 if precision == "fp32" else 2
    bias = product * config.num_heads * length**2 if fused and config.positions == "alibi" else 0
    kept = sum(read for _, read in blocks[:recomputed]) + sum(whole for whole, _ in blocks[recomputed:])
    return batch * length * (kept + last) + bias


def num_recomputed(
    config: ModelConfig,
    share: float,
    *,
    length: int | None = None,
    precision: Precision = "fp32",
    fused: bool = True,
) -> int:
    """The fewest first blocks to compute again so that at most `share` of the activations is kept; all of them where
    that is not enough.

    The first ones, because what a block computes again is alive while the blocks after it are done: beside the first
    blocks, nothing else is.
    """
    blocks, last = _kept_per_token(config, length or config.context, precision, fused)
    kept = whole = sum(whole for whole, _ in blocks) + last
    for number, (whole_block, read) in enumerate(blocks):
        if kept <= share * whole:
            return number
        kept += read - whole_block
    return len(blocks)


def _kept_per_token(
    config: ModelConfig, length: int, precision: Precision, fused: bool
) -> tuple[list[tuple[int, int]], int]:
    """(for each block, as they run: all it keeps, and what it reads; what is kept after the blocks)."""
    stream, product = (2 if precision == "bf16" else 4), (4 if precision == "fp32" else 2)
    d, q, kv = config.width, config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    rms = config.norm == "rmsnorm"
    norm = 8 * d + 4 if rms else stream * d + 8
    projected = product * (q + 2 * kv)  # one tensor: a view of any part keeps it whole
    if fused:
        turned = config.positions == "rope" or config.qk_norm  # q, k and z are then apart from it
        attention = projected + turned * product * (2 * q + kv) + 4 * config.num_heads
    else:
        attention = product * 3 * q + config.num_heads * length * (4 if precision == "fp32" else 6)
        attention += projected if config.qk_norm and (product == 4 or not rms) else 0
    if config.qk_norm:  # its input is such a view, unless it had to be made float32
        per_head = (4 if product == 4 else 8) * config.head_width + 4 if rms else 8
        attention += per_head * (config.num_heads + config.num_kv_heads)
    squared = config.activation == "relu_squared"
    neurons = 4 + squared if config.gated else 1 if config.activation == "relu" else 2
    shared = stream * d if config.parallel and (not rms or stream == 4) else 0  # both norms read one tensor
    parts = 2 if config.ff_width else 1
    layer = parts * (norm + product * d) - shared + attention + product * (q + neurons * config.ff_width)
    cross = norm + product * (d + q) + attention
    last = product * d + (norm if config.norm_place == "pre" else 0)
    found = []
    for stack in stacks(config):  # the keys and values of a memory are made outside of the blocks
        block = (layer + stack.cross * cross, stream * d + stack.cross * product * 2 * kv)
        found += [block] * stack.layers
    return found, last * len(stacks(config))


def cache_bytes_per_token(config: ModelConfig, *, precision: Precision = "fp32") -> int:
    """2 L K d_head entries: one key and one value for each layer and key head (of an encoder-decoder, for each
    token written; the text it reads holds as much again for each of its tokens)."""
    return 2 * config.layers * config.num_kv_heads * config.head_width * (4 if precision == "fp32" else 2)


def _part(name: str) -> str:
    if "norm" in name:
        return "norms"
    words = name.split(".")
    parts = {
        "embed": "embedding",
        "types": "embedding",
        "positions": "positions",
        "head": "head",
        "transform": "head",
        "pooler": "head",
        "attn": "attention",
        "cross": "attention",
        "mlp": "feedforward",
    }
    return next(part for word, part in parts.items() if word in words)
