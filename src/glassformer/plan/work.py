"""What a step asks of the busiest accelerator, at full speed: the seconds that its work would take at 100 % of what
the hardware can do. `steptime` divides by the shares that are reached; here is nothing fitted.

Every number is for one micro-batch on one pipeline stage, forward and backward, unless said. T tokens are b s / c.

    products      2 m n k, three times a matrix (forward, both gradients), at the achievable peak; twice where weights
                  are frozen; once more where layers are computed again; and what `shapes` leaves of the peak
    pattern       q k^T and pattern v: forward once, backward 2.5 times with a fused kernel (2205.14135), else 2
    scores        exponentials and scaling of the pattern, on the vector units
    elements      bytes of norms, residuals, activations, rotary, and of patterns that are not fused
    casts         bytes that turning 16-bit numbers into 8-bit ones moves
    messages      `messages`
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from glassformer.plan.architecture import Product
from glassformer.plan.flops import forward
from glassformer.plan.layout import Job, Number
from glassformer.plan.messages import Messages, messages, parameters_held
from glassformer.plan.shapes import misaligned, quantised
from glassformer.plan.share import Array, Share, share_of

LOGIT_BYTES = 24.0
"""Moved for each logit: written, read for the loss in 32 bits, its gradient written and read twice."""
UNFUSED_BYTES = 15.0
"""Moved forward for each score of a pattern that is written to memory: scores, softmax, dropout, each read again."""
HOST_BANDWIDTH = 25e9
"""Bytes a second of the host's memory for each accelerator: eight share about 400 GB/s, half of it reached."""
UNMEASURED = 0.8
"""Achievable share of a peak that nobody measured: what H100 reaches."""


@dataclass(frozen=True, slots=True)
class Products:
    """Matrix products outside the head."""

    seconds: Number
    """With the quantisation of waves and tiles."""
    whole: Number
    """Without it."""
    shallow: Number
    """`whole` over a thousandth of the length of the sums: what filling and emptying a tile costs."""
    misaligned: Number
    """`whole`, weighed with how far sizes are from what tensor cores load at once."""
    bytes: Number
    """Seconds of reading the factors and writing the results."""
    casts: Number


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds at full speed; each may be an array."""

    micro_batches: Number
    """M."""
    fill: Number
    """Micro-batches' worth of waiting in the pipeline: (p - 1) / v."""
    products: Products
    low: Number
    """1 where products are computed in 8 bits, 2 in 4, else 0."""
    pattern: Number
    pattern_misaligned: Number
    """Pattern's seconds where it is not fused and 8 does not divide a head's width: no tensor core takes it."""
    scores: Number
    elements: Number
    accumulated: Number
    """Gradients added to those of the micro-batches before."""
    kernels: Number
    """Passes of layers that the host launches."""
    expert_layers: Number
    """Those with experts."""
    local_experts: Number
    """The same, times the experts that a rank holds in each."""
    expert_bytes: Number
    """Sorting tokens to experts and back."""
    again: Number
    """Share of all these that is recomputation."""
    head: Number
    head_bytes: Number
    head_waits: Number
    """1 where other stages wait for the head."""
    messages: Messages
    optimizer: Number
    """Once a step."""
    accelerators: Number
    year: Number
    """Of the software; and of it, 1 or 0:"""
    ported: Number
    """Attention runs kernels of the generation before."""
    biased: Number
    """Attention adds a bias to its scores."""
    ring: Number
    """c - 1 where attention goes around context ranks step by step."""
    single: Number
    """Norms, activations and residuals are not fused."""
    tensor_overlap: Number
    deepspeed: Number
    """In its pipeline."""
    hides: Number
    """The exchanges of replicas run under the computation."""
    watts: Number
    """Of power for each TFLOP/s of the 16-bit peak: where it is little the clock falls."""


def work(job: Job) -> Work:
    """Of one job, or of all its layouts at once."""
    a, x, software = job.architecture, job.accelerator, job.software
    s = share_of(job)
    sixteen = _achievable(job, _sixteen(job))
    passes = 3.5 if job.fused_attention else 3.0 + s.selective
    pattern, scores = _pattern(job, s)
    pattern_passes = passes + s.again
    unfused = 0.0 if job.fused_attention else UNFUSED_BYTES * scores * pattern_passes
    elements = _elements(job, s) * (3.0 + s.again) + unfused
    launched = s.held * (3.0 + s.again) * (not software.graphs)
    with_experts = launched * a.expert_layers / s.layers
    dense, experts = parameters_held(a, s)
    each = 2.0 * job.precision.gradient + (6.0 if software.engine == "deepspeed" else 0.0)
    added = np.where(s.micro_batches > 1.0, each * (dense + experts), 0.0) * (not s.frozen)
    odd_heads = not job.fused_attention and a.head_width % 8 > 0
    routed = s.tokens * a.active * a.width / s.tensor * a.expert_layers * s.part
    head, head_bytes = _head(job, s)
    return Work(
        micro_batches=s.micro_batches, fill=(s.pipeline - 1) / s.interleave, products=_products(job, s),
        low={"fp8": 1.0, "fp4": 2.0}.get(job.precision.peak, 0.0),
        pattern=pattern / sixteen * pattern_passes * s.part,
        pattern_misaligned=pattern / sixteen * pattern_passes * s.part * odd_heads,
        scores=scores * pattern_passes * s.part / x.peaks.get("fp32", x.peak(_sixteen(job)) / 16),
        elements=elements * s.part / x.bandwidth, accumulated=added / x.bandwidth,
        kernels=launched, expert_layers=with_experts,
        local_experts=with_experts * a.experts / s.expert * (not software.fixed_capacity),
        expert_bytes=12.0 * job.precision.activation * routed / x.bandwidth,
        again=s.again / (3.0 + s.again), head=head,
        head_bytes=head_bytes / x.bandwidth, head_waits=np.where(s.uneven, 0.0, 1.0),
        messages=messages(job, s), optimizer=_optimizer_bytes(job, s) / x.bandwidth, accelerators=s.accelerators,
        year=software.year, ported=float(not software.native_attention), biased=float(software.biased_attention),
        ring=(s.context - 1.0) * (software.engine == "torch"), single=float(not software.fused_kernels),
        tensor_overlap=float(software.tensor_overlap),
        deepspeed=(s.pipeline > 1.0) * (software.engine == "deepspeed"),
        hides=float(software.engine != "jax" or software.year >= 2024.0), watts=_watts(job),
    )  # fmt: skip


def stack(jobs: list[Job]) -> Work:
    """The work of many jobs, each of one layout, as one with arrays."""
    each = [work(job) for job in jobs]
    inner = {"products": Products, "messages": Messages}

    def column(things: list[Work] | list[Products] | list[Messages], name: str) -> Array:
        return np.array([float(getattr(thing, name)) for thing in things])

    whole: dict[str, object] = {}
    for field in fields(Work):
        if field.name in inner:
            parts = [getattr(one, field.name) for one in each]
            kind = inner[field.name]
            whole[field.name] = kind(**{one.name: column(parts, one.name) for one in fields(kind)})
        else:
            whole[field.name] = column(each, field.name)
    return Work(**whole)  # type: ignore[arg-type]


def _sixteen(job: Job) -> str:
    """The peak of what is never computed in 8 bits: pattern and head."""
    peak = job.precision.peak
    return "bf16" if peak in ("fp8", "fp4") else peak


def _achievable(job: Job, name: str) -> float:
    """FLOP/s that the best products reach."""
    x = job.accelerator
    return x.peak(name) * (x.achievable.get(name) or x.achievable.get("bf16") or UNMEASURED)


def _watts(job: Job) -> float:
    teraflops = job.accelerator.peak(_sixteen(job)) / 1e12
    return job.accelerator.power / teraflops if job.accelerator.power else 0.7  # as H100, where nobody says


def _products(job: Job, s: Share) -> Products:
    """Every matrix that is multiplied by, but the head."""
    a, x = job.architecture, job.accelerator
    peak = _achievable(job, job.precision.peak)
    seconds, whole, shallow, odd, moved, fed = (np.zeros(()) for _ in range(6))
    for one in a.products():
        if one.part == "head":
            continue
        many = s.read if one.tokens == "read" else s.tokens
        m, n, k, copies = _sides(one, job, s, many)
        full = copies * 2.0 * m * n * k / peak
        whole = whole + full
        seconds = seconds + full / quantised(m, n, x.name)
        # sums are k long forward, n and m long in the gradients of inputs and of weights
        shallow = shallow + full * 1000.0 * (1.0 / k + 1.0 / n + 1.0 / m) / 3.0
        odd = odd + full * misaligned(n, k)
        moved = moved + copies * (m * k + m * n + n * k) * job.precision.activation
        fed = fed + many * one.used * (one.inputs + one.outputs) / s.tensor
    times = s.passes * s.part
    casts = fed * 4.0 / 3.0 if job.precision.peak in ("fp8", "fp4") else np.zeros(())
    return Products(
        seconds * times, whole * times, shallow * times, odd * times, moved * times / x.bandwidth,
        casts * times / x.bandwidth,
    )  # fmt: skip


def _sides(one: Product, job: Job, s: Share, tokens: Array) -> tuple[Array, Array, Array, Array]:
    """m, n, k of one product on one rank, and how many like it the rank computes."""
    a = job.architecture
    outputs, inputs = np.asarray(float(one.outputs)), np.asarray(float(one.inputs))
    if one.part == "experts":
        m = np.maximum(1.0, tokens / s.tensor * a.active * s.expert / a.experts)
        return m, outputs, inputs, one.held / s.expert
    if one.name.endswith((".out", ".down")):
        return tokens, outputs, inputs / s.tensor, np.asarray(float(one.used))
    return tokens, outputs / s.tensor, inputs, np.asarray(float(one.used))


def _pattern(job: Job, s: Share) -> tuple[Array, Array]:
    """FLOPs and scores of one forward pass over all layers; a kernel that is not fused computes what the mask hides."""
    a = job.architecture
    if a.kind == "network":
        return np.zeros(()), np.zeros(())
    half = job.causal_half and job.fused_attention
    convention = "causal" if half else "full"
    flops = forward(a, job.length, read_length=job.read_length, convention=convention).pattern  # type: ignore[arg-type]
    value = a.latent.value_width if a.latent else a.head_width
    scores = flops / (2.0 * (a.head_width + value))
    return flops * s.tokens / s.tensor, scores * s.tokens / s.tensor


def _head(job: Job, s: Share) -> tuple[Array, Array]:
    """Seconds of its products, and bytes of the logits."""
    a = job.architecture
    if a.kind == "network" or not a.vocab:
        return np.zeros(()), np.zeros(())
    logits = s.tokens * a.vocab / s.tensor
    seconds = 2.0 * a.width * logits / _achievable(job, _sixteen(job))
    reached = quantised(s.tokens, a.vocab / s.tensor, job.accelerator.name)
    return (2.0 if s.frozen else 3.0) * seconds / reached, logits * LOGIT_BYTES


def _elements(job: Job, s: Share) -> Array:
    """Bytes of one forward pass over all layers, outside products and patterns.

    Of each token and layer: two norms read and written, two residuals added (9 d), q and k turned, and the activation
    of the feed-forward layer.
    """
    a = job.architecture
    if a.kind == "network":
        return s.tokens * sum(a.widths) * 2.0 * job.precision.activation
    divided = np.where(np.asarray(job.layout.sequence_parallel) > 0, s.tensor, 1.0)
    block = 9.0 * a.width / divided + 2.0 * (a.q_width + a.kv_width) / s.tensor
    cross = 5.0 * a.width / divided if a.encoder_layers else 0.0
    dense = a.ff_matrices * a.ff_width
    sparse = a.ff_matrices * a.expert_width * (a.active + a.shared_experts)
    hidden = dense * (a.layers - a.expert_layers) + sparse * a.expert_layers
    written = s.tokens * (a.layers * (block + cross) + hidden / s.tensor)
    reads = s.read * a.encoder_layers * (block + dense / s.tensor)
    return np.asarray((written + reads) * job.precision.activation)


def _optimizer_bytes(job: Job, s: Share) -> Array:
    """Read and written by one update: gradient, master and moments, and the weights that follow.

    Where it happens in the host's memory, its bytes count as often as that is slower than the accelerator's.
    """
    if job.trained is not None:
        return 32.0 * job.trained / (s.tensor * s.pipeline)
    p = job.precision
    each = 2 * (p.gradient + p.master + 2 * p.moment) + p.weight
    dense, experts = parameters_held(job.architecture, s)
    divided = np.where(np.asarray(job.layout.sharding) >= 1, s.data * s.context, 1.0)
    slower = job.accelerator.bandwidth / HOST_BANDWIDTH if job.software.offload_optimizer else 1.0
    return each * slower * (dense / divided + experts / np.maximum(1.0, divided / s.expert))
