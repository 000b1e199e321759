"""Every tensor of a model by name, from its config alone; no torch. `model/stacks.py` makes just these.

    decoder, encoder    embed [positions types embed_norm] blocks.0 blocks.1 ... [norm] [pooler] [head]
    encoder-decoder     embed [positions embed_norm] encoder.0 ... [encoder_norm] decoder.0 ... [norm] [head]

One embedding serves the encoder's text, the decoder's text and, when tied, the output matrix.
"""

from __future__ import annotations

from typing import NamedTuple

from glassformer.model.config import ModelConfig

Shape = tuple[int, ...]


class Stack(NamedTuple):
    """Blocks one after the other, their tensors and places named `<name>.<layer>.`"""

    name: str
    layers: int
    cross: bool
    """Whether each block also reads another stack's output."""
    causal: bool


def stacks(config: ModelConfig) -> list[Stack]:
    """The stacks of a model in the order in which they run."""
    if config.kind == "encoder-decoder":
        encoder = Stack("encoder", config.num_encoder_layers, cross=False, causal=False)
        return [encoder, Stack("decoder", config.layers, cross=True, causal=True)]
    return [Stack("blocks", config.layers, cross=False, causal=config.kind == "decoder")]


def in_block(name: str) -> bool:
    """Whether a tensor belongs to a block of a stack."""
    return name.startswith(("blocks.", "encoder.", "decoder."))


def shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of the model by name, in its order."""
    d, q, kv = config.width, config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    norm_bias = config.bias and config.norm == "layernorm"
    found: dict[str, Shape] = {"embed.weight": (config.vocab_size, d)}

    def linear(name: str, outputs: int, inputs: int, bias: bool = config.bias) -> None:
        found[f"{name}.weight"] = (outputs, inputs)
        if bias or (config.qkv_bias and name.endswith(".qkv")):
            found[f"{name}.bias"] = (outputs,)

    def norm(name: str, size: int) -> None:
        found[f"{name}.weight"] = (size,)
        if norm_bias:
            found[f"{name}.bias"] = (size,)

    def attention(name: str) -> None:
        linear(f"{name}.qkv", q + 2 * kv, d)
        linear(f"{name}.out", d, q)
        if config.qk_norm:
            norm(f"{name}.q_norm", config.head_width)
            norm(f"{name}.k_norm", config.head_width)

    if config.positions == "learned":
        found["positions.weight"] = (config.context, d)
    if config.token_types:
        found["types.weight"] = (config.token_types, d)
    if config.embed_norm:
        norm("embed_norm", d)
    for stack in stacks(config):
        for block in (f"{stack.name}.{layer}" for layer in range(stack.layers)):
            norm(f"{block}.norm1", d)
            attention(f"{block}.attn")
            if stack.cross:
                norm(f"{block}.norm_cross", d)
                attention(f"{block}.cross")
            if config.ff_width:
                norm(f"{block}.norm2", d)
                linear(f"{block}.mlp.up", config.ff_width * (2 if config.gated else 1), d)
                linear(f"{block}.mlp.down", d, config.ff_width)
        if config.norm_place == "pre":
            norm("encoder_norm" if stack.name == "encoder" else "norm", d)
    if config.pooler:
        linear("pooler", d, d, bias=True)
    if config.head_transform:
        linear("transform", d, d)
        norm("transform_norm", d)
    if config.head == "classes":
        linear("head", config.num_classes, d, bias=True)
    elif config.head == "tokens":
        if not config.tied:
            found["head.weight"] = (config.vocab_size, d)
        if config.head_bias:
            found["head.bias"] = (config.vocab_size,)
    return found


def matrices(config: ModelConfig) -> dict[str, Shape]:
    """Everything that vectors are multiplied by, a tied head included: what the FLOPs go into."""
    found: dict[str, Shape] = {
        name: shape
        for name, shape in shapes(config).items()
        if len(shape) == 2 and not name.startswith(("embed.", "positions.", "types."))
    }
    if config.head == "tokens":
        found["head.weight"] = (config.vocab_size, config.width)
    return found
