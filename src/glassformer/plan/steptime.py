"""How long one training step takes, split into what it is spent on.

    step = M stage + fill stage + head + exposed communication + optimiser + stalls          (plan.md 3.5)

`work` says what each part would take at full speed; `rates` are the shares of it that are reached, fitted to measured
steps (`calibration`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from glassformer.plan.layout import Job, Number
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.work import Work, work


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step by what they are spent on; each may be an array."""

    matmul: Number
    pattern: Number
    bandwidth: Number
    """Norms, activations, residuals, casts, and launching kernels."""
    recompute: Number
    """Of the three above, what the backward pass computes again."""
    head: Number
    tensor: Number
    data: Number
    pipeline: Number
    context: Number
    expert: Number
    bubble: Number
    optimizer: Number
    stalls: Number
    """Stragglers, data, host."""

    @property
    def total(self) -> Number:
        return sum((getattr(self, field.name) for field in fields(self)), np.zeros(()))

    def split(self) -> list[dict[str, Any]]:
        """Rows `part, seconds, share`, of one step."""
        whole = float(self.total)
        return [
            {"part": name, "seconds": float(value), "share": float(value) / whole}
            for name, value in asdict(self).items()
        ]


def step_time(job: Job, rates: Rates = RATES) -> StepTime:
    """Of one job, or of all its layouts at once."""
    return spent(work(job), rates, np.exp(rates.miss(job)))


def spent(w: Work, r: Rates, pace: Number = 1.0) -> StepTime:
    """Seconds of the work at these rates; all of them times `pace`."""
    matmul, pattern, bandwidth, head = _computed(w, r)
    computed = matmul + pattern + bandwidth
    sent, m = w.messages, w.micro_batches
    shown = np.where(w.tensor_overlap > 0, 1.0 - min(r.tensor_hidden, 0.95), 1.0)
    tensor = (sent.tensor / r.scale_up + sent.tensor_latency) * shown
    context = over(sent.context / r.scale_up, pattern)
    expert = np.maximum(sent.expert / r.exchange, sent.expert_out / r.exchange_out)
    sends = r.boundary * sent.pipeline / r.scale_out
    gather = over(sent.gather / r.scale_out, r.hidden * computed)
    stage = computed + tensor + context + expert + sends + gather
    # the last micro-batch hides the exchange of gradients, and so does the pipeline running empty
    reduce = over(sent.reduce / r.scale_out, w.hides * r.hidden * computed * (1 + w.fill))
    optimizer = w.optimizer / r.bandwidth
    whole_head = m * head * np.where(w.fill > 0, w.head_waits, 1.0)
    whole = (m + w.fill) * stage + whole_head + reduce + optimizer
    stalls = r.stall + r.straggler * np.log2(np.maximum(w.accelerators / 8.0, 1.0)) * whole
    once = m * (1.0 - w.again)
    parts = {
        "matmul": once * matmul, "pattern": once * pattern, "bandwidth": once * bandwidth,
        "recompute": m * computed * w.again, "head": whole_head, "tensor": m * tensor, "data": m * gather + reduce,
        "pipeline": m * sends, "context": m * context, "expert": m * expert, "bubble": w.fill * stage,
        "optimizer": optimizer, "stalls": stalls,
    }  # fmt: skip
    return StepTime(**{name: pace * part for name, part in parts.items()})


def _computed(w: Work, r: Rates) -> tuple[Number, Number, Number, Number]:
    """Of a micro-batch: products, pattern, what is bound by memory or by the host, and the head."""
    p = w.products
    clock = np.minimum(w.watts, 1.5) ** r.throttle
    share = np.where(w.low == 2, r.products_4, np.where(w.low == 1, r.products_8, r.products)) * clock
    products = p.whole + r.waves * (p.seconds - p.whole) + r.misaligned * p.misaligned + r.shallow * p.shallow
    matmul = np.hypot(products / share, p.bytes / r.bandwidth)
    kernel = r.pattern * clock * np.where(w.ported > 0, r.ported, 1.0) * np.where(w.biased > 0, r.biased, 1.0)
    pattern = (w.pattern + r.odd_heads * w.pattern_misaligned) / kernel + r.score * w.scores
    pattern = pattern * (1.0 + r.ring * w.ring)
    elements = w.elements * np.where(w.single > 0, r.single, 1.0)
    moved = (elements + p.casts + w.expert_bytes + w.accumulated) / r.bandwidth
    older = r.expert_progress ** np.clip(2026.0 - w.year, -1.0, 1.0)
    host = (
        r.launch * w.kernels + (r.expert_launch * w.expert_layers + r.expert_each * w.local_experts) * older
    )
    busy = matmul + pattern + moved
    bandwidth = moved + np.hypot(busy, host) - busy  # the host runs ahead of kernels that are long enough
    slow = np.where(w.deepspeed > 0, r.deepspeed, 1.0) * np.where(w.messages.gather > 0, r.crowded, 1.0)
    head = w.head / (r.products * clock) + w.head_bytes / r.bandwidth
    return matmul * slow, pattern * slow, bandwidth * slow, head


def over(comm: Number, hiding: Number) -> Number:
    """What of a communication is left over when it runs under a computation: max(comm - hiding, 0), rounded."""
    gap = np.asarray(comm - hiding)
    return 0.5 * (gap + np.sqrt(gap**2 + (0.2 * np.asarray(comm)) ** 2))
