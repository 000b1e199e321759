"""Which two places a weight stands between: what it is given to read, and where the error arrives.

    y = W x  at every position:     d loss / d W[i, j] = Σ_position (d loss / d y[i]) × x[j]
    a bias adds 1 × b[i]:           d loss / d b[i]    = Σ_position  d loss / d y[i]
    a gain multiplies u = x / scale: d loss / d g[i]   = Σ_position (d loss / d normalized[i]) × u[i]

A matrix used in several places (a tied embedding) has a flow for each, and their sums add up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError, nearest
from glassformer.look.reading import Reading
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.norms import Norm
from glassformer.model.transformer import Transformer

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """One use of a weight. `arriving` and `reads` are places; the entries come after their position axis."""

    arriving: str
    entry: Index
    reads: tuple[str, ...] = ()
    """What the weight multiplies: an entry of one place, or with `norm` of the normed sum of these; none: of 1."""
    read_entry: Index = ()
    norm: Norm | None = None
    factor: float = 1.0
    only: Tensor | None = None
    """The positions that use this weight; left out, all."""
    source: bool = False
    """Whether its positions are those of an encoder-decoder's source."""

    def input(self, seen: dict[str, Tensor]) -> Float[Tensor, " position"]:
        """What the weight multiplies at each position."""
        if not self.reads:
            length = seen[self.arriving].shape[-1 - len(self.entry)]
            read = torch.full((length,), self.factor, dtype=torch.float64)
        else:
            x = (
                torch.stack([_row(seen[place].detach(), self.read_entry).double() for place in self.reads])
                .sum(0)
                .cpu()
            )
            if self.norm is not None:
                x = x - x.mean(-1, keepdim=True) if self.norm.centred else x
                x = x / (x.square().mean(-1, keepdim=True) + self.norm.epsilon).sqrt()
            at: Any = (slice(None), *self.read_entry)
            read = x[at]
        return read if self.only is None else read * self.only.cpu()

    def error(self, gradient: Tensor) -> Float[Tensor, " position"]:
        """What arrives at each position, of the arriving place's whole gradient."""
        at: Any = (slice(None), *self.entry)
        found: Tensor = _row(gradient, self.entry)[at].double().cpu()
        return found


def _row(tensor: Tensor, entry: Index) -> Tensor:
    """The one row there is, where the tensor has an axis for rows besides that of positions."""
    return tensor if tensor.ndim == 1 + len(entry) else tensor[0]


def chosen_weight(reading: Reading, weight: str) -> tuple[str, Index]:
    """`"blocks.0.mlp.down.weight[3, 7]"` -> its name and index, once there is such a weight."""
    known = dict(reading.model.named_parameters())
    found = re.fullmatch(r"(.+?)\s*\[\s*(\d+)\s*(?:,\s*(\d+)\s*)?\]", weight)
    if found is None:
        raise UsageError(
            f"{weight!r} does not name one weight.", expected='Like "head.bias[3]" or "NAME[3, 7]".'
        )
    name = found[1]
    if name == "head.weight" and name not in known:
        name = "embed.weight"  # tied
    if name not in known:
        raise UsageError(f"This model has no weight {found[1]!r}; {nearest(found[1], known)}")
    index = tuple(int(i) for i in (found[2], found[3]) if i is not None)
    shape = tuple(known[name].shape)
    if len(index) != len(shape) or any(i >= size for i, size in zip(index, shape, strict=True)):
        raise UsageError(f"{name} has no entry {list(index)}.", expected=f"Its shape is {list(shape)}.")
    return name, index


def flows(reading: Reading, name: str, index: Index) -> list[Flow]:
    """Every use of a weight. Raises UsageError for the few that stand between no two places."""
    model = reading.model
    if isinstance(model, Network):
        return [_of_network(model, name, index)]
    config = model.config
    inside = re.fullmatch(r"(blocks|encoder|decoder)\.(\d+)\.(.+)", name)
    found = (
        _in_block(model, inside[1], int(inside[2]), inside[3], index)
        if inside
        else _outside(reading, name, index)
    )
    if not found:
        raise UsageError(
            f"The gradient of {name} cannot be shown in terms: what it reads is at no place.",
            do=f"Choose another weight, such as {_a_weight(config)}.",
        )
    return found


def _a_weight(config: ModelConfig) -> str:
    stack = "decoder" if config.kind == "encoder-decoder" else "blocks"
    return f"{stack}.0.{'mlp.down' if config.ff_width else 'attn.out'}.weight[0, 0]"


def _in_block(model: Transformer, stack: str, layer: int, part: str, index: Index) -> list[Flow]:
    config, at = model.config, f"{stack}.{layer}."
    block = getattr(model, stack)[layer]
    module, _, kind = part.rpartition(".")
    has_cross = block.cross is not None
    pre = block.pre
    before_mlp = "resid_pre" if config.parallel else "resid_mid_cross" if has_cross else "resid_mid"
    i, rest = index[0], index[1:]

    def linear(
        arriving: str, entry: Index, reads: str, read_entry: Index, *, source: bool = False
    ) -> list[Flow]:
        if kind == "bias":
            return [Flow(arriving, entry, source=source or stack == "encoder")]
        return [Flow(arriving, entry, (reads,), read_entry, source=source or stack == "encoder")]

    if module in ("norm1", "norm2", "norm_cross"):
        place = {"norm1": "ln1", "norm2": "ln2", "norm_cross": "ln_cross"}[module]
        stream = {"norm1": "resid_pre", "norm2": before_mlp, "norm_cross": "resid_mid"}[module]
        added = {"norm1": "attn_out", "norm2": "mlp_out", "norm_cross": "cross_attn_out"}[module]
        reads = (at + stream,) if pre else (at + stream, at + added)
        if kind == "bias":
            return [Flow(f"{at}{place}.normalized", (i,), source=stack == "encoder")]
        return [Flow(f"{at}{place}.normalized", (i,), reads, (i,), norm=getattr(block, module),
                     source=stack == "encoder")]  # fmt: skip
    if module in ("attn.qkv", "cross.qkv"):
        attn, own = ("attn", block.attn) if module == "attn.qkv" else ("cross_attn", block.cross)
        name, local = "qkv"[(i >= own.sizes[0]) + (i >= own.sizes[0] + own.sizes[1])], i
        for size in own.sizes[: "qkv".index(name)]:
            local -= size
        entry = divmod(local, config.head_width)
        if attn == "attn":
            return linear(f"{at}attn.{name}", entry, at + ("ln1.normalized" if pre else "resid_pre"), rest)
        if name == "q":
            return linear(
                f"{at}cross_attn.q", entry, at + ("ln_cross.normalized" if pre else "resid_mid"), rest
            )
        if name == "k" and config.qk_norm:  # its place is after the norm
            return []
        memory = (
            "encoder.ln_final.normalized" if pre else f"encoder.{config.num_encoder_layers - 1}.resid_post"
        )
        return linear(f"{at}cross_attn.{name}", entry, memory, rest, source=True)
    if module in ("attn.out", "cross.out"):
        attn = "attn" if module == "attn.out" else "cross_attn"
        read = divmod(rest[0], config.head_width) if rest else ()
        return linear(f"{at}{attn}_out", (i,), f"{at}{attn}.z", read)
    if module == "mlp.up":
        width = config.ff_width
        arriving = "mlp.pre" if i < width else "mlp.pre_linear"
        return linear(at + arriving, (i % width,), at + ("ln2.normalized" if pre else before_mlp), rest)
    if module == "mlp.down":
        return linear(f"{at}mlp_out", (i,), f"{at}mlp.post", rest)
    return []


def _outside(reading: Reading, name: str, index: Index) -> list[Flow]:
    """Weights before and after the blocks."""
    model, i = reading.model, index[0]
    assert isinstance(model, Transformer)
    config, pre = model.config, model.config.norm_place == "pre"
    pair = config.kind == "encoder-decoder"
    sides = [("encoder.", reading.inputs[0], True), ("decoder.", reading.inputs[-1], False)]
    sides = sides if pair else [("", reading.inputs[0], False)]
    last = ("decoder." if pair else "") + "ln_final.normalized"
    last = last if pre else f"{'decoder' if pair else 'blocks'}.{config.layers - 1}.resid_post"
    scale = config.width**0.5 if config.scale_embeddings else 1.0
    if name in ("embed.weight", "head.weight", "head.bias"):
        found = []
        if name == "embed.weight":
            found = [
                Flow(f"{side}embed", index[1:], factor=scale, only=(ids[0] == i).double(), source=source)
                for side, ids, source in sides
            ]
        if name != "embed.weight" or (config.tied and config.head == "tokens"):
            if config.head_transform or config.head == "classes":
                return []
            found.append(Flow("logits", (i,), (last,) if name != "head.bias" else (), index[1:]))
        return found
    if name == "positions.weight":
        return [
            Flow(
                f"{side}pos_embed", index[1:], only=(torch.arange(ids.shape[1]) == i).double(), source=source
            )
            for side, ids, source in sides
        ]
    if name == "types.weight":
        return [Flow("type_embed", index[1:], factor=float(i == 0))]
    module, _, kind = name.rpartition(".")
    if module in ("norm", "encoder_norm"):
        first = pair and module == "encoder_norm"
        stack = ("encoder" if first else "decoder") if pair else "blocks"
        layers = config.num_encoder_layers if first else config.layers
        place, norm = (
            ("" if stack == "blocks" else f"{stack}.") + "ln_final.normalized",
            getattr(model, module),
        )
        reads = () if kind == "bias" else (f"{stack}.{layers - 1}.resid_post",)
        return [Flow(place, (i,), reads, (i,) if reads else (), norm=norm if reads else None, source=first)]
    return []


def _of_network(model: Network, name: str, index: Index) -> Flow:
    module, _, kind = name.rpartition(".")
    layer = model.config.layers if module == "head" else int(module.split(".")[1])
    arriving = "scores" if module == "head" else f"layers.{layer}.pre"
    reads = f"layers.{layer - 1}.post" if layer else "inputs"
    return Flow(arriving, index[:1], *(() if kind == "bias" else ((reads,), index[1:])))
