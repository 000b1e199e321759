"""Less memory for more work: part of the activations is not kept for the backward pass but computed again.

`engine.activation_memory` is the share of the activations that may be kept, 1 for all. A block whose activations are
dropped costs its forward pass once more, so at 0 a step does 4 / 3 of the products (forward 1, backward 2; Chen et al.
2016).

    eager      the first blocks that it takes by model/count.py keep only what they read (`Block.recomputed`); the rest
               of each comes again when the backward pass gets there, with the same random numbers. Losses and gradients
               are the same to the bit. Under FSDP2 this is inside of each sharded block, which gathers its weights
               for the backward pass before anything is computed again.
    compiled   torch's own `activation_memory_budget`: its compiler picks the tensors. Fused otherwise, sums may be
               rounded otherwise, in the last digits. With dropout it is not used: what the compiler computes again it
               draws new noise for (pytorch/pytorch#190758), and the gradient would be of another network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from glassformer.model.count import num_recomputed
from glassformer.model.transformer import Transformer

if TYPE_CHECKING:
    from glassformer.train.engine import Choice


def recompute_blocks(model: nn.Module, choice: Choice) -> int:
    """Let as many blocks be computed again as the choice says, and return how many those are; the compiler picks
    for itself."""
    if not isinstance(model, Transformer):
        return 0
    count = 0
    if not choice.compiled:
        fused = choice.attention != "explicit"
        count = num_recomputed(
            model.config, choice.activation_memory, precision=choice.precision, fused=fused
        )
    model.recompute(count)
    return count
