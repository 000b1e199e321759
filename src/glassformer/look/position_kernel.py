"""The numbers of positions.py, measured: what a table's rows or RoPE's turns say of two places D apart.

    table   the mean over p of cos(PE[p], PE[p + D]); beside it the largest difference of sinusoids from their formula
    rope    the mean over p, and over v of length 1, of R(p) v . R(p - D) v; beside it how far places p differ

The formula's sinusoids are written once more here, entry by entry in float64, so that the model's own code is held
against something else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.look.reading import Reading
from glassformer.model.config import ModelConfig
from glassformer.model.positions import rotate
from glassformer.model.transformer import Transformer
from glassformer.seeds import generator

_VECTORS, _PLACES = 64, 8
"""Random vectors, and places of each offset, that the kernel of rope is measured with."""


def added(module: Transformer) -> dict[str, Any]:
    """Of a table that is added."""
    learned = module.positions is not None
    table = (module.table if module.positions is None else module.positions.weight).detach().cpu()
    offsets = _offsets(len(table))
    unit = F.normalize(table.double(), dim=-1)
    kernel = [float((unit[: len(unit) - D] * unit[D:]).sum(-1).mean()) for D in offsets.tolist()]
    off = None if learned else float((table.double() - _formula(module.config)).abs().max())
    return {"table": table, "offsets": offsets, "kernel": torch.tensor(kernel), "deviation": off}


def _formula(config: ModelConfig) -> Float[Tensor, "context width"]:
    """The sinusoids entry by entry in float64, apart from the model's own code."""
    table = torch.zeros(config.context, config.width, dtype=torch.float64)
    place = np.arange(config.context, dtype=np.float64)
    for rate, (sine, cosine) in pairs(config):
        table[:, sine] = torch.from_numpy(np.sin(place * rate))
        if cosine < config.width:
            table[:, cosine] = torch.from_numpy(np.cos(place * rate))
    return table


def rope(module: Transformer, seed: int) -> dict[str, Any]:
    """Of turns, with random vectors that `seed` draws."""
    config, turn = module.config, module.turn.cpu()
    offsets = _offsets(turn.shape[1])
    drawn = generator(seed, "positions").standard_normal((2, _VECTORS, config.head_width)).astype(np.float32)
    q, k = F.normalize(torch.from_numpy(drawn), dim=-1)
    _, deviation = _dots(q, k, turn, offsets)
    kernel, again = _dots(q, q, turn, offsets)
    rates = torch.tensor([rate for rate, _ in pairs(config)], dtype=torch.float64)
    angles = torch.arange(config.context, dtype=torch.float64)[:, None] * rates
    return {
        "angles": angles, "offsets": offsets, "kernel": kernel.mean(0), "deviation": max(deviation, again)
    }  # fmt: skip


def _dots(
    q: Float[Tensor, "vector size"],
    k: Float[Tensor, "vector size"],
    turn: Float[Tensor, "2 context half"],
    offsets: Int[Tensor, " offset"],
) -> tuple[Float[Tensor, "vector offset"], float]:
    """R(p) q . R(p - D) k for each offset D, and the largest difference between several places p."""
    most = turn.shape[1] - 1 - offsets
    key = (torch.linspace(0, 1, _PLACES)[:, None] * most).long()  # (place, offset)
    dots = []
    for one, other in zip(q, k, strict=True):  # one at a time: the turned copies take little memory
        turned = [
            rotate(vector.expand(1, 1, at.numel(), -1), turn[:, at.flatten()])[0, 0]
            for vector, at in ((one, key + offsets), (other, key))
        ]
        dots.append((turned[0] * turned[1]).sum(-1).view(key.shape))
    found = torch.stack(dots)  # (vector, place, offset)
    return found.mean(1), float((found.amax(1) - found.amin(1)).max())


def own(reading: Reading, module: Transformer, offsets: Int[Tensor, " offset"]) -> dict[str, Any]:
    """The mean over all queries and keys of q . R(-D) k, all of length 1, is that of their means."""
    means = _Means(module)
    reading.run(means)
    turn = module.turn.float().cpu()
    found, worst = {}, 0.0
    for layer, (q, k) in means.found.items():
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        dots, deviation = _dots(F.normalize(q, dim=-1), F.normalize(k, dim=-1), turn, offsets)
        found[layer] = dots * (q.norm(dim=-1) * k.norm(dim=-1))[:, None]
        worst = max(worst, deviation)
    return {"own": found, "own_deviation": worst}


class _Means:
    """The mean query and key of each head, each query and key first brought to length 1, before they are turned."""

    def __init__(self, module: Transformer) -> None:
        self.module = module
        self.found: dict[str, list[Float[Tensor, "head size"]]] = {}

    def wants(self, name: str) -> bool:
        return name.endswith((".attn.q", ".attn.k"))

    def __call__(self, name: str, y: Float[Tensor, "batch position head size"], /) -> Tensor:
        if self.wants(name):
            layer, _, which = name.rpartition(".attn.")
            norm = getattr(self.module.get_submodule(f"{layer}.attn"), f"{which}_norm")
            met = y if norm is None else norm(y)
            mean = F.normalize(met.detach().float(), dim=-1).mean((0, 1)).cpu()
            self.found.setdefault(layer, []).append(mean)  # q comes before k
        return y


def pairs(config: ModelConfig) -> list[tuple[float, tuple[int, int]]]:
    """Radians a token, and which two entries belong together. The last pair of an odd width is a sine alone."""
    if config.positions == "rope":
        size, half = config.rotary_width, config.rotary_width // 2
        return [(config.rope_base ** (-2 * i / size), (i, i + half)) for i in range(half)]
    if not config.positions.startswith("sinusoidal"):
        return []
    num = -(-config.width // 2)
    halves = config.positions == "sinusoidal_halves"
    return [
        (10000.0 ** (-2 * i / config.width), (i, i + num) if halves else (2 * i, 2 * i + 1))
        for i in range(num)
    ]


def _offsets(context: int) -> Int[Tensor, " offset"]:
    """All small ones, and evenly spaced ones up to the context."""
    return torch.tensor(sorted({*range(min(context, 64)), *spread(context, 192)}))


def spread(count: int, most: int) -> list[int]:
    """Evenly spaced numbers below `count`, at most `most` of them."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})
