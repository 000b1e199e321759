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
from glassformer.plan.own import carried
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
        return sum(getattr(self, field.name) for field in fields(self))

    def split(self) -> list[dict[str, Any]]:
        """Rows `part, seconds, share`, of one step."""
        whole = float(self.total)
        return [
            {"part": name, "seconds": float(value), "share": float(value) / whole}
            for name, value in asdict(self).items()
        ]


def step_time(job: Job, rates: Rates = RATES) -> StepTime:
    """Of one job, or of all its layouts at once."""
    missed, _ = carried(job, rates.own)
    return spent(work(job), rates, np.exp(missed))


def spent(w: Work, r: Rates, pace: Number = 1.0) -> StepTime:
    """Seconds of the work at these rates; all of them times `pace`."""
    share = np.where(w.low == 2, r.products_4, np.where(w.low == 1, r.products_8, r.products))
    once = 1.0 / (1.0 + w.again / (1.0 - w.again))  # what is not recomputed, of what is
    products = (
        w.whole + r.waves * (w.products - w.whole) + r.misaligned * w.misaligned + r.shallow * w.shallow
    )
    clock = np.minimum(w.watts, 1.5) ** r.throttle
    matmul = np.hypot(products / (share * clock), w.product_bytes / r.bandwidth)
    kernel = r.pattern * clock * np.where(w.ported > 0, r.ported, 1.0)
    kernel = kernel * np.where(w.biased > 0, r.biased, 1.0)
    pattern = (w.pattern + r.odd_heads * w.pattern_misaligned) / kernel + r.score * w.scores
    pattern = pattern * (1.0 + r.ring * w.ring)
    older = r.expert_progress ** np.clip(2026.0 - w.year, -1.0, 1.0)
    host = (
        r.launch * w.kernels + (r.expert_launch * w.expert_layers + r.expert_each * w.local_experts) * older
    )
    elements = w.elements * np.where(w.single > 0, r.single, 1.0)
    bandwidth = (elements + w.casts + w.expert_bytes + w.accumulated) / r.bandwidth
    busy = matmul + pattern + bandwidth
    computed = np.hypot(busy, host)  # the host runs ahead of kernels that are long enough
    bandwidth = bandwidth + computed - busy
    slow = np.where(w.deepspeed > 0, r.deepspeed, 1.0)
    matmul, pattern, bandwidth, computed = matmul * slow, pattern * slow, bandwidth * slow, computed * slow
    shown = np.where(w.tensor_overlap > 0, 1.0 - min(r.tensor_hidden, 0.95), 1.0)
    tensor = (w.tensor / r.scale_up + w.tensor_latency) * shown
    context = over(w.context / r.scale_up, pattern)
    expert = np.maximum(w.expert / r.exchange, w.expert_out / r.exchange_out)
    sends = r.boundary * w.pipeline / r.scale_out
    gather = over(w.gather / r.scale_out, r.hidden * computed)
    stage = computed + tensor + context + expert + sends + gather
    head = w.head / (r.products * clock) + w.head_bytes / r.bandwidth
    m = w.micro_batches
    reduce = over(w.reduce / r.scale_out, w.hides * r.hidden * computed * (1 + w.fill))
    optimizer = w.optimizer / r.bandwidth
    head_time = m * head * np.where(w.fill > 0, w.head_waits, 1.0)
    spent_so_far = m * stage + w.fill * stage + head_time + reduce + optimizer
    stalls = r.stall + r.straggler * np.log2(np.maximum(w.accelerators / 8.0, 1.0)) * spent_so_far
    m = m * pace
    return StepTime(
        matmul=m * matmul * once, pattern=m * pattern * once, bandwidth=m * bandwidth * once,
        recompute=m * computed * (1.0 - once), head=head_time * pace, tensor=m * tensor, data=m * gather + pace * reduce,
        pipeline=m * sends, context=m * context, expert=m * expert, bubble=pace * w.fill * stage,
        optimizer=pace * optimizer, stalls=pace * stalls,
    )  # fmt: skip


def over(comm: Number, hiding: Number) -> Number:
    """What of a communication is left over when it runs under a computation: max(comm - hiding, 0), rounded."""
    gap = np.asarray(comm - hiding)
    return 0.5 * (gap + np.sqrt(gap**2 + (0.2 * np.asarray(comm)) ** 2))
