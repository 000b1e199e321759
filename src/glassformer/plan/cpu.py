"""Seconds of a training step of ours on a processor, from what `glassformer bench` measured of each operation.

    step = products + attention + element by element + update

    products       every matrix with both its gradients, at the rate that was measured near its rows, inputs and outputs
    attention      what lies between two products, by tokens and head width, with the quickest kernel
    elements       norms, activations, sums, rotations and the loss, each at what it costs for so many numbers
    update         the gradient added up, its length, AdamW, by tensors and numbers

Between measured sizes, time is a straight line in logarithms: it is flat where calling costs most, then falls off with
the caches, then follows memory. What the engine would choose (`train/engine.py`) is the quickest of all ways, as
predicted. A compiled step (runs of minutes) saves part of attention and elements, `COMPILED`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from glassformer.errors import UsageError
from glassformer.model.count import LOGITS_AT_ONCE
from glassformer.plan.architecture import Architecture
from glassformer.plan.machine import Profile

Precision = Literal["fp32", "bf16", "autocast"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "autocast", "fp32")
KERNELS = ("explicit", "fused", "blocks")
_SHORT_CONTEXT = 128
"""`train/engine.py` tries the explicit kernel up to here and the one in blocks beyond, and the fused one always."""
COMPILED = 0.45
"""The share of attention and elements that is left where torch.compile has fused them, bf16: 0.44 and 0.45 on a Zen 4
(explicit attention, 4 x 128 and 6 x 192), 0.43 and 0.40 on a Zen 5 (4 x 128; 4 x 192 in blocks), but 0.20 there for
64 rows of 6 x 384, whose numbers no cache holds."""
WORTH_COMPILING = 120.0
"""Seconds of training from which `train/engine.py` tries to compile, with the kernel that is the likeliest."""
_PASSES = 2
"""The gradient of the embedding is filled with zeros, and added to the head's where both are one."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step by part, and how it is computed."""

    products: float
    attention: float
    elements: float
    loss: float
    update: float
    precision: Precision = "fp32"
    kernel: str = "fused"

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elements + self.loss + self.update

    def rows(self) -> list[dict[str, Any]]:
        """One row a part, with its share."""
        parts = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        return [
            {"part": name, "seconds": value, "share": value / self.total} for name, value in parts.items()
        ]


def step_time(
    architecture: Architecture,
    profile: Profile,
    *,
    batch: int,
    length: int,
    precision: Precision | None = None,
    kernel: str | None = None,
    activation: str | None = None,
    rotary: bool = True,
    compiled: bool = False,
) -> StepTime:
    """One step of `batch` rows of `length` tokens. What is left out (precision, kernel) is the quickest, or of kernels
    the likeliest where it is `compiled`; `activation` is silu where it is gated, else gelu."""
    if architecture.kind == "network" or architecture.experts or architecture.latent:
        raise UsageError(
            f"{architecture.name}: steps on this machine are known of what glassformer trains as a Transformer.",
            expected="A decoder, an encoder or both, without experts and latent attention.",
        )
    activation = activation or ("silu" if architecture.ff_matrices == 3 else "gelu")
    kernels = [kernel] if kernel else _kernels(architecture, length)[: 1 if compiled else None]
    tried = [
        _step(architecture, profile, batch, length, one, each, activation, rotary)
        for one in ([precision] if precision else PRECISIONS)
        for each in kernels
    ]
    if compiled:
        tried = [
            replace(one, attention=COMPILED * one.attention, elements=COMPILED * one.elements)
            for one in tried
        ]
    return min(tried, key=lambda found: found.total)


def _kernels(a: Architecture, length: int) -> list[str]:
    likely = "explicit" if length <= _SHORT_CONTEXT else "blocks" if a.kind == "decoder" else "fused"
    return [likely, "fused"]


def _step(
    a: Architecture, profile: Profile, batch: int, length: int, precision: Precision, kernel: str, activation: str,
    rotary: bool,
) -> StepTime:  # fmt: skip
    n = batch * length
    narrow = "fp32" if precision == "fp32" else "bf16"
    wide = "bf16" if precision == "bf16" else "fp32"
    grid = profile["products"][precision]
    products = sum(_product(grid, n, i, o) * times for i, o, times in _matrices(a))
    cross = a.layers if a.kind == "encoder-decoder" else 0
    attention = (a.all_layers + cross) * _attention(
        profile["attention"][narrow][kernel], batch * a.heads, length, a.head_width
    )
    curves = profile["elementwise"]

    def cost(name: str, numbers: float, at: str = narrow) -> float:
        return _curve(curves[at][name], numbers)

    layers, d = a.all_layers, n * a.width
    norms = a.norms * layers + cross + a.final_norm
    elements = norms * cost(a.norm, d, wide)
    elements += (2 * layers + cross) * cost("add" if wide == narrow else "add_other", d, wide)
    elements += layers * cost(activation, n * a.ff_width) if a.ff_width else 0.0
    elements += layers * cost("gate", 2 * n * a.ff_width) if a.ff_matrices == 3 else 0.0
    turned = n * (a.q_width + a.kv_width)
    elements += layers * (cost("rotate", n * a.q_width) + cost("rotate", n * a.kv_width)) if rotary else 0.0
    elements += layers * cost(a.norm, turned) if a.qk_norm else 0.0
    elements += cost("embedding", d, wide)
    passes = _PASSES * a.vocab * a.width * (4 if wide == "fp32" else 2) * 2
    elements += passes / profile["copy_bytes_per_second"]
    head = _head(grid, a, n)
    scores = n * a.vocab
    whole = scores <= LOGITS_AT_ONCE
    loss = head + (cost("loss", scores) if whole else scores * _rate(curves[narrow]["loss_chunked"]))
    return StepTime(
        products, attention, elements, loss, _update(profile["update"][wide], a), precision, kernel
    )


def _matrices(a: Architecture) -> Iterator[tuple[int, int, int]]:
    """(inputs, outputs, how often) of the products as ours are made: q, k and v are one, and the head is left out."""
    held: dict[str, tuple[int, int, int]] = {}
    for product in a.products():
        if product.part == "head" or not product.used:
            continue
        stack, _, last = product.name.rpartition(".")
        name = f"{stack}.qkv" if last in ("q", "kv") and stack != "cross" else product.name
        inputs, outputs, times = held.get(name, (product.inputs, 0, product.used))
        held[name] = inputs, outputs + product.outputs, times
    yield from held.values()


def _head(grid: Sequence[Sequence[float]], a: Architecture, n: int) -> float:
    """Scores and both gradients; in chunks where they are too many to be held at once."""
    if a.head != "tokens" or not a.vocab:
        return 0.0
    rows = max(1, min(n, LOGITS_AT_ONCE // a.vocab))
    return _product(grid, rows, a.width, a.vocab) * n / rows


def _product(grid: Sequence[Sequence[float]], rows: int, inputs: int, outputs: int) -> float:
    """Seconds of y = x W^T and both gradients: FLOPs over the rate, which is interpolated between the measured ones."""
    rates = {(int(r), int(i), int(o)): 6.0 * r * i * o / seconds for r, i, o, seconds in grid}
    axes = [sorted({key[axis] for key in rates}) for axis in range(3)]

    def rate(places: tuple[int, int, int]) -> float:
        """Measured; where a product was too large to be, the mean of the next smaller ones."""
        key = (axes[0][places[0]], axes[1][places[1]], axes[2][places[2]])
        if key in rates:
            return rates[key]
        smaller = [
            tuple(p - (axis == moved) for axis, p in enumerate(places)) for moved in range(3) if places[moved]
        ]
        return float(np.mean([rate(one) for one in smaller]))  # type: ignore[arg-type] # three places

    total = 0.0
    sides = [_between(axis, wanted) for axis, wanted in zip(axes, (rows, inputs, outputs), strict=True)]
    for i, a in sides[0]:
        for j, b in sides[1]:
            for k, c in sides[2]:
                if a * b * c:
                    total += a * b * c * math.log(rate((i, j, k)))
    return 6.0 * rows * inputs * outputs / math.exp(total)


def _between(axis: Sequence[int], wanted: float) -> list[tuple[int, float]]:
    """The two places around a size and their weights, by logarithms; outside, the nearest alone."""
    place = int(np.searchsorted(axis, wanted))
    if place == 0 or place == len(axis):
        return [(min(place, len(axis) - 1), 1.0)]
    share = math.log(wanted / axis[place - 1]) / math.log(axis[place] / axis[place - 1])
    return [(place - 1, 1 - share), (place, share)]


def _attention(points: Sequence[Sequence[float]], rows: int, length: int, width: int) -> float:
    """Seconds for `rows` (batch x heads): a line in rows at each measured length and width, then between those."""
    at: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for r, tokens, head, seconds in points:
        at.setdefault((int(tokens), int(head)), []).append((r, seconds))
    widths = sorted({head for _, head in at})
    found = []
    for head in widths:
        curve = [(tokens, _line(held, rows)) for (tokens, one), held in sorted(at.items()) if one == head]
        found.append(_curve(curve, length))
    if len(widths) == 1:
        return found[0]
    return _curve(list(zip(widths, found, strict=True)), width)


def _line(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """Through one point and nothing, or through two; never less than in proportion to the largest."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else y1 / x1
    return float(max(y0 + slope * (wanted - x0), 0.5 * y1 / x1 * wanted))


def _curve(points: Sequence[Sequence[float]], wanted: float) -> float:
    """Straight lines in logarithms; before the first point its value at most, beyond the last as the last two go."""
    xs, ys = zip(*sorted((x, y) for x, y in points), strict=True)
    if wanted <= xs[0]:
        return float(ys[0])
    for place in range(1, len(xs)):
        if wanted <= xs[place] or place == len(xs) - 1:
            slope = math.log(ys[place] / ys[place - 1]) / math.log(xs[place] / xs[place - 1])
            return float(ys[place - 1] * (wanted / xs[place - 1]) ** slope)
    return float(ys[0] * wanted / xs[0])


def _rate(points: Sequence[Sequence[float]]) -> float:
    """Seconds a number, at the largest size."""
    numbers, seconds = points[-1]
    return seconds / numbers


def _update(points: Sequence[Sequence[float]], a: Architecture) -> float:
    """A part for each tensor, and a part for each number that grows as memory does."""
    (few, least, first), (many, _, second) = points[:2]
    each = max(0.0, (second - first) / (many - few))
    tensors = sum(times for _, _, times in _matrices(a)) + a.norms * a.all_layers + 2
    numbers = a.parameters.total
    curve = [(least, first), *((count, seconds) for _, count, seconds in points[2:])]
    beyond = curve[-1]
    grown = _curve(curve, min(numbers, beyond[0])) * max(1.0, numbers / beyond[0])
    return grown + each * (tensors - few)
