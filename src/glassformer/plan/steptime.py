"""How long one training step takes, split into what it is spent on.

    step = M stage + fill stage + head + exposed communication + optimiser + stalls          (plan.md 3.5)

`work` says what each part would take at full speed; `Rates` are the shares of it that are reached. They are fitted to
measured steps (`rates`), and a few measured rows of one's own cluster fit them anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from glassformer.plan.layout import Job, Number
from glassformer.plan.work import Work, work


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of full speed that are reached, and times that no peak explains."""

    products: float = 0.95
    """Of the achievable peak, by products of 16 bits at well-fitting sizes."""
    products_8: float = 0.85
    """The same, of 8 bits."""
    products_4: float = 0.6
    """The same, of 4 bits."""
    waves: float = 0.5
    """How much of the loss by tiles and waves is felt: 0 none, 1 all."""
    misaligned: float = 0.4
    """Time that is added to products where only 8 divides a side."""
    odd_heads: float = 4.0
    """Times that unfused attention adds where 8 does not divide a head's width."""
    pattern: float = 0.75
    """Of the achievable peak, by fused attention."""
    ported: float = 0.6
    """Of that, by kernels of the generation before."""
    biased: float = 0.6
    """Of that, by kernels that add a bias to the scores."""
    score: float = 12.0
    """Vector operations for each score of the pattern."""
    bandwidth: float = 0.7
    """Of the memory's bandwidth, by norms, activations and the like."""
    single: float = 2.0
    """Times as many bytes where these are not fused."""
    launch: float = 60e-6
    """Seconds for each layer pass, whatever its size."""
    expert_launch: float = 200e-6
    """Seconds for each layer pass with experts, beside it, with the software of 2026."""
    expert_progress: float = 1.5
    """Times that these were longer a year before."""
    scale_up: float = 0.7
    """Of the link inside a domain."""
    tensor_hidden: float = 0.5
    """Share of tensor-parallel messages that overlap hides, where the software does it."""
    scale_out: float = 0.6
    """Of the links between domains, by the exchange of gradients and weights."""
    hidden: float = 0.7
    """Share of the computation under which exchanges of data-parallel ranks can hide."""
    boundary: float = 0.5
    """Share of the sends between stages that is exposed."""
    exchange: float = 0.5
    """Of the links, by the tokens' way to the experts."""
    throttle: float = 0.15
    """How the speed of products grows with the power that is there for them: (W / TFLOP/s) to this."""
    deepspeed: float = 1.1
    """Times that a stage takes in DeepSpeed's pipeline."""
    straggler: float = 0.012
    """Time that each doubling of the accelerators adds, beyond eight."""
    stall: float = 0.02
    """Seconds of each step on nothing of the above: data, host, bookkeeping."""


RATES = Rates()


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
    return spent(work(job), rates)


def spent(w: Work, r: Rates) -> StepTime:
    """Seconds of the work at these rates."""
    share = np.where(w.low == 2, r.products_4, np.where(w.low == 1, r.products_8, r.products))
    once = 1.0 / (1.0 + w.again / (1.0 - w.again))  # what is not recomputed, of what is
    products = w.whole + r.waves * (w.products - w.whole) + r.misaligned * w.misaligned
    share = share * np.minimum(w.watts, 1.5) ** r.throttle
    matmul = np.hypot(products / share, w.product_bytes / r.bandwidth)
    kernel = r.pattern * np.where(w.ported > 0, r.ported, 1.0)
    kernel = kernel * np.where(w.biased > 0, r.biased, 1.0)
    pattern = (w.pattern + r.odd_heads * w.pattern_misaligned) / kernel + r.score * w.scores
    older = np.clip(2026.0 - w.year, -1.0, 1.0)
    launch = r.launch * w.kernels + r.expert_launch * w.expert_layers * 3 * r.expert_progress**older
    elements = w.elements * np.where(w.single > 0, r.single, 1.0)
    bandwidth = (elements + w.casts + w.expert_bytes) / r.bandwidth + launch
    computed = matmul + pattern + bandwidth
    shown = np.where(w.tensor_overlap > 0, 1.0 - min(r.tensor_hidden, 0.95), 1.0)
    tensor = (w.tensor / r.scale_up + w.tensor_latency) * shown
    context = over(w.context / r.scale_up, pattern)
    expert = w.expert / r.exchange
    sends = r.boundary * w.pipeline / r.scale_out
    gather = over(w.gather / r.scale_out, r.hidden * computed)
    slow = np.where(w.deepspeed > 0, r.deepspeed, 1.0)
    matmul, pattern, bandwidth, computed = matmul * slow, pattern * slow, bandwidth * slow, computed * slow
    stage = computed + tensor + context + expert + sends + gather
    head = w.head / (r.products * np.minimum(w.watts, 1.5) ** r.throttle) + w.head_bytes / r.bandwidth
    m = w.micro_batches
    reduce = over(w.reduce / r.scale_out, r.hidden * computed * (1 + w.fill))
    optimizer = w.optimizer / r.bandwidth
    head_time = m * head * np.where(w.fill > 0, w.head_waits, 1.0)
    spent_so_far = m * stage + w.fill * stage + head_time + reduce + optimizer
    stalls = r.stall + r.straggler * np.log2(np.maximum(w.accelerators / 8.0, 1.0)) * spent_so_far
    return StepTime(
        matmul=m * matmul * once, pattern=m * pattern * once, bandwidth=m * bandwidth * once,
        recompute=m * computed * (1.0 - once), head=head_time, tensor=m * tensor, data=m * gather + reduce,
        pipeline=m * sends, context=m * context, expert=m * expert, bubble=w.fill * stage, optimizer=optimizer,
        stalls=stalls,
    )  # fmt: skip


def over(comm: Number, hiding: Number) -> Number:
    """What of a communication is left over when it runs under a computation: max(comm - hiding, 0), rounded."""
    gap = np.asarray(comm - hiding)
    return 0.5 * (gap + np.sqrt(gap**2 + (0.2 * np.asarray(comm)) ** 2))
