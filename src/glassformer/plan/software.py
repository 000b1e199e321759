"""What of a program decides how much memory and time a step takes, beyond the mathematics: `Software`.

The defaults are those of today's trainers on accelerators: fused kernels, no dropout, 1F1B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Software:
    """How a program keeps what the backward pass needs, and how good its kernels and schedules are."""

    fused_kernels: bool = True
    """Norms and activations keep what they read and nothing else (compiled, Apex, Liger); otherwise each operation
    keeps its own, norms in float32."""
    fused_loss: bool = False
    """Logits and their gradient exist in 16 bits only: the float32 values stay inside one kernel."""
    selective: Literal["attention", "operations"] = "attention"
    """What `Recompute.SELECTIVE` computes again: the attention pattern (Megatron), or every second product and all
    that is cheap (torchtitan's `op`)."""
    dropout: bool = False
    """Masks, a byte an entry, after attention, feed-forward and pattern."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """GPipe (1811.06965) keeps every micro-batch of a step, 1F1B (2006.09503) those in flight."""
    offload_optimizer: bool = False
    """Masters and the optimiser's numbers are in the host's memory."""
    year: float = 2026.0
    """Of its release."""
    engine: Literal["megatron", "deepspeed", "torch", "jax"] = "megatron"
    """What runs the pipeline and the exchanges."""
    native_attention: bool = True
    """Fused attention is written for this generation (FlashAttention 3, cuDNN), not for the one before
    (FlashAttention 2 on H100)."""
    fused_elements: bool = True
    """Norms, activations and residuals run in few kernels (torch.compile, XLA, kernels by hand), not one by one."""
    biased_attention: bool = False
    """Fused attention adds a bias to the scores (ALiBi), which its kernels do more slowly."""
    graphs: bool = False
    """Kernels are launched from a recorded graph: the host never keeps them waiting."""
    tensor_overlap: bool = False
    """Tensor-parallel messages run under the products that they belong to (async TP, user buffers)."""
    offloaded: bool = False
    """The optimiser's states are in the host's memory, and it updates there."""
    adapter: Literal["lora", "prefix", "scale"] = "lora"
    """Where only adapters are trained: matrices beside q and v (2106.09685), vectors that attention reads besides
    (2303.16199), or a scale on every product (2304.15010), which keeps every product's output."""
