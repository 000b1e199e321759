"""How far attention looks, measured on a text: the mean weight over the distance, layer by layer.

    weight(D)   mean over heads, and over the queries p that have a key at p - D, of pattern[p, p - D]
    even(D)     the same of an even spread: each query gives every key it may see the same weight
    distance    sum_k pattern[p, k] |p - k|, mean over heads and queries

D > 0 is a key before the query, D < 0 one after it, which only an encoder sees. Weights are means over those that
have such a key, so they need not sum to 1. A layer's patterns are summed up as they pass; none is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.reading import Reading
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import stacks

_SHOWN = 64
"""Distances that the picture shows at most."""


@dataclass(frozen=True, slots=True)
class LayerReach:
    """One layer's self-attention."""

    layer: str
    """Its block: `blocks.3`."""
    distances: range
    weights: Float[Tensor, "head distance"] = field(repr=False)
    even: Float[Tensor, " distance"] = field(repr=False)
    on_itself: float
    on_previous: float | None
    """None where the text is one token long."""
    on_first: float
    """The mean weight of each kind of key: the token itself, the one before, the first of the text (the sink)."""
    distance: float
    even_distance: float
    """The mean distance of what is looked at, and what it would be at an even spread."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Every layer's, of one text."""

    layers: tuple[LayerReach, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each layer: where its weight lies."""
        return [
            {
                "layer": one.layer, "on_itself": one.on_itself, "on_previous": one.on_previous,
                "on_first": one.on_first, "distance": one.distance, "even_distance": one.even_distance,
            }
            for one in self.layers
        ]  # fmt: skip

    def distance_rows(self) -> list[dict[str, Any]]:
        """layer, distance, weight (the mean over heads), even."""
        return [
            {"layer": one.layer, "distance": distance, "weight": weight, "even": even}
            for one in self.layers
            for distance, weight, even in zip(
                one.distances, one.weights.mean(0).tolist(), one.even.tolist(), strict=True
            )
        ]

    def chart(self) -> charts.Spec:
        """Layers x distances: how many times more weight than an even spread would give."""
        layers = [one.layer for one in self.layers]
        rows = self.distance_rows()
        seen = sorted({row["distance"] for row in rows if abs(row["distance"]) <= _SHOWN})
        cells = [
            {
                "distance": row["distance"] - seen[0],
                "layer": layers.index(row["layer"]),
                "times": _log2(row["weight"] / row["even"]),
            }
            for row in rows
            if abs(row["distance"]) <= _SHOWN
        ]
        return charts.heatmap(
            cells, "distance", "layer", "times", diverging=True, title="Where attention looks",
            labels=[str(distance) for distance in seen], y_labels=layers, size=(620, 40 + 18 * len(layers)),
            x_title="tokens from the query back to the key",
            value_title="log2 of weight / even",
        )  # fmt: skip


def reach(reading: Reading) -> Reach:
    """Run the reading once and sum up every self-attention of it."""
    config = reading.model.config
    if not isinstance(config, ModelConfig):
        raise UsageError("A plain network has no attention.")
    causal = {stack.name: stack.causal for stack in stacks(config)}
    summing = _Summing(causal)
    with torch.no_grad():
        reading.run(summing)
    return Reach(tuple(summing.found))


class _Summing:
    def __init__(self, causal: dict[str, bool]) -> None:
        self.causal = causal
        self.found: list[LayerReach] = []

    def wants(self, name: str) -> bool:
        return name.endswith(".attn.pattern")

    def __call__(self, name: str, pattern: Float[Tensor, "batch head query key"], /) -> Tensor:
        if self.wants(name):
            layer = name.removesuffix(".attn.pattern")
            causal = self.causal[layer.partition(".")[0]]
            self.found.append(_summed(layer, pattern.detach().double().mean(0), causal))
        return pattern


def _summed(layer: str, pattern: Float[Tensor, "head query key"], causal: bool) -> LayerReach:
    length = pattern.shape[-1]
    place = torch.arange(length, device=pattern.device)
    distance = place[:, None] - place[None, :]
    able = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    even = able / able.sum(-1, keepdim=True, dtype=torch.float64)
    first = 0 if causal else 1 - length
    weights = _by_distance(torch.cat([pattern, even[None]]), distance, able, first)
    far = distance.abs()
    return LayerReach(
        layer, range(first, length), weights[:-1].cpu(), weights[-1].cpu(),
        float(pattern.diagonal(dim1=1, dim2=2).mean()),
        float(pattern.diagonal(-1, 1, 2).mean()) if length > 1 else None,
        float(pattern[..., 0].mean()),
        float((pattern * far).sum(-1).mean()), float((even * far).sum(-1).mean()),
    )  # fmt: skip


def _by_distance(
    weights: Float[Tensor, "head query key"], distance: Tensor, able: Tensor, first: int
) -> Float[Tensor, "head distance"]:
    """The mean along each diagonal."""
    index = (distance - first)[able]
    count = torch.bincount(index)
    total = weights.new_zeros(len(weights), len(count)).index_add_(1, index, weights[:, able])
    return total / count


def _log2(x: float) -> float | None:
    return torch.tensor(x).log2().item() if x > 0 else None
