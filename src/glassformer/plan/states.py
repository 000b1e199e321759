"""Weights, gradients, masters and the optimiser's numbers on one rank, and what ZeRO-3 gathers of them.

P numbers on a rank of a stage, of which n = data x context ranks (of experts, n / x) hold a part each:

    weights     bytes of a weight x P,     / n from stage 3 of ZeRO (1910.02054)
    gradients   bytes of a gradient x P,   / n from stage 2
    masters     4 P in mixed precision,    / n from stage 1
    optimizer   numbers x bytes of a moment x P, / n from stage 1

Where masters lie on the accelerator, stage 3 casts what it gathers from them and has no sharded 16-bit weights (FSDP2).
It gathers the layer that is computed and the next; embedding and head stay gathered through the step. In a pipeline it
keeps the stage's weights gathered, and their gradients whole, over the micro-batches of a step (Llama 3, 2407.21783,
3.3.2; torchtitan).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError, nearest
from glassformer.plan.layout import Job
from glassformer.plan.stages import Held

LIVE = 1e9
"""Numbers that DeepSpeed's stage 3 keeps gathered by default (`stage3_max_live_parameters`)."""
NUMBERS: dict[str, float] = {
    "sgd": 0, "momentum": 1, "lion": 1, "adam": 2, "adamw": 2, "adafactor": 0, "muon": 1, "adam8bit": 2,
}  # fmt: skip
"""That an optimiser remembers of each parameter. Adafactor's are rows + columns; Muon leaves all but the matrices of
layers to AdamW."""


def states(job: Job, mine: Held, stage: NDArray[Any]) -> dict[str, Any]:
    """Weights, gradients, masters and the optimiser's numbers on a rank."""
    layout, of = job.layout, job.precision
    sharding = np.asarray(layout.sharding)
    ranks = layout.data * np.asarray(layout.context)
    routed_ranks = np.maximum(ranks / layout.expert, 1)

    def sharded(dense: Any, routed: Any, begins: int) -> Any:
        on = sharding >= begins
        return dense / np.where(on, ranks, 1) + routed / np.where(on, routed_ranks, 1)

    dense, routed = mine.layers + mine.outer + mine.small, mine.experts
    if job.trained is None:
        masters_here = of.master > 0 and not job.software.offload_optimizer
        from_masters = (sharding == 3) & (ranks > 1) & masters_here
        weights = np.where(from_masters, 0, sharded(of.weight * dense, of.weight * routed, 3))
    else:
        frozen = sharded(
            job.frozen_bytes * mine.layers + max(job.frozen_bytes, 2.0) * (mine.outer + mine.small),
            job.frozen_bytes * routed, 3,
        )  # fmt: skip
        dense = job.trained / (layout.pipeline * np.asarray(layout.tensor)) + 0.0 * stage
        routed = np.zeros_like(dense)
        weights = frozen + of.weight * dense
    moments = of.moment / 4 if job.optimizer == "adam8bit" else of.moment
    numbers = _numbers(job, mine) if job.trained is None else NUMBERS[_known(job.optimizer)]
    found = {
        "weights": weights,
        "gradients": sharded(of.gradient * dense, of.gradient * routed, 2),
        "masters": sharded(of.master * dense, of.master * routed, 1),
        "optimizer": sharded(numbers * moments * dense, numbers * moments * routed, 1),
    }
    if job.software.offload_optimizer:
        found |= {"masters": 0.0, "optimizer": 0.0}
        found["gradients"] = np.where(sharding >= 2, 0, found["gradients"])
    return found


def gathered(job: Job, mine: Held) -> Any:
    """What ZeRO-3 has gathered at the worst moment."""
    of, p = job.precision, np.asarray(job.layout.pipeline)
    weight = min(of.weight, of.activation) if job.trained is None else job.frozen_bytes
    gradient = of.gradient if job.trained is None else 0.0
    live = 2 * mine.layer
    if job.software.engine == "deepspeed":
        live = np.maximum(live, np.minimum(LIVE, mine.layers + mine.experts))
    one = weight * (live + mine.outer)
    if gradient:
        one = one + (of.activation + gradient) * mine.layer + of.activation * mine.outer
    whole = (weight + gradient) * mine.total
    ranks = job.layout.data * np.asarray(job.layout.context)
    found = np.where((np.asarray(job.layout.sharding) == 3) & (ranks > 1), np.where(p > 1, whole, one), 0.0)
    if job.trained is not None and job.frozen_bytes < of.weight:  # the matrix being multiplied, in 16 bits
        found = found + of.weight * max(
            one.entries for one in job.architecture.products() if one.part != "head"
        )
    return found


def _numbers(job: Job, mine: Held) -> Any:
    """Numbers that the optimiser remembers for each parameter, on average."""
    name = _known(job.optimizer)
    if name == "adafactor":
        a = job.architecture
        edges = sum((one.inputs + one.outputs) * one.held for one in a.products())
        return edges / max(a.parameters.total, 1)
    if name == "muon":
        return 2 - (mine.layers + mine.experts) / np.maximum(mine.total, 1)
    return NUMBERS[name]


def _known(optimizer: str) -> str:
    if optimizer not in NUMBERS:
        raise UsageError(f"There is no optimizer {optimizer!r};", expected=nearest(optimizer, NUMBERS))
    return optimizer
