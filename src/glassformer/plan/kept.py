"""What one layer keeps from the forward pass for the backward one: tensor by tensor, each with its place.

Bytes for one micro-batch on one rank, n = b s / c tokens, a bytes an entry:

    resid_pre, resid_mid        a d n          what each norm reads                             / t if sequence parallel
    ln1, ln2.normalized         a d n          what q k v, and the feed-forward, multiply       / t if sequence parallel
    attn.q, k, v                a (h + 2 k) e n                                                 / t
    attn.z                      a h e n                                                         / t
    attn.logsumexp              4 h n          FlashAttention (2205.14135) keeps it instead of the pattern       / t
    attn.pattern                a h s n        where attention is explicit                      / t
    mlp.pre, mlp.post           a (m - 1) f n, a f n                                            / t
    dropout                     2 d n + h s n  masks; and a h s n for the pattern after it      / t (the pattern's)

With a = 2, f = 4 d, dropout and explicit attention these are the 34 s b d + 5 h s s b of Korthikanti et al.
(2205.05198), and without sequence parallelism its s b d (10 + 24 / t + 5 h s / (d t)).

Plain eager code keeps more: a float32 copy of what an RMS norm reads and of what it writes, the product that q, k and v
are views of beside their turned copies, and the output of a gate's activation. Frozen weights need no gradient, so what
they multiply is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glassformer.plan.layout import Job, Number, Recompute
from glassformer.plan.stages import LayerKind


class Kept(NamedTuple):
    """One saved tensor."""

    place: str
    bytes: Number
    at: Recompute
    """The strongest recomputation that still keeps it."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the rows of the table above have in common."""

    job: Job
    tokens: Number
    """On one rank."""
    streams: Number
    """Among how many ranks norms and residuals are divided."""

    @property
    def a(self) -> float:
        return self.job.precision.activation

    @property
    def stream(self) -> float:
        """Bytes of an entry of the residual stream: autocast leaves it in float32."""
        return 4.0 if self.job.precision.name in ("fp32", "tf32", "autocast") else self.a

    @property
    def cheap(self) -> Recompute:
        """The strongest recomputation that still keeps what is cheap to compute, and every second product."""
        by_operations = self.job.software.selective == "operations"
        return Recompute.NONE if by_operations else Recompute.SELECTIVE

    @property
    def trains_all(self) -> bool:
        return self.job.trained is None

    @property
    def keeps_inputs(self) -> bool:
        """Whether a product keeps what it multiplies: for its weights' gradient, or because 4-bit products do."""
        return self.trains_all or self.job.frozen_bytes < 1


def kept_by_layer(job: Job, kind: LayerKind) -> list[Kept]:
    """All that one layer of this kind keeps."""
    frame = _frame(job, kind)
    if kind.name == "network":
        return list(_network(frame))
    found = [*_attention(frame, kind), *_feedforward(frame, kind)]
    if job.architecture.encoder_layers and kind.name != "encoder":
        found += _cross(frame)
    return found


def stored(job: Job, kept: list[Kept]) -> Number:
    """Bytes that stay until the backward pass, as the layout's `recompute` says."""
    level = np.asarray(job.layout.recompute)
    by_level = {at: sum(one.bytes for one in kept if one.at == at) for at in Recompute}
    return sum(each * (level <= at) for at, each in by_level.items())


def transient(job: Job, kind: LayerKind) -> Number:
    """The gradients alive at once in the backward pass of one layer: of the residual stream, and of what is widest,
    the feed-forward part or the pattern."""
    frame, a, t = _frame(job, kind), job.architecture, np.asarray(job.layout.tensor)
    f = (a.active + a.shared_experts) * a.expert_width if kind.name == "experts" else a.ff_width
    if kind.name == "network":
        return frame.tokens * frame.a * max(a.widths)
    widest = frame.a * f * (a.ff_matrices - job.software.fused_kernels) / t
    if not job.fused_attention:
        widest = np.maximum(widest, 2 * frame.a * a.heads * _length(job, kind) / t)
    return frame.tokens * (frame.a * a.width / frame.streams + widest)


def layer_tokens(job: Job, kind: LayerKind) -> Number:
    """Of one micro-batch on one rank, in a layer of this kind."""
    return job.layout.micro_batch * _length(job, kind) / np.asarray(job.layout.context)


def _length(job: Job, kind: LayerKind) -> int:
    return (job.read_length or job.length) if kind.name == "encoder" else job.length


def _frame(job: Job, kind: LayerKind) -> _Frame:
    t = np.asarray(job.layout.tensor)
    return _Frame(job, layer_tokens(job, kind), np.where(job.layout.sequence_parallel, t, 1))


def _norm(frame: _Frame, name: str, read: str) -> Iterator[Kept]:
    d, n = frame.job.architecture.width, frame.tokens / frame.streams
    full = Recompute.FULL if read == "resid_pre" else frame.cheap
    yield Kept(read, frame.stream * d * n, full)
    if frame.job.software.fused_kernels or frame.job.architecture.norm == "layernorm":
        yield Kept(f"{name}.scale", 8 * n, frame.cheap)
        return
    trained = frame.trains_all or frame.job.software.adapter == "scale"
    yield Kept(f"{read}.float32", (4 - frame.stream) * d * n, frame.cheap)
    yield Kept(f"{name}.scaled", (4 * d * trained + 4) * n, frame.cheap)


def _attention(frame: _Frame, kind: LayerKind) -> Iterator[Kept]:
    job, a = frame.job, frame.job.architecture
    n, t = frame.tokens, np.asarray(job.layout.tensor)
    k = a.kv_width / np.minimum(t, a.kv_heads)
    value = a.heads * a.latent.value_width if a.latent else a.q_width
    yield from _norm(frame, "ln1", "resid_pre")
    adapted = not frame.trains_all and job.software.adapter == "lora"
    if frame.trains_all or adapted or frame.keeps_inputs:
        yield Kept("ln1.normalized", frame.a * a.width * n / frame.streams, frame.cheap)
    if adapted:
        yield Kept("lora.dropped", (frame.a + 1) * a.width * n / frame.streams, frame.cheap)
    if a.latent:
        down = a.latent.q_rank + a.latent.kv_rank + a.latent.rotary
        yield Kept("attn.latents", 2 * frame.a * down * n, frame.cheap)
        yield Kept("attn.q", frame.a * a.q_width * n / t, Recompute.SELECTIVE)
        yield Kept("attn.k", frame.a * a.q_width * n / t, frame.cheap)
        yield Kept("attn.v", frame.a * value * n / t, Recompute.SELECTIVE)
    else:
        yield Kept("attn.q", frame.a * a.q_width * n / t, Recompute.SELECTIVE)
        yield Kept("attn.k", frame.a * k * n, frame.cheap)
        yield Kept("attn.v", frame.a * k * n, Recompute.SELECTIVE)
        if not job.software.fused_kernels and not a.learned_positions:
            yield Kept("attn.turned", frame.a * (a.q_width / t + k) * n, frame.cheap)
    yield Kept("attn.z", frame.a * value * n / t, Recompute.SELECTIVE)
    if not job.software.fused_kernels and frame.keeps_inputs:
        yield Kept("attn.z.joined", frame.a * value * n / t, frame.cheap)
    if job.fused_attention:
        yield Kept("attn.logsumexp", 4 * a.heads * n / t, Recompute.SELECTIVE)
    else:
        entries = a.heads * _length(job, kind) * n / t
        yield Kept("attn.pattern", frame.a * entries, Recompute.NONE)
        if job.software.dropout:
            yield Kept("attn.pattern.dropped", (frame.a + 1) * entries, Recompute.NONE)
    if not frame.trains_all and job.software.adapter == "scale":
        outputs = a.q_width / t + 2 * k + a.width / frame.streams
        yield Kept("adapter.outputs", frame.a * outputs * n, frame.cheap)
    if job.software.dropout:
        yield Kept("attn_out.mask", a.width * n / frame.streams, frame.cheap)


def _feedforward(frame: _Frame, kind: LayerKind) -> Iterator[Kept]:
    job, a, n, t = frame.job, frame.job.architecture, frame.tokens, np.asarray(frame.job.layout.tensor)
    gated = a.ff_matrices == 3
    if not (a.ff_width or kind.name == "experts"):
        return
    if not a.parallel:
        yield from _norm(frame, "ln2", "resid_mid")
    if frame.keeps_inputs:
        yield Kept("ln2.normalized", frame.a * a.width * n / frame.streams, frame.cheap)
    if kind.name == "experts":
        yield Kept("router.probabilities", 4 * a.experts * n / frame.streams, frame.cheap)
        yield Kept("experts.sent", frame.a * a.active * a.width * n / t, frame.cheap)
        yield Kept("experts.returned", frame.a * a.active * a.width * n / t, frame.cheap)
    f = (a.active + a.shared_experts) * a.expert_width if kind.name == "experts" else a.ff_width
    yield Kept("mlp.pre", frame.a * f * n / t, Recompute.SELECTIVE)
    if gated:
        yield Kept("mlp.pre_linear", frame.a * f * n / t, frame.cheap)
        if not job.software.fused_kernels:
            yield Kept("mlp.gate", frame.a * f * n / t, frame.cheap)
        if job.software.selective == "operations":
            yield Kept("mlp_out", frame.a * a.width * n / frame.streams, Recompute.SELECTIVE)
    if frame.keeps_inputs:
        yield Kept("mlp.post", frame.a * f * n / t, frame.cheap)
    if not frame.trains_all and job.software.adapter == "scale":
        outputs = (a.ff_matrices - 1) * f / t + a.width / frame.streams
        yield Kept("adapter.mlp_outputs", frame.a * outputs * n, frame.cheap)
    if job.software.dropout:
        yield Kept("mlp_out.mask", a.width * n / frame.streams, frame.cheap)


def _cross(frame: _Frame) -> Iterator[Kept]:
    """Attention of the written row over the read one: k and v are of the tokens that are read."""
    job, a, n, t = frame.job, frame.job.architecture, frame.tokens, np.asarray(frame.job.layout.tensor)
    read = (job.read_length or job.length) / job.length
    k = a.kv_width / np.minimum(t, a.kv_heads)
    yield from _norm(frame, "ln_cross", "resid_cross")
    yield Kept("ln_cross.normalized", frame.a * a.width * n / frame.streams, frame.cheap)
    yield Kept("cross.q", frame.a * a.q_width * n / t, Recompute.SELECTIVE)
    yield Kept("cross.kv", 2 * frame.a * k * n * read, Recompute.SELECTIVE)
    yield Kept("cross.z", frame.a * a.q_width * n / t, Recompute.SELECTIVE)
    if job.fused_attention:
        yield Kept("cross.logsumexp", 4 * a.heads * n / t, Recompute.SELECTIVE)
    else:
        entries = a.heads * (job.read_length or job.length) * n / t
        yield Kept("cross.pattern", frame.a * entries, Recompute.NONE)
        if job.software.dropout:
            yield Kept("cross.pattern.dropped", (frame.a + 1) * entries, Recompute.NONE)
    if job.software.dropout:
        yield Kept("cross_out.mask", a.width * n / frame.streams, frame.cheap)


def _network(frame: _Frame) -> Iterator[Kept]:
    """A plain network: what each matrix multiplies, and what each activation reads."""
    widths = frame.job.architecture.widths
    yield Kept("inputs", frame.a * widths[0] * frame.tokens, Recompute.FULL)
    for place, width in enumerate(widths[1:-1]):
        yield Kept(f"layers.{place}.pre", frame.a * width * frame.tokens, Recompute.NONE)
        yield Kept(f"layers.{place}.post", frame.a * width * frame.tokens, Recompute.NONE)
