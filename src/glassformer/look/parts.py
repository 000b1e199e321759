"""Names for parts of a model that can be switched off or changed as one.

    L18H6      head 6 of layer 18                      its z, see model/places.py
    L3N120     neuron 120 of layer 3's feed-forward    its mlp.post
    L5attn     all that layer 5's attention adds       attn_out
    L5mlp      all that its feed-forward adds          mlp_out

Of an encoder-decoder each is of one stack, `encoder.L0H1`, `decoder.L0H1`; its decoder's cross-attention is
`decoder.L0X1` (head 1) and `decoder.L0cross` (all of it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from glassformer.errors import UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.places import names
from glassformer.model.shapes import stacks

_NAME = re.compile(r"(?:(\w+)\.)?L(\d+)(?:([HNX])(\d+)|(attn|mlp|cross))")
_ONE = {
    "H": ("attn.z", "head", "num_heads"),
    "X": ("cross_attn.z", "head", "num_heads"),
    "N": ("mlp.post", "feedforward", "ff_width"),
}
_WHOLE = {"attn": "attn_out", "mlp": "mlp_out", "cross": "cross_attn_out"}


@dataclass(frozen=True, slots=True)
class Part:
    """A named part: the place that holds its output, and which of it."""

    name: str
    place: str
    at: Mapping[str, Sequence[int]] = field(default_factory=dict)


def head_name(layer: int, head: int) -> str:
    """`L18H6`."""
    return f"L{layer}H{head}"


def part(name: str, config: ModelConfig) -> Part:
    """The part of this name. Raises UsageError for one that the model lacks, and says what it has."""
    found, own = _NAME.fullmatch(name), [stack.name for stack in stacks(config)]
    if not found:
        raise UsageError(
            f"{name!r} is not the name of a part.",
            expected="L18H6 (a head), L3N120 (a neuron), L5attn or L5mlp"
            + (", L0X1 or L0cross (cross-attention), after 'encoder.' or 'decoder.'." if own[1:] else "."),
        )
    stack, layer, letter, number, whole = found.groups()
    stack = stack or own[0] if len(own) == 1 else stack
    if stack not in own:
        raise UsageError(
            f"{name!r} does not say which stack is meant."
            if stack is None
            else f"There is no stack {stack!r}.",
            expected="Expected a name such as " + " or ".join(f"{each}.L0H0" for each in own) + ".",
        )
    layers = next(each.layers for each in stacks(config) if each.name == stack)
    if int(layer) >= layers:
        raise UsageError(f"{name}: there is no layer {layer}.", expected=f"{stack} has 0 to {layers - 1}.")
    place, axis, count = _ONE[letter] if letter else (_WHOLE[whole], "", "")
    full = f"{stack}.{layer}.{place}"
    if full not in names(config):
        raise UsageError(f"{name}: this model has no {full}.")
    if not letter:
        return Part(name, full)
    size: int = getattr(config, count)
    if int(number) >= size:
        raise UsageError(f"{name}: there is no {axis} {number}.", expected=f"Expected 0 to {size - 1}.")
    return Part(name, full, {axis: [int(number)]})
