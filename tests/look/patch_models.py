"""Small models of every kind, in float64, their weights drawn large enough that a mistake shows; and the plain way to
change what one place holds, one pass at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.look.reading import Reading
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

KINDS: dict[str, dict[str, Any]] = {
    "rope, gated, grouped": {"gated": True, "kv_heads": 2, "qk_norm": True},
    "learned, biased, LayerNorm": {"positions": "learned", "norm": "layernorm", "bias": True, "tied": False},
    "alibi, parallel": {"positions": "alibi", "parallel": True},
    "post-norm": {"norm_place": "post", "positions": "sinusoidal", "scale_embeddings": True},
    "attention alone": {"feedforward": 0},
    "encoder": {"kind": "encoder", "norm": "layernorm", "bias": True, "head_transform": True},
    "classifier": {"kind": "encoder", "head": "classes", "classes": 3},
    "encoder-decoder": {"kind": "encoder-decoder", "encoder_layers": 2},
}
WRITES = [kind for kind, values in KINDS.items() if values.get("kind") != "encoder"]


def made(kind: str, **changes: Any) -> Transformer:
    fields = {"vocab": 40, "width": 16, "layers": 3, "heads": 4, "context": 16, **KINDS[kind], **changes}
    model = build(ModelConfig.model_validate(fields)).double().eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        weight += 0.3 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    return model


def worded(**changes: Any) -> Loaded:
    """A model that reads bytes, and has a token that hides one."""
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes", mask_token=True), [b""])
    kind = changes.pop("family", "rope, gated, grouped")
    model = made(kind, vocab=tokenizer.vocab_size, context=48, **changes)
    names = ("red", "green", "blue") if model.config.head == "classes" else ()
    return Loaded(model, tokenizer, model.config, Path("made"), classes=names)


def given(kind: str, ids: list[int]) -> dict[str, Any]:
    """What a model of this kind reads besides the text, and where it answers."""
    if kind == "encoder-decoder":
        return {"target": [5, 6, 7]}
    return {"at": 2} if kind == "encoder" else {}


def run_with(
    model: Transformer, inputs: tuple[Tensor, ...], changes: dict[str, Callable[[Tensor], Tensor]]
) -> Tensor:
    """One pass in which each of these places is changed by a function of what it holds."""

    def see(name: str, y: Tensor) -> Tensor:
        return changes[name](y.clone()) if name in changes else y

    with torch.no_grad():
        output: Tensor = model(*inputs, see=see)
    return output


def held(model: Transformer, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What every place holds in a plain pass."""
    seen: dict[str, Tensor] = {}

    def see(name: str, y: Tensor) -> Tensor:
        seen[name] = y.clone()
        return y

    with torch.no_grad():
        model(*inputs, see=see)
    return seen


def inputs_of(model: Transformer, ids: list[int], **more: Any) -> tuple[Tensor, ...]:
    return Reading.of(model, ids, target=more.get("target")).inputs
