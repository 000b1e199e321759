"""Which layers a pipeline stage holds, and how many numbers of them lie on one rank.

    layers of stage i     floor(L / p), and one more for the first L mod p stages
    numbers of a matrix   entries / t; k and v at most once a head; experts / (t x); norms and routers whole

Stage 0 also holds the embedding, the last the head; a tied head is a second copy of the embedding where p > 1.
An encoder-decoder's layers are in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.architecture import Architecture, Product
from glassformer.plan.layout import Layout, Number

Array = NDArray[Any]


class LayerKind(NamedTuple):
    """Layers that are alike, and the matrices of one."""

    name: str
    layers: int
    products: tuple[tuple[Product, float], ...]
    """(matrix, how many like it one layer holds)."""


class Held(NamedTuple):
    """Numbers on one rank of one stage, before any sharding."""

    layers: Array
    """Matrices of its layers without experts."""
    experts: Array
    outer: Array
    """Embedding, positions, head: in the layers of no stage but the first and last."""
    small: Array
    """Norms and biases."""
    layer: Array
    """The largest layer's matrices, experts among them."""

    @property
    def total(self) -> Array:
        return self.layers + self.experts + self.outer + self.small


def layer_kinds(a: Architecture) -> list[LayerKind]:
    """In the order in which they run."""
    if a.kind == "network":
        return [LayerKind("network", 1, tuple((one, 1.0) for one in a.products()))]
    plain = a.layers - a.expert_layers
    kinds = []
    for name, layers in (("encoder", a.encoder_layers), ("plain", plain), ("experts", a.expert_layers)):
        if layers:
            kinds.append(LayerKind(name, layers, tuple(_of_one_layer(a, name, layers))))
    return kinds


def _of_one_layer(a: Architecture, kind: str, layers: int) -> Iterator[tuple[Product, float]]:
    for product in a.products():
        begins, _, _ = product.name.partition(".")
        if product.part == "head" or (begins == "encoder") != (kind == "encoder"):
            continue
        if product.part == "attention":
            yield product, product.held / (a.encoder_layers if kind == "encoder" else a.layers)
        elif kind == "encoder" or (product.name.startswith("blocks.mlp") == (kind == "plain")):
            yield product, product.held / layers


def divided(product: Product, a: Architecture, layout: Layout) -> Number:
    """Among how many ranks a matrix is divided."""
    if product.name.endswith(("_down", "router")):
        return 1
    if product.name.endswith(".kv"):
        return np.minimum(layout.tensor, a.kv_heads)
    return layout.tensor * (layout.expert if product.part == "experts" else 1)


def layers_of(a: Architecture, layout: Layout, stage: Array) -> list[Array]:
    """How many of each kind's layers a stage holds."""
    kinds = layer_kinds(a)
    every = sum(kind.layers for kind in kinds)
    p, v = layout.pipeline, layout.interleave
    mine = every // p + (stage < every % p)
    begin = (stage * (every // p) + np.minimum(stage, every % p)) / v
    found, before, earlier = [], 0, np.zeros_like(mine, dtype=float)
    for kind in kinds:
        before += kind.layers
        whole = before * v // every  # of the interleaved parts, those that lie wholly before here
        up_to = whole * mine / v + np.clip(before - whole * every / v - begin, 0, mine / v) * (whole < v)
        found.append(up_to - earlier)
        earlier = up_to
    return found


def held(a: Architecture, layout: Layout, stage: Array) -> Held:
    """Numbers on one rank of `stage`."""
    kinds, counted = layer_kinds(a), a.parameters
    layers = experts = largest = np.zeros_like(stage, dtype=float)
    numbers = layers_of(a, layout, stage)
    for kind, n in zip(kinds, numbers, strict=True):
        plain = sum(
            one.entries * k / divided(one, a, layout) for one, k in kind.products if one.part != "experts"
        )
        routed = sum(
            one.entries * k / divided(one, a, layout) for one, k in kind.products if one.part == "experts"
        )
        layers, experts = layers + n * plain, experts + n * routed
        largest = np.maximum(largest, np.where(n > 0, plain + routed, 0))
    share = sum(numbers) / sum(kind.layers for kind in kinds)
    first, last = stage == 0, stage == layout.pipeline - 1
    table = a.vocab * a.width * (a.kind != "network") / np.asarray(layout.tensor)
    head = counted.head / np.asarray(layout.tensor) + np.where(
        (counted.head == 0) & (np.asarray(layout.pipeline) > 1), table, 0
    )
    outer = first * (table + counted.positions) + last * (head + counted.others)
    small = share * (counted.norms + counted.biases / np.asarray(layout.tensor))
    return Held(layers, experts, outer + 0.0 * stage, small, largest)


def in_flight(layout: Layout, micro_batches: Number, stage: Array, schedule: str) -> Array:
    """Micro-batches whose activations a stage keeps: min(M, p - i) in 1F1B, M in GPipe; interleaved, in parts of
    1 / v of its layers, 2 (p - i - 1) + (v - 1) p + 1 of them (2104.04473, Megatron's warm-up)."""
    p, v, m = layout.pipeline, layout.interleave, np.maximum(micro_batches, 1)
    if schedule == "gpipe":
        return m + 0.0 * stage
    parts = (2 * (p - stage - 1) + (v - 1) * p + 1) / v
    return np.minimum(m, np.where(np.asarray(v) > 1, parts, p - stage))


def worst_candidates(a: Architecture, layout: Layout) -> Array:
    """Stages one of which takes the most: the first, the last, and of each later kind of layers (in the part of the
    layers where it begins) the first stage that holds any and the first that holds nothing of the kind before. Between
    them layers and micro-batches in flight only grow fewer."""
    p, v = np.asarray(layout.pipeline), layout.interleave
    kinds = layer_kinds(a)
    every = sum(kind.layers for kind in kinds)
    each, long = every // p, every % p  # layers of a stage, and how many stages have one more
    places, before = [np.zeros_like(p), p - 1], 0
    for kind in kinds[:-1]:
        before += kind.layers
        left = before * v % every  # v times the layers of that part that are of the kinds before
        of_long = long * (each + 1)
        some = np.where(left < of_long, left // (each + 1), long + (left - of_long) // np.maximum(each, 1))
        places += [np.minimum(some + k, p - 1) for k in (0, 1)]
    return np.stack(np.broadcast_arrays(*places))
