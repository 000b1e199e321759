"""Causal attention a block of queries at a time, forward and backward written out.

Whole scores for a row of T tokens take T^2 numbers a head, half of them masked. Here each block of queries
meets only the keys up to its own end, and nothing of size T^2 is kept: the backward pass computes the scores
again from q, k and each query's log-sum-exp (the idea of Dao et al. 2022, FlashAttention, with products large
enough for a CPU's own library). With s = q k^T / sqrt(d_head), p = softmax(s), z = p v:

    dv = p^T dz        dp = dz v^T        ds = p * (dp - sum(dz * z))        dq = ds k        dk = ds^T q
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "batch head position head_size"]


def causal_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(q k^T / sqrt(d_head), causal) v for queries and keys of the same positions, with gradients."""
    z: Tensor = _Blockwise.apply(q * q.shape[-1] ** -0.5, k, v)  # type: ignore[no-untyped-call]
    return z


class _Blockwise(torch.autograd.Function):
    """q comes already scaled."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        blocks, sums = [], []
        for rows, keys in _blocks(q.shape[2]):
            scores = _scores(q[:, :, rows], k[:, :, keys])
            sums.append(scores.logsumexp(-1, keepdim=True))
            blocks.append((scores - sums[-1]).exp().to(v.dtype) @ v[:, :, keys])
        z, lse = torch.cat(blocks, dim=2), torch.cat(sums, dim=2)
        ctx.save_for_backward(q, k, v, z, lse)
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (dz,) = grads
        q, k, v, z, lse = ctx.saved_tensors
        dot = (dz.to(lse.dtype) * z).sum(-1, keepdim=True)
        dk, dv = torch.zeros_like(k, dtype=lse.dtype), torch.zeros_like(v, dtype=lse.dtype)
        dq = []
        for rows, keys in _blocks(q.shape[2]):
            pattern = (_scores(q[:, :, rows], k[:, :, keys]) - lse[:, :, rows]).exp()
            dv[:, :, keys] += pattern.to(q.dtype).transpose(-2, -1) @ dz[:, :, rows]
            dpattern = dz[:, :, rows] @ v[:, :, keys].transpose(-2, -1)
            dscores = (pattern * (dpattern - dot[:, :, rows])).to(q.dtype)
            dq.append(dscores @ k[:, :, keys])
            dk[:, :, keys] += dscores.transpose(-2, -1) @ q[:, :, rows]
        return torch.cat(dq, dim=2), dk.to(k.dtype), dv.to(v.dtype)


def _blocks(length: int) -> Iterator[tuple[slice, slice]]:
    """Each block of queries, and the keys it may look at: large enough for fast products, small enough to
    skip most of the masked half."""
    size = max(128, length // 4)
    for start in range(0, length, size):
        end = min(start + size, length)
        yield slice(start, end), slice(end)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T, at least in float32, with what lies after each query at -inf."""
    products = q @ k.transpose(-2, -1)
    wide = products if products.dtype == torch.float64 else products.float()
    rows, keys = q.shape[2], k.shape[2]
    later = torch.ones(rows, keys, dtype=torch.bool, device=q.device).triu(keys - rows + 1)
    return wide.masked_fill(later, -math.inf)
