"""What one rank has of a job: the numbers of its layout as arrays, and what follows from them.

Where layers do not divide among the parts of a pipeline, the embedding and the head each take a layer's place (Llama 3,
2407.21783, 3.3.2); elsewhere the last stage computes the head beside its layers, and the others wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.layout import Job, Recompute

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Share:
    """Of the busiest rank; arrays, of one number where the layout is one."""

    tensor: Array
    pipeline: Array
    interleave: Array
    context: Array
    data: Array
    expert: Array
    micro_batches: Array
    tokens: Array
    """Of a micro-batch: b s / c."""
    read: Array
    """The same, that an encoder reads."""
    layers: float
    """Of the model."""
    held: Array
    """Layers of the busiest stage."""
    uneven: Array
    """Whether embedding and head take a layer's place."""
    again: Array
    """Forward passes that are computed again: 0, 0.5 or 1."""
    selective: Array
    """1 where the pattern alone is."""
    frozen: bool
    """Whether most weights get no gradient."""

    @property
    def accelerators(self) -> Array:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def passes(self) -> Array:
        """Over each product: forward, one for each of two gradients, and again."""
        return (2.0 if self.frozen else 3.0) + self.again

    @property
    def part(self) -> Array:
        """Of the model's layers, on the busiest stage."""
        return self.held / self.layers


def share_of(job: Job) -> Share:
    """Of one rank of the job."""
    a, lay = job.architecture, job.layout
    numbers = (lay.tensor, lay.pipeline, lay.interleave, lay.context, lay.data, lay.expert, lay.micro_batch)
    tensor, pipeline, interleave, context, data, expert, rows = (np.asarray(n, float) for n in numbers)
    layers = float(a.all_layers if a.kind != "network" else len(a.widths) - 1)
    parts = pipeline * interleave
    uneven = np.mod(layers, parts) > 0
    held = np.where(uneven, (layers + 2) / pipeline, np.ceil(layers / parts) * interleave)
    mode, operations = np.asarray(lay.recompute), job.software.selective == "operations"
    selective = mode == Recompute.SELECTIVE
    return Share(
        tensor=tensor, pipeline=pipeline, interleave=interleave, context=context, data=data, expert=expert,
        micro_batches=np.maximum(np.asarray(job.micro_batches, float), 1e-9),
        tokens=rows * job.length / context, read=rows * (job.read_length or job.length) / context,
        layers=max(1.0, layers), held=held, uneven=uneven,
        again=1.0 * (mode == Recompute.FULL) + 0.5 * selective * operations,
        selective=1.0 * selective * (not operations), frozen=job.trained is not None,
    )  # fmt: skip
