"""Every numbered place inside a model: its name, shape and meaning. One table; everything else reads it.

Inside the model each place is one call, `y = see("blocks.3.attn.pattern", y)`. The model goes on with what
comes back, so a `see` may record, replace or keep a gradient. By default nothing is seen and the fused fast
path runs. Names are those of TransformerLens without `hook_`.

Axes: batch, position (a token in the row), query and key (positions, as attention uses them), head, kv_head,
head_size, width, feedforward, vocab.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from glassformer.errors import UsageError, nearest
from glassformer.model.config import ModelConfig


@runtime_checkable
class See(Protocol):
    """`see(name, y) -> y`. It may have `wants(name) -> bool`; without it, it is asked about every place."""

    def __call__(self, name: str, y: Any, /) -> Any: ...


def unseen(name: str, y: Any, /) -> Any:
    """The default `see`: looks at nothing."""
    return y


def wants(see: See, *names: str) -> bool:
    """Whether `see` asks for any of these places, so that the explicit path must run."""
    if see is unseen:
        return False
    asked = getattr(see, "wants", None)
    return asked is None or any(asked(name) for name in names)


def within(see: See, prefix: str) -> See:
    """`see` for one part of the model, which then needs not know where in the model it stands."""
    return unseen if see is unseen else _Within(see, prefix)


class _Within:
    def __init__(self, see: See, prefix: str) -> None:
        self.see, self.prefix = see, prefix

    def __call__(self, name: str, y: Any, /) -> Any:
        return self.see(f"{self.prefix}.{name}", y)

    def wants(self, name: str) -> bool:
        return wants(self.see, f"{self.prefix}.{name}")


def _always(config: ModelConfig) -> bool:
    return True


def _pre(config: ModelConfig) -> bool:
    return config.norm_place == "pre"


def _in_turn(config: ModelConfig) -> bool:
    return not config.parallel


def _gated(config: ModelConfig) -> bool:
    return config.gated


def _added(config: ModelConfig) -> bool:
    return config.positions in ("learned", "sinusoidal")


class Place(NamedTuple):
    """One numbered place. `{layer}` in the name stands for the block's number."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    exists: Callable[[ModelConfig], bool] = _always


_RESIDUAL = ("batch", "position", "width")
_SCALE = ("batch", "position", "one")
_HEADS = ("batch", "position", "head", "head_size")
_KEY = ("batch", "position", "kv_head", "head_size")
_SCORES = ("batch", "head", "query", "key")
_NEURONS = ("batch", "position", "feedforward")

PLACES: tuple[Place, ...] = (
    Place("embed", _RESIDUAL, "the token's vector"),
    Place("pos_embed", ("position", "width"), "the position's vector, added (learned, sinusoidal)", _added),
    Place("blocks.{layer}.resid_pre", _RESIDUAL, "the residual stream entering the block"),
    Place("blocks.{layer}.ln1.scale", _SCALE, "what the norm of attention divides by"),
    Place("blocks.{layer}.ln1.normalized", _RESIDUAL, "what it gives, gain and bias included"),
    Place("blocks.{layer}.attn.q", _HEADS, "queries, after QK norm and rotation"),
    Place("blocks.{layer}.attn.k", _KEY, "keys, after QK norm and rotation"),
    Place("blocks.{layer}.attn.v", _KEY, "values"),
    Place("blocks.{layer}.attn.dots", _SCORES, "q . k, before scaling and mask"),
    Place("blocks.{layer}.attn.scores", _SCORES, "q . k / sqrt(head_size) plus ALiBi, masked to -inf"),
    Place("blocks.{layer}.attn.pattern", _SCORES, "softmax of the scores over keys"),
    Place("blocks.{layer}.attn.z", _HEADS, "values blended by the pattern, per head"),
    Place("blocks.{layer}.attn.result", (*_HEADS[:3], "width"), "each head's share of attn_out"),
    Place("blocks.{layer}.attn_out", _RESIDUAL, "what attention adds to the stream"),
    Place("blocks.{layer}.resid_mid", _RESIDUAL, "the stream between attention and feed-forward", _in_turn),
    Place("blocks.{layer}.ln2.scale", _SCALE, "what the norm of feed-forward divides by"),
    Place("blocks.{layer}.ln2.normalized", _RESIDUAL, "what it gives"),
    Place("blocks.{layer}.mlp.gate", _NEURONS, "each gate's weighted sum (gated)", _gated),
    Place("blocks.{layer}.mlp.pre", _NEURONS, "each neuron's weighted sum"),
    Place("blocks.{layer}.mlp.post", _NEURONS, "each neuron's activation"),
    Place("blocks.{layer}.mlp_out", _RESIDUAL, "what feed-forward adds to the stream"),
    Place("blocks.{layer}.resid_post", _RESIDUAL, "the residual stream leaving the block"),
    Place("ln_final.scale", _SCALE, "what the last norm divides by (pre)", _pre),
    Place("ln_final.normalized", _RESIDUAL, "what it gives", _pre),
    Place("logits", ("batch", "position", "vocab"), "one score for every token that could come next"),
)  # fmt: skip


def canonical(name: str) -> str:
    """Our name for TransformerLens's: `blocks.0.attn.hook_attn_scores -> blocks.0.attn.scores`.

    Its `rot_q` and `rot_k` are our q and k, which are those that meet in the product.
    """
    name = re.sub(r"(^|\.)hook_", r"\1", name)
    return re.sub(r"\.attn\.(?:attn_(scores)|rot_([qk]))$", r".attn.\1\2", name)


def names(config: ModelConfig) -> list[str]:
    """Every place this model has, in the order of the table, block by block."""
    here = [place.name for place in PLACES if place.exists(config)]
    inside = [name for name in here if "{layer}" in name]
    first = here.index(inside[0])
    blocks = [name.format(layer=layer) for layer in range(config.layers) for name in inside]
    return here[:first] + blocks + here[first + len(inside) :]


def find(name: str) -> Place:
    """The table's row of a place: `blocks.3.attn.hook_q -> blocks.{layer}.attn.q`."""
    general = re.sub(r"^blocks\.\d+\.", "blocks.{layer}.", canonical(name))
    for place in PLACES:
        if place.name == general:
            return place
    known = nearest(general, [place.name for place in PLACES])
    raise UsageError(f"There is no place {name!r}; {known}", do="Write the block's number for {layer}.")
