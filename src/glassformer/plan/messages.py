"""What the ranks send each other in a step, in seconds at the full speed of their links (volumes: plan.md 3.4).

With whole = a b s d / c bytes of activations, held layers of a stage, and rings as in `collectives`:

    tensor      4 all-reduces of `whole` a layer and micro-batch, 2 more where layers are computed again; or as many
                pairs of gather and scatter, which are the same bytes
    context     k and v of each layer around the ranks, forward once and backward twice
    expert      tokens to their experts and back, forward and backward; out of the domain once for each domain
    pipeline    `whole` / t, forward and backward, at each boundary of each part
    data        ZeRO-0, 1, 2: gradients scattered and weights gathered once a step, an all-reduce in all;
                ZeRO-3: weights gathered twice and gradients scattered once a micro-batch, or once a step in a pipeline

Ranks lie in the order tensor, context, data, pipeline, as in Megatron-LM: tensor ranks are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glassformer.plan.architecture import Architecture
from glassformer.plan.collectives import (
    LATENCY,
    all_gather_bytes,
    all_reduce_bytes,
    exchange_seconds,
    ring_bandwidth,
)
from glassformer.plan.layout import Job, Number
from glassformer.plan.share import Array, Share

RING_HOP = 3e-6
"""Seconds a rank adds to a gather or scatter, which goes around the whole ring."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Seconds of a micro-batch on the busiest rank; `reduce` of a step."""

    tensor: Number
    tensor_latency: Number
    context: Number
    expert: Number
    """Inside domains."""
    expert_out: Number
    """Between domains."""
    pipeline: Number
    gather: Number
    """Weights gathered and gradients scattered for each micro-batch (ZeRO-3)."""
    reduce: Number
    """Gradients and weights, once a step."""


def messages(job: Job, s: Share) -> Messages:
    """Of one job, or of all its layouts at once."""
    a, x = job.architecture, job.accelerator
    wide = job.precision.activation
    whole = wide * _stream(job, s) * a.width
    reduces = s.held * (4.0 + 2.0 * s.again)
    total = s.accelerators
    kv = 2.0 * wide * s.tokens * (a.q_width if a.latent else a.kv_width)
    inside, outside = exchange_seconds(x, wide * s.tokens / s.tensor * a.width, a.active, s.expert)
    routes = s.part * a.expert_layers * (4.0 + 2.0 * s.again)
    crosses = (s.tensor * s.context * s.data >= x.domain) & (total > x.domain)
    boundary = np.where(crosses, x.scale_out or x.scale_up, x.scale_up)
    gather, reduce = _of_replicas(job, s)
    return Messages(
        tensor=reduces * all_reduce_bytes(whole, s.tensor) / ring_bandwidth(x, s.tensor, 1, total),
        tensor_latency=np.where(s.tensor > 1, reduces * LATENCY, 0.0),
        context=s.held * (3.0 + s.again) * kv / s.tensor * (s.context - 1.0)
        / ring_bandwidth(x, s.context, s.tensor, total),
        expert=routes * inside, expert_out=routes * outside,
        pipeline=np.where(s.pipeline > 1, 2.0 * s.interleave * whole / s.tensor / boundary, 0.0),
        gather=gather, reduce=reduce,
    )  # fmt: skip


def parameters_held(a: Architecture, s: Share) -> tuple[Array, Array]:
    """Of the busiest rank: outside experts, and in them."""
    counted = a.parameters
    ends = counted.embedding + counted.head
    inner = (counted.total - counted.experts - ends) / (s.tensor * s.pipeline)
    last = np.where(s.pipeline > 1, max(counted.embedding, counted.head), ends) / s.tensor
    return inner + last, counted.experts / (s.pipeline * s.expert)


def _stream(job: Job, s: Share) -> Array:
    """Tokens that a layer passes on, on average: an encoder-decoder's layers see both rows, and its decoder sums once
    more, after the cross-attention."""
    a = job.architecture
    if not a.encoder_layers:
        return s.tokens
    return (a.encoder_layers * s.read + 1.5 * a.layers * s.tokens) / a.all_layers


def _of_replicas(job: Job, s: Share) -> tuple[Array, Array]:
    """Seconds of a micro-batch with ZeRO-3, and of a step without."""
    a, x, lay = job.architecture, job.accelerator, job.layout
    ranks, total = s.data * s.context, s.accelerators
    expert_ranks = np.maximum(1.0, ranks / s.expert)
    ring = ring_bandwidth(x, ranks, s.tensor, total)
    expert_ring = ring_bandwidth(x, expert_ranks, s.tensor * s.expert, total)
    dense, experts = parameters_held(a, s)
    around = all_gather_bytes(dense, ranks) / ring + all_gather_bytes(experts, expert_ranks) / expert_ring
    # weights of 8-bit products travel as 8 bits
    weight = min(job.precision.weight, 1.0 if job.precision.peak in ("fp8", "fp4") else 4.0)
    trained = (job.trained or 0) / a.parameters.total if s.frozen else 1.0
    update = around * ((job.precision.gradient + weight) if not s.frozen else 4.0 * trained)
    gather = around * (2.0 * weight + (0.0 if s.frozen else min(4.0, job.precision.gradient)))
    if job.software.engine == "deepspeed" and job.software.year < 2022.5:
        # its first stage 3 drove one link at a time: 21 of 25 GB/s (2104.04473, table 2: 1536 and 2240 A100)
        gather = gather * np.maximum(1.0, ring / x.scale_out)
    gather = gather + s.held * 3.0 * RING_HOP * (ranks - 1)
    # in a pipeline a stage's weights stay gathered over the micro-batches of a step (2407.21783, 3.3.2)
    each_time = (np.asarray(lay.sharding) >= 3) & (s.pipeline == 1)
    return np.where(each_time, gather, 0.0), np.where(each_time, 0.0, update)
