"""Every numbered place inside a model: its name, shape and meaning. One table; everything else reads it.

Inside the model each place is one call, `y = see("blocks.3.attn.pattern", y)`. The model goes on with what
comes back, so a `see` may record, replace or keep a gradient. By default nothing is seen and the fused fast
path runs. Names are those of TransformerLens without `hook_`.

Axes: batch, position (a token in the row), query and key (positions, as attention uses them), next (positions
that have one after them), head, kv_head, head_size, width, feedforward, vocab.

The blocks of an encoder-decoder are `encoder.3.` and `decoder.3.` where the table says `blocks.{layer}.`, and
what comes before and after its stacks is named after the stack too: `encoder.embed`, `decoder.ln_final.scale`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

from glassformer.errors import UsageError, nearest
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import stacks


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
    if isinstance(see, _Within):  # a part of a part: one step, not two
        return _Within(see.see, f"{see.prefix}.{prefix}")
    return unseen if see is unseen else _Within(see, prefix)


def chained(*sees: See) -> See:
    """Several, one after the other: each gets what the one before gave back."""
    return _Chained(sees)


class _Chained:
    def __init__(self, sees: tuple[See, ...]) -> None:
        self.sees = sees

    def __call__(self, name: str, y: Any, /) -> Any:
        for see in self.sees:
            if wants(see, name):
                y = see(name, y)
        return y

    def wants(self, name: str) -> bool:
        return any(wants(see, name) for see in self.sees)


class _Within:
    def __init__(self, see: See, prefix: str) -> None:
        self.see, self.prefix = see, prefix

    def __call__(self, name: str, y: Any, /) -> Any:
        return self.see(f"{self.prefix}.{name}", y)

    def wants(self, name: str) -> bool:
        return wants(self.see, f"{self.prefix}.{name}")


class Place(NamedTuple):
    """One numbered place. `{layer}` in the name stands for the block's number."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    only: str = ""
    """The feature without which a model lacks it, see `_features`."""


_RESIDUAL = ("batch", "position", "width")
_SCALE = ("batch", "position", "one")
_HEADS = ("batch", "position", "head", "head_size")
_KEY = ("batch", "position", "kv_head", "head_size")
_SCORES = ("batch", "head", "query", "key")
_NEURONS = ("batch", "position", "feedforward")


def _attention(attn: str, where: str = "", only: str = "", turned: str = "turned") -> list[Place]:
    """The places of one attention, in order."""
    # what cross-attention is given are keys as they were remembered, normed already
    rot_k = [] if attn == "cross_attn" else [("rot_k", _KEY, "keys after QK norm and rotation", turned)]
    rows = [
        ("q", _HEADS, "queries", only),
        ("rot_q", _HEADS, "queries after QK norm and rotation, as they meet the keys", turned),
        ("k", _KEY, "keys", only),
        *rot_k,
        ("v", _KEY, "values", only),
        ("dots", _SCORES, "q . k, before scaling and mask", only),
        ("scaled", _SCORES, "q . k / sqrt(head_size)", only),
        ("scores", _SCORES, "the same plus ALiBi, masked to -inf", only),
        ("pattern", _SCORES, "softmax of the scores over keys", only),
        ("z", _HEADS, "values blended by the pattern, per head", only),
        ("result", (*_HEADS[:3], "width"), f"each head's share of {attn}_out", only),
    ]
    block = "blocks.{layer}."
    places = [Place(f"{block}{attn}.{name}", axes, text + where, has) for name, axes, text, has in rows]
    return [*places, Place(f"{block}{attn}_out", _RESIDUAL, f"what it adds to the stream{where}", only)]


PLACES: tuple[Place, ...] = (
    Place("embed", _RESIDUAL, "the token's vector"),
    Place("pos_embed", _RESIDUAL[1:], "the position's vector, added (learned, sinusoidal)", "added positions"),
    Place("type_embed", _RESIDUAL, "the vector of the row's part, added", "types"),
    Place("embed_ln.scale", _SCALE, "what the norm of their sum divides by", "embed norm"),
    Place("embed_ln.normalized", _RESIDUAL, "what it gives", "embed norm"),
    Place("blocks.{layer}.resid_pre", _RESIDUAL, "the residual stream entering the block"),
    Place("blocks.{layer}.ln1.scale", _SCALE, "what the norm of attention divides by"),
    Place("blocks.{layer}.ln1.normalized", _RESIDUAL, "what it gives, gain and bias included"),
    *_attention("attn"),
    Place("blocks.{layer}.resid_mid", _RESIDUAL, "the stream after attention", "in turn"),
    Place("blocks.{layer}.ln_cross.scale", _SCALE, "what the norm of cross-attention divides by", "cross"),
    Place("blocks.{layer}.ln_cross.normalized", _RESIDUAL, "what it gives", "cross"),
    *_attention("cross_attn", " (from the decoder's row to the encoder's)", "cross", "cross turned"),
    Place("blocks.{layer}.resid_mid_cross", _RESIDUAL, "the stream after cross-attention", "cross"),
    Place("blocks.{layer}.ln2.scale", _SCALE, "what the norm of feed-forward divides by", "mlp"),
    Place("blocks.{layer}.ln2.normalized", _RESIDUAL, "what it gives", "mlp"),
    Place("blocks.{layer}.mlp.pre", _NEURONS, "each neuron's weighted sum, which the activation is given", "mlp"),
    Place("blocks.{layer}.mlp.pre_linear", _NEURONS, "what multiplies the activation (gated)", "gated"),
    Place("blocks.{layer}.mlp.post", _NEURONS, "each neuron's activation", "mlp"),
    Place("blocks.{layer}.mlp_out", _RESIDUAL, "what feed-forward adds to the stream", "mlp"),
    Place("blocks.{layer}.resid_post", _RESIDUAL, "the residual stream leaving the block"),
    Place("ln_final.scale", _SCALE, "what the last norm divides by (pre)", "pre"),
    Place("ln_final.normalized", _RESIDUAL, "what it gives", "pre"),
    Place("pooled", ("batch", "width"), "the vector that stands for the row", "pooled"),
    Place("logits", ("batch", "position", "vocab"), "one score for every token that could stand here", "tokens"),
    Place("probabilities", ("batch", "position", "vocab"), "softmax of the logits; nothing follows from it", "tokens"),
    Place("loss", ("batch", "next"), "-log p of the token that came next, in nats; nothing follows from it", "writes"),
    Place("class_logits", ("batch", "class"), "one score for every class", "classes"),
    Place("class_probabilities", ("batch", "class"), "their softmax; nothing follows from it", "classes"),
)  # fmt: skip

NOTHING_FOLLOWS = ("probabilities", "class_probabilities", "loss")
"""Places that are shown and not used: putting other numbers there has no effect, and no blame comes back to them."""


def canonical(name: str) -> str:
    """Our name for TransformerLens's: `blocks.0.attn.hook_attn_scores -> blocks.0.attn.scores`."""
    name = re.sub(r"(^|\.)hook_", r"\1", name)
    name = {"unembed.in": "ln_final.normalized", "unembed.out": "logits"}.get(name, name)
    return re.sub(r"attn\.attn_scores$", "attn.scores", name)


def _features(config: ModelConfig) -> set[str]:
    """What a model has that not every model has."""
    turned = config.positions == "rope" or config.qk_norm
    found = {
        "added positions": config.positions == "learned" or config.positions.startswith("sinusoidal"),
        "types": config.token_types > 0,
        "embed norm": config.embed_norm,
        "pre": config.norm_place == "pre",
        "in turn": not config.parallel,
        "cross": config.kind == "encoder-decoder",
        "turned": turned,
        "cross turned": config.kind == "encoder-decoder" and config.qk_norm,
        "mlp": config.ff_width > 0,
        "gated": config.gated and config.ff_width > 0,
        "pooled": config.pooler or config.head == "classes",
        "tokens": config.head == "tokens",
        "writes": config.kind != "encoder",
        "classes": config.head == "classes",
    }
    return {"", *(name for name, has in found.items() if has)}


def names(config: ModelConfig) -> list[str]:
    """Every place this model has, in the order of a forward pass, block by block."""
    features = _features(config)
    here = [place.name for place in PLACES if place.only in features]
    inside = [name for name in here if "{layer}" in name]
    first, last = here.index(inside[0]), here.index(inside[-1]) + 1
    outputs = [name for name in here[last:] if not name.startswith("ln_final")]
    norm = [name for name in here[last:] if name.startswith("ln_final")]
    found = []
    for stack in stacks(config):
        own = "" if stack.name == "blocks" else f"{stack.name}."
        found += [own + name for name in here[:first]]
        for layer in range(stack.layers):
            block = [name for name in inside if stack.cross or "cross" not in name]
            found += [name.replace("blocks", stack.name, 1).format(layer=layer) for name in block]
        found += [own + name for name in norm]
    return found + outputs


@lru_cache(maxsize=4096)
def find(name: str) -> Place:
    """The table's row of a place: `blocks.3.attn.hook_q -> blocks.{layer}.attn.q`."""
    general = re.sub(r"^(blocks|encoder|decoder)\.\d+\.", "blocks.{layer}.", canonical(name))
    general = re.sub(r"^(encoder|decoder)\.", "", general)
    for place in PLACES:
        if place.name == general:
            return place
    known = nearest(general, [place.name for place in PLACES])
    raise UsageError(f"There is no place {name!r}; {known}", do="Write the block's number for {layer}.")
