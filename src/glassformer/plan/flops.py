"""FLOPs of one token, counted product by product; a multiplication and the addition after it are 2.

    products     2 x inputs x outputs x how often a token is multiplied by the matrix
    attention    4 s_seen h e for each layer: q k^T and pattern v, over the keys that a token sees

Conventions, which must never be mixed (published figures differ by 6 % and 33 % through them alone):

    full         s_seen = s, as PaLM (2204.02311, appendix B), Megatron and llm-foundry count
    causal       s_seen = (s + 1) / 2, what a causal mask leaves; a window w leaves the mean of min(i, w)
    hardware     what the machine does: causal or full, and what is computed again (`Recompute`)
    six_n        6 N, N without the vectors that are only looked up

Short forms add attention to 6 N: 12 L h e s a token (full), 6 L h e s (causal). In rows that hold several documents,
each seen alone, s is `packed`: sum(len^2) / sum(len).

Training is three times the forward pass: the backward pass multiplies each product's gradient by both its factors.
Weights that are frozen need no gradient of their own, and what was looked up in a frozen table none at all: 2 instead
of 3, and 1 where the first layer reads (LoRA, 2106.09685; adapter by adapter in `plan/adapters.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from glassformer.errors import UsageError
from glassformer.plan.architecture import Architecture
from glassformer.plan.layout import Recompute

Convention = Literal["full", "causal", "six_n"]


@dataclass(frozen=True, slots=True)
class Flops:
    """Forward FLOPs by part, for each token that is written; an encoder-decoder's reading is shared out over them."""

    attention_products: float
    """q, k, v and output matrices."""
    pattern: float
    """q k^T and pattern v."""
    feedforward: float
    """With experts and their router."""
    head: float

    @property
    def layers(self) -> float:
        return self.attention_products + self.pattern + self.feedforward

    @property
    def total(self) -> float:
        return self.layers + self.head


def seen(length: float, window: int = 0, *, causal: bool = True) -> float:
    """Keys that a token of a row sees on average: (s + 1) / 2, or the mean of min(i, w) over i = 1 .. s."""
    w = min(window or length, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length if causal else float(w)


def packed(lengths: Iterable[int]) -> float:
    """The s to count with where a row holds documents of these lengths, each seen alone: sum(len^2) / sum(len)."""
    held = list(lengths)
    if not held or min(held) < 1:
        raise UsageError(
            f"Documents of {held} tokens cannot be counted.", expected="At least one token in each."
        )
    return sum(n * n for n in held) / sum(held)


def forward(
    architecture: Architecture,
    length: float,
    *,
    read_length: float = 0,
    convention: Convention = "full",
    predicted: float = 1.0,
) -> Flops:
    """One token's forward pass in a row of `length`, by part. `predicted`: the share of tokens that scores are
    computed for, where it is not all of them (an encoder's masked ones)."""
    if length <= 0:
        raise UsageError(f"A row of {length:g} tokens cannot be counted.", expected="At least 1.")
    a = architecture
    parts = {"attention": 0.0, "feedforward": 0.0, "experts": 0.0, "router": 0.0, "head": 0.0}
    read = read_length or length
    shares = {"written": 1.0, "read": read / length, "row": 1 / length}
    for product in a.products():
        asked = predicted if product.part == "head" and product.tokens == "written" else 1.0
        parts[product.part] += 2.0 * product.entries * product.used * shares[product.tokens] * asked
    each = 2.0 * (a.q_width + (a.heads * a.latent.value_width if a.latent else a.q_width))
    causal = convention == "causal" and a.kind != "encoder"
    keys = (a.layers - a.window_layers) * seen(length, causal=causal)
    keys += a.window_layers * seen(length, a.window, causal=causal)
    if a.kind == "encoder-decoder":
        keys += a.encoder_layers * read * shares["read"] + a.layers * read
    elif a.kind == "network":
        keys = 0.0
    return Flops(
        parts["attention"],
        each * keys,
        parts["feedforward"] + parts["experts"] + parts["router"],
        parts["head"],
    )


def training(
    architecture: Architecture,
    length: float,
    *,
    read_length: float = 0,
    convention: Convention = "full",
    recompute: Recompute = Recompute.NONE,
    fused_attention: bool = False,
    trained: int | None = None,
    predicted: float = 1.0,
) -> float:
    """Forward and backward FLOPs for each token; with `recompute`, or `fused_attention` whose backward pass multiplies
    q k^T again, hardware FLOPs.

    `trained`: parameters that are trained, where it is not all of them; the others' gradients are not computed.
    """
    a = architecture
    if convention == "six_n":
        return 6.0 * looked_through(a)
    one = forward(a, length, read_length=read_length, convention=convention, predicted=predicted)
    if a.kind == "network":
        products = [2.0 * product.entries for product in a.products()]
        if a.only_last_learns:
            return one.total + products[-1]
        return 3 * one.total - products[0]  # the gradient of its inputs is nobody's
    again = {Recompute.NONE: 0.0, Recompute.SELECTIVE: one.pattern, Recompute.FULL: one.layers}[recompute]
    again += one.pattern / 2 if fused_attention else 0.0
    if trained is None:
        return 3 * one.total + again
    weights = one.total - one.pattern
    return 3 * one.total - weights - _first_inputs(a, read_length / length) + 6.0 * trained + again


def short_form(architecture: Architecture, length: float, *, causal: bool = False) -> float:
    """6 N + 12 L h e s for each token, or 6 L h e s where only what a causal mask leaves is counted."""
    layers = architecture.all_layers * architecture.q_width
    return 6.0 * looked_through(architecture) + (6.0 if causal else 12.0) * layers * length


def looked_through(architecture: Architecture) -> int:
    """N of 6 N: parameters that one token is multiplied by, without positions and, unless it is also the head, without
    the embedding."""
    a = architecture
    met = a.active_parameters - a.parameters.positions
    return met if a.tied and a.head == "tokens" else met - a.parameters.embedding


def _first_inputs(a: Architecture, ratio: float) -> float:
    """FLOPs a token of the first layers' gradients by what they read, which a frozen embedding does not ask for."""
    names = ("blocks.q", "blocks.kv", "blocks.q_down", "blocks.kv_down", "encoder.q", "encoder.kv")
    found = 0.0
    for product in a.products():
        if product.name in names and product.used:
            found += 2.0 * product.entries * ((ratio or 1.0) if product.tokens == "read" else 1.0)
    return found
