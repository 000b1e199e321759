"""How a run is divided over accelerators, and what it reads: `Layout` and `Job`.

The numbers of a layout may be integers or numpy arrays that broadcast: every formula of this room is written for both,
so one run and a hundred thousand layouts are the same call.

    accelerators = data x tensor x pipeline x context        experts lie across data x context
    micro-batches of a step M = batch / (data x micro_batch)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.plan.architecture import Architecture
from glassformer.plan.hardware import Accelerator
from glassformer.plan.precision import Precision
from glassformer.plan.software import USUAL, Software

Number = int | float | NDArray[Any]


CHOICES = (
    "data", "tensor", "pipeline", "interleave", "context", "expert", "sharding", "micro_batch", "recompute",
)  # fmt: skip
"""What a layout decides, by the names of its numbers."""


class Recompute(IntEnum):
    """What the backward pass computes again."""

    NONE = 0
    SELECTIVE = 1
    """The attention pattern (Korthikanti et al. 2022, 2205.05198)."""
    FULL = 2
    """Every layer, from what it read."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to divide a step; or many, where the numbers are arrays."""

    data: Number = 1
    """n_dp: replicas, each with its own rows."""
    tensor: Number = 1
    """t: ranks among which each matrix is divided."""
    pipeline: Number = 1
    """p: stages of layers."""
    interleave: Number = 1
    """v: parts of the layers that each stage holds, not next to each other."""
    context: Number = 1
    """c: ranks among which the tokens of a row are divided."""
    expert: Number = 1
    """x: ranks among which the experts are divided."""
    sharding: Number = 0
    """ZeRO stage (1910.02054): 1 the optimiser's states are divided among replicas, 2 gradients too, 3 weights too."""
    micro_batch: Number = 1
    """b: rows that a replica computes at once."""
    recompute: Number = Recompute.NONE
    sequence_parallel: Number = 1
    """1: norms and residuals are divided among the tensor ranks too."""

    @property
    def accelerators(self) -> Number:
        return self.data * self.tensor * self.pipeline * self.context

    def at(self, place: int) -> Layout:
        """One of many, with plain integers."""
        found = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        return Layout(**{name: int(v.ravel()[place % v.size]) for name, v in found.items()})


@dataclass(frozen=True, slots=True)
class Job:
    """A training step to be planned."""

    architecture: Architecture
    accelerator: Accelerator
    precision: Precision
    layout: Layout
    batch: int
    """B: rows in a step, over all replicas."""
    length: int
    """s: tokens in a row; of an encoder-decoder, of the row that is written."""
    read_length: int = 0
    """Tokens of the row that an encoder-decoder reads."""
    optimizer: str = "adamw"
    causal_half: bool = True
    """Whether attention kernels skip what a causal mask hides."""
    fused_attention: bool = True
    """Whether patterns are never written to memory (FlashAttention, 2205.14135)."""
    chunked_loss: bool = False
    """Whether the logits never exist whole."""
    trained: int | None = None
    """Parameters that are trained (LoRA's adapters); all where None."""
    frozen_bytes: float = 2.0
    """A parameter of a layer's matrices, where it is frozen."""
    software: Software = USUAL
    """What runs it, where memory depends on that."""

    @property
    def micro_batches(self) -> Number:
        """M; 0 or less than one where the batch does not reach."""
        return self.batch / (self.layout.data * self.layout.micro_batch)

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.length
