"""How a model knows the order of its tokens.

sinusoidal   PE[p, 2i] = sin(p / 10000^(2i/d)), PE[p, 2i+1] = cos(...), added to the embedding
             (Vaswani et al. 2017); sinusoidal_halves: all sines first, then all cosines (Marian)
learned      one vector for each position, added to the embedding (GPT-2)
rope         each pair of a query's and key's entries turns by the angle p * base^(-2i/d_head),
             so that q . k depends on the distance alone (Su et al. 2021)
alibi        q . k minus slope * distance, one slope a head: 2^(-8h/H) (Press et al. 2022)
none         the causal mask alone tells the order
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoids(context: int, width: int, *, halves: bool = False) -> Float[Tensor, "context width"]:
    """The table PE of the 2017 paper, sines at even and cosines at odd entries; or sines, then cosines."""
    position = torch.arange(context, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.zeros(context, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1).float() if halves else table.float()


def rotations(context: int, head_size: int, base: float) -> Float[Tensor, "2 context half"]:
    """Cosines and sines of every position's angles; `half` is head_size / 2 pairs."""
    rate = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.arange(context, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(
    x: Float[Tensor, "batch head position head_size"], turn: Float[Tensor, "2 position half"]
) -> Float[Tensor, "batch head position head_size"]:
    """Turn the pairs (x[i], x[i + half]) by the position's angles; entries from 2 half on stay as they are."""
    cos, sin = turn.to(x.dtype)
    if 2 * cos.shape[-1] < x.shape[-1]:  # rotary_fraction below 1
        x, rest = x.tensor_split([2 * cos.shape[-1]], dim=-1)
        return torch.cat([rotate(x, turn), rest], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def alibi_slopes(heads: int) -> Float[Tensor, " heads"]:
    """2^(-8h/H) for h = 1..H; where H is no power of two, every other slope of the next power fills in."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-4 * (2 * h + 1) / power) for h in range(heads - power)]
    return torch.tensor(slopes)
