"""What a step asks of the busiest accelerator, at full speed: the seconds that its work would take at 100 % of what
the hardware can do. `steptime` divides by the shares that are reached; here is nothing fitted.

Every number is for one micro-batch on one pipeline stage, forward and backward, unless said. T tokens are b s / c.

    products      2 m n k, three times a matrix (forward, both gradients), at the achievable peak, with the wave
                  quantisation of `shapes`; twice where weights are frozen; once more where layers are recomputed
    pattern       q k^T and pattern v: forward once, backward 2.5 times with a fused kernel (2205.14135), else 2
    scores        exponentials and scaling of the pattern, on the vector units
    elements      bytes of norms, residuals, activations, rotary, and of patterns that are not fused
    casts         bytes that turning 16-bit numbers into 8-bit ones moves
    messages      bytes on the wire (`collectives`), over the links that they use
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from glassformer.plan.architecture import Architecture, Product
from glassformer.plan.collectives import (
    LATENCY,
    all_gather_bytes,
    all_reduce_bytes,
    exchange_seconds,
    ring_bandwidth,
)
from glassformer.plan.flops import forward
from glassformer.plan.layout import Job, Number, Recompute
from glassformer.plan.shapes import misaligned, quantised

LOGIT_BYTES = 24.0
"""Moved for each logit: written, read for the loss in 32 bits, its gradient written and read twice."""
UNFUSED_BYTES = 15.0
"""Moved forward for each score of a pattern that is written to memory: scores, softmax, dropout, each read again."""

HOST_BANDWIDTH = 25e9
"""Bytes a second of the host's memory for each accelerator: eight share about 400 GB/s, half of it reached."""
RING_HOP = 3e-6
"""Seconds a rank adds to a gather or scatter, which goes around the whole ring."""


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds at full speed; each may be an array."""

    micro_batches: Number
    """M."""
    fill: Number
    """Micro-batches' worth of waiting in the pipeline: (p - 1) / v."""
    products: Number
    whole: Number
    """Products' seconds without the quantisation of waves and tiles."""
    low: Number
    """1 where products are computed in 8 bits, 2 in 4, else 0."""
    product_bytes: Number
    shallow: Number
    """Products' seconds over a thousandth of the length of their sums: what filling and emptying a tile costs."""
    misaligned: Number
    """Products' seconds, weighed with how far sizes are from what tensor cores load at once."""
    pattern: Number
    pattern_misaligned: Number
    """Pattern's seconds where it is not fused and 8 does not divide a head's width: no tensor core takes it."""
    scores: Number
    elements: Number
    casts: Number
    accumulated: Number
    """Bytes of gradients added to those of the micro-batches before."""
    kernels: Number
    """Layer passes that are launched: of one micro-batch, one for each layer forward, two backward."""
    again: Number
    """Share of the above that is recomputation."""
    head: Number
    head_bytes: Number
    head_waits: Number
    """Share of the head's time that other stages wait for."""
    tensor: Number
    tensor_latency: Number
    context: Number
    expert: Number
    """Tokens on their way to experts and back, inside domains."""
    expert_out: Number
    """The same, between domains."""
    expert_bytes: Number
    """Sorting tokens to experts and back."""
    expert_layers: Number
    """Passes of layers with experts that are launched."""
    local_experts: Number
    """The same, times the experts that a rank holds in each."""
    pipeline: Number
    gather: Number
    """Weights gathered for each micro-batch and gradients scattered (ZeRO-3)."""
    reduce: Number
    """Gradients and weights exchanged once a step."""
    optimizer: Number
    """Once a step."""
    accelerators: Number
    imbalance: Number
    """Layers of the busiest stage over the mean."""
    year: Number
    """Of the software."""
    ported: Number
    """1 where attention runs kernels of the generation before."""
    biased: Number
    """1 where attention adds a bias to its scores."""
    ring: Number
    """c - 1 where attention goes around context ranks step by step."""
    single: Number
    """1 where norms, activations and residuals are not fused."""
    tensor_overlap: Number
    watts: Number
    """Of power for each TFLOP/s of the 16-bit peak: what little there is makes the clock fall."""
    deepspeed: Number
    """1 in its pipeline."""
    hides: Number
    """1 where the exchanges of replicas run under the computation."""

    def each(self) -> dict[str, Number]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def work(job: Job) -> Work:
    """Of one job, or of all its layouts at once."""
    a, x, lay = job.architecture, job.accelerator, job.layout
    t, p, c = (np.asarray(n, float) for n in (lay.tensor, lay.pipeline, lay.context))
    v = np.asarray(lay.interleave, float)
    n_dp, ep, b = (np.asarray(n, float) for n in (lay.data, lay.expert, lay.micro_batch))
    layers = float(a.all_layers if a.kind != "network" else len(a.widths) - 1)
    parts = p * v
    held = np.ceil(layers / parts) * v
    # where layers do not divide, the embedding and the head are given a layer's place each
    uneven = np.mod(layers, parts) > 0
    held = np.where(uneven, (layers + 2) / p, held)
    share = held / layers
    micro = np.maximum(job.micro_batches, 1e-9)
    tokens = b * job.length / c
    read = b * (job.read_length or job.length) / c
    memory = x.bandwidth
    sixteen = _achievable(job, _sixteen(job))
    own = _achievable(job, job.precision.peak)
    mode, operations = np.asarray(lay.recompute), job.software.selective == "operations"
    again = np.where(mode == Recompute.FULL, 1.0, 0.5 * (mode == Recompute.SELECTIVE) * operations)
    frozen = job.trained is not None
    passes = (2.0 if frozen else 3.0) + again

    products, whole, shallow, product_bytes, odd, fed = (0.0 for _ in range(6))
    casts: Number = 0.0
    for one in a.products():
        if one.part == "head":
            continue
        many = read if one.tokens == "read" else tokens
        m, n, k, copies = _sides(one, a, many, t, ep)
        seconds = copies * 2.0 * m * n * k / own
        whole = whole + seconds
        products = products + seconds / quantised(m, n, x.name)
        sums = (1.0 / k + 1.0 / n + 1.0 / m) / 3.0  # forward, and the gradients of inputs and weights
        shallow = shallow + seconds * 1000.0 * sums
        odd = odd + seconds * misaligned(n, k)
        product_bytes = product_bytes + copies * (m * k + m * n + n * k) * job.precision.activation
        fed = fed + many * one.used * (one.inputs + one.outputs) / t
    if job.precision.peak in ("fp8", "fp4"):
        casts = fed * 4.0 * passes / 3.0
    pattern, scores, unfused, head_width = _pattern(job, tokens, t)
    fused = job.fused_attention
    pattern_passes = (3.5 if fused else 3.0) + again
    selective = np.where(mode == Recompute.SELECTIVE, 0.0 if fused or operations else 1.0, 0.0)
    pattern_passes = pattern_passes + selective
    pattern = pattern / sixteen * pattern_passes
    elements = _elements(job, tokens, read, t) * (3.0 + again) + unfused * pattern_passes

    head = 2.0 * a.width * a.vocab * tokens / t if a.kind != "network" else 0.0 * tokens
    logits = tokens * a.vocab / t if a.kind != "network" else 0.0 * tokens
    held_parameters = _held(a, t, p, ep)
    dense, of_experts = held_parameters
    each = 2.0 * job.precision.gradient + (6.0 if job.software.engine == "deepspeed" else 0.0)
    added = np.where(micro > 1.0, each * (dense + of_experts), 0.0) * (not frozen)
    expert_layers = float(a.expert_layers)

    sent = _messages(job, tokens, t, p, c, v, ep, n_dp, held, again, held_parameters)
    return Work(
        micro_batches=micro, fill=(p - 1) / v, products=products * passes * share, whole=whole * passes * share,
        shallow=shallow * passes * share,
        low=0.0 * micro + {"fp8": 1.0, "fp4": 2.0}.get(job.precision.peak, 0.0),
        product_bytes=product_bytes * passes * share / memory, misaligned=odd * passes * share,
        pattern=pattern * share, pattern_misaligned=0.0 * micro if fused else pattern * share * float(head_width % 8 > 0),
        scores=scores * pattern_passes * share / (x.peaks.get("fp32", x.peak(_sixteen(job)) / 16)),
        elements=elements * share / memory, casts=casts * share / memory, accumulated=added / memory, kernels=held * (3.0 + again) * (not job.software.graphs),
        again=again / (3.0 + again),
        head=head * (2.0 if frozen else 3.0) / sixteen / quantised(tokens, a.vocab / t, x.name),
        head_bytes=logits * LOGIT_BYTES / memory, head_waits=np.where(uneven, 0.0, 1.0),
        optimizer=_optimizer_bytes(job, held_parameters, n_dp * c) / memory,
        accelerators=n_dp * t * p * c, imbalance=held * p / layers,
        expert_bytes=12.0 * job.precision.activation * tokens * a.active * a.width / t * expert_layers * share / memory,
        expert_layers=expert_layers / layers * held * (3.0 + again) * (not job.software.graphs),
        local_experts=expert_layers / layers * held * (3.0 + again) * a.experts / ep
        * (not job.software.graphs) * (not job.software.fixed_capacity),
        year=job.software.year, ported=float(not job.software.native_attention),
        ring=(c - 1.0) * (job.software.engine == "torch"), biased=float(job.software.biased_attention), single=float(not job.software.fused_kernels), tensor_overlap=float(job.software.tensor_overlap),
        watts=(x.power or 7e-13 * x.peak(_sixteen(job))) / x.peak(_sixteen(job)) * 1e12,
        hides=float(job.software.engine != "jax" or job.software.year >= 2024.0),
        deepspeed=(p > 1.0) * (job.software.engine == "deepspeed"), **sent,
    )  # fmt: skip


def _sixteen(job: Job) -> str:
    """The peak of what is never computed in 8 bits: pattern and head."""
    peak = job.precision.peak
    return "bf16" if peak in ("fp8", "fp4") else peak


def _achievable(job: Job, name: str) -> float:
    """FLOP/s that the best products reach."""
    x = job.accelerator
    share = x.achievable.get(name) or x.achievable.get("bf16") or 0.8
    return x.peak(name) * share


def _sides(
    one: Product, a: Architecture, tokens: Number, t: Number, ep: Number
) -> tuple[Number, Number, Number, Number]:
    """m, n, k of one product on one rank, and how many like it the rank computes."""
    if one.part == "experts":
        m = np.maximum(1.0, tokens / t * a.active * ep / a.experts)
        return m, float(one.outputs), float(one.inputs), one.held / ep
    narrow = one.name.endswith((".out", ".down"))
    n, k = (one.outputs, one.inputs / t) if narrow else (one.outputs / t, one.inputs)
    return 1.0 * tokens, 1.0 * n, 1.0 * k, 1.0 * one.used


def _pattern(job: Job, tokens: Number, t: Number) -> tuple[Number, Number, Number, float]:
    """FLOPs and scores of one forward pass, bytes where it is not fused, and the width of a head."""
    a = job.architecture
    if a.kind == "network":
        return 0.0 * tokens, 0.0 * tokens, 0.0 * tokens, 64.0
    half = job.causal_half and job.fused_attention
    one = forward(a, job.length, read_length=job.read_length, convention="causal" if half else "full").pattern
    value = a.latent.value_width if a.latent else a.head_width
    scores = one / (2.0 * (a.head_width + value))
    unfused = 0.0 if job.fused_attention else UNFUSED_BYTES * scores
    return one * tokens / t, scores * tokens / t, unfused * tokens / t, float(a.head_width)


def _elements(job: Job, tokens: Number, read: Number, t: Number) -> Number:
    """Bytes of one forward pass outside products and patterns."""
    a = job.architecture
    if a.kind == "network":
        return tokens * sum(a.widths) * 2.0 * job.precision.activation
    divided = np.where(np.asarray(job.layout.sequence_parallel) > 0, t, 1.0)
    block = 9.0 * a.width / divided + 2.0 * (a.q_width + a.kv_width) / t
    cross = 5.0 * a.width / divided if a.encoder_layers else 0.0
    dense = a.ff_matrices * a.ff_width
    sparse = a.ff_matrices * a.expert_width * (a.active + a.shared_experts)
    hidden = dense * (a.layers - a.expert_layers) + sparse * a.expert_layers
    written = tokens * (a.layers * (block + cross) + hidden / t)
    reads = read * a.encoder_layers * (block + dense / t)
    return (written + reads) * job.precision.activation


def _held(a: Architecture, t: Number, p: Number, ep: Number) -> tuple[Number, Number]:
    """Parameters of the busiest rank outside experts, and in them."""
    counted = a.parameters
    ends = (counted.embedding + counted.head) / t
    inner = (counted.total - counted.experts - counted.embedding - counted.head) / (t * p)
    last = np.where(np.asarray(p) > 1, max(counted.embedding, counted.head) / t, ends)
    return inner + last, counted.experts / (p * ep)


def _optimizer_bytes(job: Job, held: tuple[Number, Number], ranks: Number) -> Number:
    """Read and written by one update: gradient, master and moments, and the weights that follow.

    Where it happens in the host's memory, its bytes count as often as that is slower than the accelerator's.
    """
    if job.trained is not None:
        return 32.0 * job.trained / (np.asarray(job.layout.tensor) * job.layout.pipeline)
    each = (
        2 * (job.precision.gradient + job.precision.master + 2 * job.precision.moment) + job.precision.weight
    )
    dense, experts = held
    divided = np.where(np.asarray(job.layout.sharding) >= 1, ranks, 1.0)
    expert_ranks = np.maximum(1.0, divided / np.asarray(job.layout.expert, float))
    slower = job.accelerator.bandwidth / HOST_BANDWIDTH if job.software.offload_optimizer else 1.0
    return each * slower * (dense / divided + experts / expert_ranks)


def _messages(
    job: Job,
    tokens: Number,
    t: Number,
    p: Number,
    c: Number,
    v: Number,
    ep: Number,
    n_dp: Number,
    held: Number,
    again: Number,
    parameters: tuple[Number, Number],
) -> dict[str, Number]:
    """Seconds of each kind of communication (reference: plan.md 3.4 for the volumes)."""
    a, x, lay = job.architecture, job.accelerator, job.layout
    wide = job.precision.activation
    # an encoder-decoder's layers see both rows, and its decoder sums once more for the cross-attention
    read = tokens * ((job.read_length or job.length) / job.length)
    stream = (a.encoder_layers * read + a.layers * tokens * (1.5 if a.encoder_layers else 1.0)) / max(
        1, a.all_layers
    )
    whole = wide * stream * a.width
    frozen = job.trained is not None
    reduces = held * (4.0 + 2.0 * again)
    kv = 2.0 * wide * tokens * (a.kv_width if not a.latent else a.q_width)
    routed, routed_out = exchange_seconds(x, wide * tokens / t * a.width, a.active, ep)
    expert_layers = held * a.expert_layers / max(1, a.all_layers)
    ranks = n_dp * c
    sharding = np.asarray(lay.sharding)
    total = n_dp * t * p * c
    ring = ring_bandwidth(x, ranks, t, total)
    dense, experts = parameters
    expert_ring = ring_bandwidth(x, np.maximum(1, ranks / ep), t * ep, total)
    # weights of 8-bit products travel as 8 bits
    weight = min(job.precision.weight, 1.0 if job.precision.peak in ("fp8", "fp4") else 4.0)
    moved = 4.0 if frozen else job.precision.gradient + weight
    update = moved * all_gather_bytes(dense, ranks) / ring
    update = update + moved * all_gather_bytes(experts, np.maximum(1, ranks / ep)) / expert_ring
    if frozen:
        update = update * min(1.0, (job.trained or 0) / a.parameters.total)
    gathers = 2.0 * weight + (0.0 if frozen else min(4.0, job.precision.gradient))
    weights = gathers * all_gather_bytes(dense, ranks) / ring
    weights = weights + gathers * all_gather_bytes(experts, np.maximum(1, ranks / ep)) / expert_ring
    if job.software.engine == "deepspeed" and job.software.year < 2022.5:
        # its first stage 3 drove one link at a time: 21 of 25 GB/s (2104.04473, table 2: 1536 and 2240 A100)
        weights = weights * np.maximum(1.0, ring / x.scale_out)
    weights = weights + held * 3.0 * RING_HOP * (ranks - 1)
    inner = t * c * n_dp
    boundary = np.where((inner < x.domain) | (total <= x.domain), x.scale_up, x.scale_out or x.scale_up)
    return {
        "tensor": reduces * all_reduce_bytes(whole, t) / ring_bandwidth(x, t, 1, total),
        "tensor_latency": np.where(t > 1, reduces * LATENCY, 0.0),
        "context": held * (3.0 + again) * kv / t * (c - 1.0) / ring_bandwidth(x, c, t, total),
        "expert": expert_layers * (4.0 + 2.0 * again) * routed,
        "expert_out": expert_layers * (4.0 + 2.0 * again) * routed_out,
        "pipeline": np.where(p > 1, 2.0 * v * whole / t / boundary, 0.0),
        # in a pipeline a stage's weights stay gathered over the micro-batches of a step (2407.21783, 3.3.2)
        "gather": np.where((sharding >= 3) & (p == 1), weights, 0.0),
        "reduce": np.where((sharding >= 3) & (p == 1), 0.0, update),
    }  # fmt: skip
