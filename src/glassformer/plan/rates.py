"""The few efficiencies of the time model, each with a meaning: shares of full speed that are reached, and times that no
peak explains. They are fitted once to measured steps (`calibration.fit`) and shipped in data/rates.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from glassformer.plan.known import NOTHING, Known
from glassformer.plan.layout import Job, Number
from glassformer.plan.own import Own, carried


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
    shallow: float = 0.1
    """Time that is added to products with sums of a thousand terms; twice as much for half as many."""
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
    ring: float = 0.1
    """Time that each further context rank adds to attention that goes around them (PyTorch)."""
    bandwidth: float = 0.7
    """Of the memory's bandwidth, by norms, activations and the like."""
    single: float = 2.0
    """Times as many bytes where these are not fused."""
    launch: float = 300e-6
    """Seconds that the host takes for each layer pass, while the accelerator works on the last."""
    expert_launch: float = 500e-6
    """The same, beside it, for a layer with experts, with the software of 2026."""
    expert_each: float = 100e-6
    """The same, for each expert that the rank holds."""
    expert_progress: float = 1.3
    """Times that the last two were longer a year before."""
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
    """Of the links inside a domain, by the tokens' way to the experts."""
    exchange_out: float = 0.5
    """The same, between domains."""
    throttle: float = 0.15
    """How the speed of products grows with the power that is there for them: (W / TFLOP/s) to this."""
    deepspeed: float = 1.1
    """Times that a stage takes in DeepSpeed's pipeline."""
    crowded: float = 1.03
    """Times that a layer takes while ZeRO-3 gathers and scatters beside it."""
    straggler: float = 0.012
    """Time that each doubling of the accelerators adds, beyond eight."""
    stall: float = 0.02
    """Seconds of each step on nothing of the above: data, host, bookkeeping."""
    known: Known = NOTHING
    """What all of these miss on measured rows, for jobs of the same kinds."""
    own: tuple[Own, ...] = ()
    """Measured rows of one's own, whose misses carry over to jobs like them."""

    def miss(self, job: Job) -> Number:
        """log (measured / computed) to expect of a job; for each layout, where they are many."""
        return self.known.miss(job) + carried(job, self.own)[0]


PRIOR = Rates()
"""What one would guess before any measurement: the numbers above."""


def _shipped() -> Rates:
    text = (resources.files("glassformer.plan") / "data" / "rates.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return Rates(**found["rates"], known=Known(**found["known"]))


RATES = _shipped()
