"""What of a program decides how much memory and time a step takes, beyond the mathematics: `Software`.

The defaults are those of today's trainers on accelerators: fused kernels, no dropout, 1F1B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Software:
    """How a program keeps what the backward pass needs, and how its kernels and messages run."""

    fused_kernels: bool = True
    """Norms and activations keep what they read and nothing else (compiled, Apex, Liger); otherwise each operation
    keeps its own, norms in float32."""
    loss: Literal["in_place", "torch", "fused"] = "in_place"
    """What exists of the logits at once: 16 bits, a float32 copy that the loss works in, and the gradient (Megatron);
    the float32 logarithms besides, and where tensor ranks divide them their exponentials (torch's cross-entropy); or
    16-bit logits and gradient only (compiled, Liger)."""
    selective: Literal["attention", "operations"] = "attention"
    """What `Recompute.SELECTIVE` computes again: the attention pattern (Megatron), or every second product and all
    that is cheap (torchtitan's `op`)."""
    dropout: bool = False
    """Masks, a byte an entry, after attention, feed-forward and pattern."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """GPipe (1811.06965) keeps every micro-batch of a step, 1F1B (2006.09503) those in flight."""
    offload_optimizer: bool = False
    """Masters, the optimiser's numbers and sharded gradients are in the host's memory."""
    engine: Literal["torch", "deepspeed", "megatron", "jax"] = "torch"
    """DeepSpeed's ZeRO reduces and gathers in buckets of 5e8 numbers, updates from one flat float32 gradient of its
    shard, keeps up to 1e9 numbers gathered in stage 3, and a pipeline stage's outputs until their gradient comes."""
    year: float = 2026.0
    """Of its release."""
    native_attention: bool = True
    """Fused attention is written for this generation of accelerators (FlashAttention 3, cuDNN), not for the one before
    (FlashAttention 2 on H100)."""
    biased_attention: bool = False
    """Fused attention adds a bias to the scores (ALiBi), which its kernels do more slowly."""
    tensor_overlap: bool = False
    """Tensor-parallel messages run under the products that they belong to (async TP, user buffers)."""
    fixed_capacity: bool = False
    """Every expert takes a fixed number of tokens and drops the rest: the host need not wait for their counts."""
    graphs: bool = False
    """Kernels are launched from a recorded graph: the host never keeps them waiting."""
    adapter: Literal["lora", "prefix", "scale"] = "lora"
    """Where only adapters are trained: matrices beside q and v (2106.09685), vectors that attention reads besides
    (2303.16199), or norms and a scale on every product (2304.15010), which keeps every product's output."""
    copies: int = 0
    """Whole copies of weights and optimiser in the host's memory: one to go back to, one while it is written."""


USUAL = Software()
GLASSFORMER = Software(fused_kernels=False, copies=2)
"""What trains a recipe here: eager, the last good state and a save in flight kept beside (`faults.remember_every`,
`train.save_beside`)."""
