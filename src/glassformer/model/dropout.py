"""Dropout (Srivastava et al. 2014): each number is dropped with probability p, the rest grow by 1 / (1 - p).

    y = x * keep / (1 - p),   keep = [u >= p], u uniform

On a CPU torch draws one random number for each entry, by one thread, which took a quarter of a training step. Here
one draw of 64 bits decides about four entries, of 16 bits each, so p is rounded to a multiple of 1 / 65536. The draw
is an operation of its own, which a compiler leaves as it is: compiled and eager steps drop the same entries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 2**16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with entries dropped while training; elsewhere and with p = 0, `x` itself."""
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p, training)
    dropped = round(p * _STEPS)
    y: Tensor = x * _kept(x.shape, dropped) * (_STEPS / (_STEPS - dropped))
    return y


@torch.library.custom_op(
    "glassformer::kept", mutates_args=(), schema="(SymInt[] shape, int dropped) -> Tensor"
)
def _kept(shape: list[int], dropped: int) -> Tensor:
    """True for each entry that stays, drawn from torch's generator."""
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept: Tensor = bits.view(torch.int16)[:count] >= dropped - _STEPS // 2
    return kept.view(shape)


@_kept.register_fake
def _kept_shape(shape: list[int], dropped: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bool)
