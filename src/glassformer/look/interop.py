"""A trace in the words of other tools.

    cache = gf.transformer_lens_names(gf.look(model, text, "*"))     blocks.0.attn.hook_pattern -> tensor
    head_view(gf.attention_tuple(trace), trace.tokens)               BertViz, and what reads transformers' output

TransformerLens's names are ours with `hook_` before the last word; shapes and axes are the same but for
`hook_pos_embed`, which there has a batch axis. Where it has no name of its own (`attn.dots`, cross-attention's
norm) ours gets the same `hook_`, so that every name leads back: `trace[theirs] is trace[ours]`.
`hook_normalized` includes gain and bias, as in HookedTransformer; TransformerLens 4 calls that `hook_out`.
As with transformers' `output_attentions=True`, attention is one tensor for each layer: (batch, head, query, key).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from glassformer.errors import UsageError, nearest
from glassformer.look.trace import Trace
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import stacks

Which = Literal["encoder", "decoder", "cross"]


def transformer_lens_names(trace: Trace) -> dict[str, Tensor]:
    """What was recorded, under TransformerLens's names, in the order of the pass. Nothing is copied.

    A decoder's last norm is `unembed.hook_in` as well, its logits are `unembed.hook_out`.
    """
    config = _transformer(trace)
    found: dict[str, Tensor] = {}
    for place, tensor in trace.items():
        where, _, last = place.rpartition(".")
        if last == "pos_embed":  # one table for all rows: shown once for each of them
            tensor = tensor.expand(len(trace.reading.inputs[0]), *tensor.shape)
        name = f"{where}.hook_{last}".lstrip(".").replace("hook_scores", "hook_attn_scores")
        found["unembed.hook_out" if place == "logits" else name] = tensor
        if place == "ln_final.normalized" and config.kind == "decoder":
            found["unembed.hook_in"] = tensor
    return found


def attention_tuple(trace: Trace, which: Which | None = None) -> tuple[Tensor, ...]:
    """The pattern of each layer, (batch, head, query, key). Of an encoder-decoder `which` says whose: the
    encoder's, the decoder's own, or the decoder's over the source ("cross").

    Raises UsageError where a layer's pattern was not recorded: a tuple with gaps would number the layers wrongly.
    """
    config = _transformer(trace)
    pair = config.kind == "encoder-decoder"
    if pair != (which is not None):
        raise UsageError(
            f"The model is of kind '{config.kind}', and which = {which!r} was given.",
            expected="An encoder-decoder has three: 'encoder', 'decoder', 'cross'; others one, and take none.",
        )
    if which not in (None, "encoder", "decoder", "cross"):
        raise UsageError(f"which = {which!r}: {nearest(str(which), ['encoder', 'decoder', 'cross'])}")
    name = {None: "blocks", "cross": "decoder"}.get(which, which)
    (layers,) = [stack.layers for stack in stacks(config) if stack.name == name]
    attn = "cross_attn" if which == "cross" else "attn"
    places = [f"{name}.{layer}.{attn}.pattern" for layer in range(layers)]
    if missing := [place for place in places if place not in trace]:
        raise UsageError(
            f"{len(missing)} of {layers} layers' patterns were not recorded, {missing[0]!r} first.",
            do=f"gf.look(model, text, '{name}.*.{attn}.pattern') records them all.",
        )
    return tuple(trace[place] for place in places)


def _transformer(trace: Trace) -> ModelConfig:
    config = trace.reading.model.config
    if not isinstance(config, ModelConfig):
        raise UsageError("A plain network has no attention, and no names in TransformerLens.")
    return config
