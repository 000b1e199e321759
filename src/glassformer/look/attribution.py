"""Direct logit attribution: why this token rather than that one, component by component.

The residual stream is a sum: token vector + position + every head's result + every neuron's write + biases. So is a
logit, once each norm's scale s is held at the value it had (Elhage et al. 2021):

    logit(a) - logit(b) = g . y + head bias            g = W_U[a] - W_U[b]; of one logit, g = W_U[a]
    y = N(x) gain / s + bias,  N(x) = x - mean(x)      LayerNorm; of RMSNorm N(x) = x
    g . y = N(g gain) / s . x + g . bias               so the direction moves, through the norm, to what it read

A pre-norm model has one norm on the way, its last; of a post-norm model the direction is carried back through every
norm, from the last to the first. A component c gives g . c, with the g of the place where it is written. Nothing is
left out, so the components sum to the chosen logit or difference but for rounding, and `remainder` says how much.

This is the direct effect alone: what a component does through later layers is theirs (patching tells that).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer import charts
from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import position_of, scorer, token_id
from glassformer.look.reading import Model, Reading, Text
from glassformer.model.attention import Attention
from glassformer.model.block import Block
from glassformer.model.norms import Norm
from glassformer.model.shapes import stacks
from glassformer.model.transformer import Transformer

Per = Literal["head", "layer", "neuron", "token"]
"""How finely: by heads and whole feed-forwards; by whole layers' halves; by heads and neurons; by heads and the tokens
they read from, and whole feed-forwards."""

Direction = Float[Tensor, " width"]


@dataclass(frozen=True, slots=True)
class Attribution:
    """What each component adds to the logit of `token`, or to its lead over `instead`, at one position."""

    reading: Reading = field(repr=False)
    position: int
    token: int
    instead: int | None
    per: Per
    parts: dict[str, Float[Tensor, "*component"]] = field(repr=False)
    """By place or weight, in the order of a pass: `embed`, `blocks.0.attn.result` (head, or head by key),
    `blocks.0.attn.out.bias`, `blocks.0.mlp.post` (neuron), `blocks.0.mlp_out`, `norm.bias`, ..."""
    logit: float
    """The logit, or the difference of two, that the model gave."""
    top: int | None = 20
    """Components shown by `rows`; None shows all."""

    @property
    def total(self) -> float:
        """The sum of all components."""
        return sum(part.sum().item() for part in self.parts.values())

    @property
    def remainder(self) -> float:
        """What the components do not explain: rounding."""
        return self.logit - self.total

    @property
    def words(self) -> tuple[str, str | None]:
        """The token, and the one it is compared with."""
        token, *instead = self.reading.words([self.token, *([] if self.instead is None else [self.instead])])
        return token, instead[0] if instead else None

    def rows(self) -> list[dict[str, Any]]:
        """The `top` components by size, the largest first, and in one row all others: they sum to `total`."""
        flat = torch.cat([part.flatten() for part in self.parts.values()])
        most = len(flat) if self.top is None else min(self.top, len(flat))
        order = flat.abs().argsort(descending=True, stable=True)[:most]
        rows = [{**self._component(index), "value": flat[index].item()} for index in order.tolist()]
        if most < len(flat):
            rest = self.total - sum(row["value"] for row in rows)
            rows.append({"component": f"{len(flat) - most:,} others", "value": rest})
        return rows

    def to_dict(self) -> dict[str, Any]:
        token, instead = self.words
        return {
            "schema": "glassformer.attribution",
            "version": 1,
            "tokens": self.reading.tokens,
            "position": self.position,
            "token": token,
            "token_id": self.token,
            "instead": instead,
            "instead_id": self.instead,
            "per": self.per,
            "rows": self.rows(),
            "total": self.total,
            "logit": self.logit,
            "remainder": self.remainder,
        }

    def chart(self) -> charts.Spec:
        """A bar for each of `rows`."""
        token, instead = self.words
        why = f"Why {token!r}" + ("" if instead is None else f" rather than {instead!r}")
        title = "added to the logit" + ("" if instead is None else " difference")
        return charts.bars(self.rows(), "component", "value", title=why, value_title=title)

    def _component(self, index: int) -> dict[str, Any]:
        """What the entry of this number is, counted through all parts."""
        for name, part in self.parts.items():
            if index < part.numel():
                return self._named(name, part, index)
            index -= part.numel()
        raise IndexError(index)

    def _named(self, name: str, part: Tensor, index: int) -> dict[str, Any]:
        number = name.split(".")[1] if "." in name else ""
        layer = {"layer": int(number)} if number.isdigit() else {}
        if not part.ndim:
            return {"component": name, **layer}
        if name.endswith(".mlp.post"):
            return {"component": f"{name.removesuffix('.post')} neuron {index}", **layer, "neuron": index}
        head, source = divmod(index, part.shape[1]) if part.ndim == 2 else (index, None)
        row = {"component": f"{name.removesuffix('.result')} head {head}", **layer, "head": head}
        if source is None:
            return row
        cross = ".cross_attn." in name
        word = (self.reading.source_tokens if cross else self.reading.tokens)[source]
        return {
            **row,
            "component": f"{row['component']} from {source} {word!r}",
            "source": source,
            "source_token": word,
        }


@torch.no_grad()
def attribute(
    model: Model,
    text: Text,
    token: str | int | None = None,
    instead: str | int | None = None,
    *,
    position: int = -1,
    target: Text | None = None,
    per: Per = "head",
    top: int | None = 20,
) -> Attribution:
    """Why the model says `token` (left out: the likeliest) rather than `instead` at a position, or without
    `instead` why the token's logit is what it is: every component's share of it, scales of norms held.

    `per="token"` splits a head by the tokens it reads from, value by value, weighed by the pattern. An
    encoder-decoder reads the text and writes `target`; the components are its decoder's, cross-attention among
    them. An encoder whose head transforms the stream first is refused: that is not a sum.
    """
    if per not in get_args(Per):
        raise UsageError(
            f"There is no per={per!r}.", expected=f"It can be {', '.join(map(repr, get_args(Per)))}."
        )
    if top is not None and top < 1:
        raise UsageError(f"top is {top}.", expected="At least 1, or None for all components.")
    reading = Reading.of(model, text, target=target)
    scores = scorer(reading, "attribution")
    if scores.config.head_transform:
        raise ModelError(
            "This model's head passes the stream through an activation (head_transform) before it scores tokens.",
            expected="Attribution needs scores that are a sum over components, which these are not.",
            do="Use gf.lens, which takes the head as it is.",
        )
    at = position_of(reading, position)
    seen = _Seen(at, per, post=scores.config.norm_place == "post")
    logits = reading.run(seen)[0, at].double()
    chosen = int(logits.argmax()) if token is None else token_id(reading, token)
    other = None if instead is None else token_id(reading, instead)
    if chosen == other:
        raise UsageError(
            f"{reading.words([chosen])[0]!r} is compared with itself.",
            do="Give another token to compare with" + (", or leave it out." if token is not None else "."),
        )
    sign = {chosen: 1.0} if other is None else {chosen: 1.0, other: -1.0}
    parts = dict(reversed([*_parts(scores, seen, sign, per)]))
    logit = sum(weight * logits[number].item() for number, weight in sign.items())
    return Attribution(
        reading, at, chosen, other, per, {name: part.cpu() for name, part in parts.items()}, logit, top
    )


class _Seen:
    """A `see` that keeps what attribution needs, of one position alone: `z` or what a layer adds whole, neurons,
    what was added to the token's vector, the scales of the norms; by token also the pattern and all values."""

    def __init__(self, at: int, per: Per, *, post: bool) -> None:
        self.at, self.numbers = at, dict[str, Tensor]()
        whole = ("attn_out",) if per == "layer" else ("attn.z",)
        mlp = "mlp.post" if per == "neuron" else "mlp_out"
        scales = ("scale",) if post else ("ln_final.scale", "embed_ln.scale")
        self.ends = ("embed", *scales, mlp, *(("attn.pattern", "attn.v") if per == "token" else whole))

    def wants(self, name: str) -> bool:
        return name.endswith(self.ends) and not name.startswith("encoder.")

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if self.wants(name):
            self.numbers[name] = self._kept(name, y).detach().double()
        return y

    def _kept(self, name: str, y: Tensor) -> Tensor:
        if name.endswith("pos_embed"):
            return y[self.at]
        if name.endswith("attn.v"):
            return y[0].clone()
        return y[0, :, self.at].clone() if name.endswith("attn.pattern") else y[0, self.at].clone()


def _parts(model: Transformer, seen: _Seen, sign: dict[int, float], per: Per) -> Iterator[tuple[str, Tensor]]:
    """Every component with its share, from the head back to the token's vector."""
    stack = stacks(model.config)[-1]
    prefix = "" if stack.name == "blocks" else f"{stack.name}."
    g = sum(weight * model.head.weight[number].double() for number, weight in sign.items())
    assert isinstance(g, Tensor)
    if model.head.bias is not None:
        yield "head.bias", torch.stack([w * model.head.bias[i].double() for i, w in sign.items()]).sum()
    norm: Any = model.norm
    if norm is not None:
        yield from _bias("norm", norm, g)
        g = _back(norm, seen.numbers[f"{prefix}ln_final.scale"], g)
    blocks: Any = getattr(model, stack.name)
    for layer in reversed(range(stack.layers)):
        g = yield from _block(f"{stack.name}.{layer}", blocks[layer], seen, g, per)
    if model.embed_norm is not None:
        yield from _bias("embed_norm", model.embed_norm, g)
        g = _back(model.embed_norm, seen.numbers[f"{prefix}embed_ln.scale"], g)
    for name in ("type_embed", "pos_embed", "embed"):
        if prefix + name in seen.numbers:
            yield prefix + name, seen.numbers[prefix + name] @ g


def _block(name: str, block: Block, seen: _Seen, g: Direction, per: Per) -> Any:
    """The components of one block, last first; returns the direction before it."""
    layers = [
        ("mlp", "norm2", "ln2", block.norm2, block.mlp),
        ("cross_attn", "norm_cross", "ln_cross", block.norm_cross, block.cross),
        ("attn", "norm1", "ln1", block.norm1, block.attn),
    ]
    for place, weight, scale, norm, module in layers:
        if module is None or norm is None:
            continue
        if not block.pre:
            yield from _bias(f"{name}.{weight}", norm, g)
            g = _back(norm, seen.numbers[f"{name}.{scale}.scale"], g)
        whole = f"{name}.{place}_out"
        own = f"{name}.{place.replace('cross_attn', 'cross')}"
        if whole in seen.numbers:
            yield whole, seen.numbers[whole] @ g
        elif isinstance(module, Attention):
            yield from _linear(f"{own}.out", module.out.bias, g)
            yield f"{name}.{place}.result", _heads(f"{name}.{place}", module, seen, g)
        else:
            yield from _linear(f"{own}.down", module.down.bias, g)
            neurons = seen.numbers[f"{name}.mlp.post"]
            yield f"{name}.mlp.post", neurons * (g @ module.down.weight.double())
    return g


def _heads(place: str, attention: Attention, seen: _Seen, g: Direction) -> Float[Tensor, " head *key"]:
    """Each head's share: z . (W_O^T g), or value by value, as z = sum over keys of pattern v."""
    wanted = (g @ attention.out.weight.double()).view(attention.heads, attention.head_size)
    if f"{place}.z" in seen.numbers:
        return (seen.numbers[f"{place}.z"] * wanted).sum(-1)
    groups = attention.heads // attention.kv_heads
    values = seen.numbers[f"{place}.v"].repeat_interleave(groups, dim=1)  # (key, head, head_size)
    return seen.numbers[f"{place}.pattern"] * torch.einsum("khs,hs->hk", values, wanted)


def _back(norm: Norm, scale: Float[Tensor, " one"], g: Direction) -> Direction:
    """The direction before a norm whose scale is held: centring is its own transpose."""
    g = g * norm.weight.double() / scale
    return g - g.mean() if norm.centred else g


def _bias(name: str, norm: Norm, g: Direction) -> Iterator[tuple[str, Tensor]]:
    if norm.bias is not None:
        yield f"{name}.bias", norm.bias.double() @ g


def _linear(name: str, bias: Tensor | None, g: Direction) -> Iterator[tuple[str, Tensor]]:
    if bias is not None:
        yield f"{name}.bias", bias.double() @ g
