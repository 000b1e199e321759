"""FLOPs of one token, counted product by product; a multiplication and the addition after it are 2.

    products     2 x inputs x outputs x how often a token is multiplied by the matrix
    attention    4 s_seen h e for each layer: q k^T and pattern v, over the keys that a token sees

Conventions, which must never be mixed (published figures differ by 6 % and 33 % through them alone):

    full         s_seen = s, as PaLM (2204.02311, appendix B), Megatron and llm-foundry count
    causal       s_seen = (s + 1) / 2, what a causal mask leaves; a window w leaves the mean of min(i, w)
    hardware     what the machine does: causal or full, and what is computed again (`Recompute`)
    six_n        6 N, N without the vectors that are only looked up

Training is three times the forward pass: the backward pass multiplies each product's gradient by both its factors.
Weights that are frozen need no gradient of their own: 2 instead of 3 (LoRA, 2106.09685).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


def seen(length: int, window: int = 0, *, causal: bool = True) -> float:
    """Keys that a token of a row sees on average: (s + 1) / 2, or the mean of min(i, w) over i = 1 .. s."""
    if not causal:
        return float(min(length, window or length))
    w = min(window or length, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length


def forward(
    architecture: Architecture, length: int, *, read_length: int = 0, convention: Convention = "full"
) -> Flops:
    """One token's forward pass in a row of `length`, by part."""
    a = architecture
    parts = {"attention": 0.0, "feedforward": 0.0, "experts": 0.0, "router": 0.0, "head": 0.0}
    ratio = read_length / length if read_length else 1.0
    for product in a.products():
        share = ratio if product.tokens == "read" else 1.0
        parts[product.part] += 2.0 * product.entries * product.used * share
    half = convention == "causal"
    q, v = a.q_width, a.heads * a.latent.value_width if a.latent else a.q_width
    each = 2.0 * (q + v)  # q k^T and pattern v, for each key that is seen
    written = a.layers - a.window_layers
    is_causal = half and a.kind != "encoder"
    pattern = each * written * (seen(length) if is_causal else length)
    pattern += each * a.window_layers * seen(length, a.window, causal=is_causal)
    if a.encoder_layers:
        read = read_length or length
        pattern += each * (a.encoder_layers * read * ratio + a.layers * read)
    return Flops(
        parts["attention"], pattern, parts["feedforward"] + parts["experts"] + parts["router"], parts["head"]
    )


def training(
    architecture: Architecture,
    length: int,
    *,
    read_length: int = 0,
    convention: Convention = "full",
    recompute: Recompute = Recompute.NONE,
    trained: int | None = None,
) -> float:
    """Forward and backward FLOPs for each token; with `recompute`, hardware FLOPs.

    `trained`: parameters that are trained, where it is not all of them; the others' gradients are not computed.
    """
    if convention == "six_n":
        held = architecture.active_parameters - architecture.parameters.positions
        looked_up = 0 if architecture.tied else architecture.parameters.embedding
        return 6.0 * (held - looked_up)
    one = forward(architecture, length, read_length=read_length, convention=convention)
    if architecture.kind == "network":
        inputs, outputs = architecture.widths[:2]
        return 3 * one.total - 2.0 * inputs * outputs  # the gradient of its inputs is nobody's
    frozen = 0.0
    if trained is not None:
        frozen = one.attention_products + one.feedforward + one.head  # their weights' gradients
    again = {Recompute.NONE: 0.0, Recompute.SELECTIVE: one.pattern, Recompute.FULL: one.layers}[recompute]
    added = 6.0 * trained if trained is not None else 0.0
    return 3 * one.total - frozen + added + again
