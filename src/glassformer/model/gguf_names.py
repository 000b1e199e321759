"""GGUF files: how llama.cpp calls what we call by other names.

A file says its architecture (`general.architecture`) and its sizes under keys that begin with that name. Each
architecture here is a family of `hub.py` written another way, so what a file says is turned into that family's
config and judged there. What the file cannot say is fixed by the architecture: the activation above all.

    llama, arcee   q and k are kept with the pairs that RoPE turns side by side: for each head (half, 2) where
                   ours is (2, half); x[2i] and x[2i + 1] turn together there, x[i] and x[i + half] here
    qwen2, qwen3   q, k and v as they are, apart
    gpt2, gptneox  q, k and v in one matrix below one another, as ours; GPT-2's matrices are outputs x inputs

A tied head has no tensor. `rope_freqs.weight` (Llama 3.1's other angles) is refused, as its rope_type is.

Source: ggml's docs/gguf.md (keys), llama.cpp's conversion and model files (names, layouts, activations).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassformer.errors import ModelError
from glassformer.model import hub
from glassformer.model.config import ModelConfig
from glassformer.model.hub_family import Part
from glassformer.model.shapes import shapes

EMBEDDING, POSITIONS, HEAD = "token_embd.weight", "position_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of llama.cpp's, and what it fixes."""

    name: str
    family: str
    """`model_type` in hub.py."""
    needs: Mapping[str, Any]
    """What our config must say besides what the family needs."""
    fused: bool = False
    """q, k and v in one tensor."""
    paired: bool = False
    """q and k kept with the pairs side by side."""
    gated: bool = False

    @property
    def epsilon(self) -> str:
        return "attention.layer_norm_epsilon" if self.fused else "attention.layer_norm_rms_epsilon"


ARCHITECTURES: dict[str, Architecture] = {
    one.name: one
    for one in (
        Architecture("llama", "llama", {"activation": "silu"}, paired=True, gated=True),
        Architecture("qwen2", "qwen2", {"activation": "silu"}, gated=True),
        Architecture("qwen3", "qwen3", {"activation": "silu"}, gated=True),
        Architecture("arcee", "arcee", {"activation": "relu_squared"}, paired=True),
        Architecture("gpt2", "gpt2", {"activation": "gelu_tanh"}, fused=True),
        # llama.cpp demands a head of its own here. It computes GELU by its tanh formula in both; GPT-NeoX's own
        # models are trained with the exact one.
        Architecture("gptneox", "gpt_neox", {"activation": "gelu", "tied": False}, fused=True),
    )
}


@dataclass(frozen=True, slots=True)
class Paired(Part):
    """Rows below one another, the first two of which, q and k, have their heads' pairs side by side."""

    heads_of: tuple[int, int] = (1, 1)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        q, k, v = tensors
        return torch.cat([_turned(q, self.heads_of[0], -1, 2), _turned(k, self.heads_of[1], -1, 2), v])

    def split(self, tensor: Tensor) -> list[Tensor]:
        q, k, v = torch.split(tensor, [shape[0] for shape in self.theirs.values()])
        return [_turned(q, self.heads_of[0], 2, -1), _turned(k, self.heads_of[1], 2, -1), v]


def architecture_of(metadata: Mapping[str, Any], *, origin: str) -> Architecture:
    """The one a file names."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(
            f"{origin} holds a model of architecture {name!r}.",
            expected=f"Expected one of {', '.join(ARCHITECTURES)}.",
            do="Other architectures compute something else, so their weights would be meaningless here.",
        )
    return ARCHITECTURES[name]


def read_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], num_tokens: int, *, origin: str
) -> ModelConfig:
    """What a file with these tensors and so many tokens says, as ours."""
    architecture = architecture_of(metadata, origin=origin)
    says = _Says(metadata, architecture.name)
    width, heads = says.whole("embedding_length"), says.whole("attention.head_count")
    d_head = says.whole("attention.key_length", width // heads if heads else 0)
    turned = says.whole("rope.dimension_count", d_head)
    if says.whole("attention.value_length", d_head) != d_head:
        says.problems.append("value_length and key_length differ: here a head has one size")
    if not architecture.fused and turned != d_head:
        says.problems.append(f"rope.dimension_count is {turned}, the heads' size {d_head}: all of it turns")
    says.refuse_what_changes_the_sums(tensors)
    layers, context = says.whole("block_count"), says.whole("context_length")
    epsilon, forward = says.real(architecture.epsilon), says.whole("feed_forward_length", 4 * width)
    common = {"model_type": architecture.family, "tie_word_embeddings": HEAD not in tensors}
    common |= {"vocab_size": says.whole("vocab_size", num_tokens)}
    common |= {key: says.given(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    common |= {"num_experts": says.given("expert_count")}
    base = {"rope_theta": says.real("rope.freq_base", 10000.0)} if architecture.name != "gpt2" else {}
    if architecture.name == "gpt2":
        fields = {
            "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context, "n_inner": forward,
            "layer_norm_epsilon": epsilon, "activation_function": "gelu_new",
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }  # fmt: skip
    elif architecture.name == "gptneox":
        parallel = says.given("use_parallel_residual")
        fields = {
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": forward, "max_position_embeddings": context, "layer_norm_eps": epsilon,
            "hidden_act": "gelu", "use_parallel_residual": True if parallel is None else parallel,
            "rotary_pct": _fraction(turned, d_head),
        }  # fmt: skip
    else:
        window = says.given("attention.sliding_window")
        fields = {
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": d_head,
            "num_key_value_heads": says.whole("attention.head_count_kv", heads), "intermediate_size": forward,
            "max_position_embeddings": context, "rms_norm_eps": epsilon,
            "hidden_act": "silu" if architecture.gated else "relu2",
            "attention_bias": architecture.name != "qwen2" and "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "sliding_window": window, "use_sliding_window": window is not None,
        }  # fmt: skip
    return hub.read_config({**common, **base, **fields}, origin=origin, found=says.problems)


def write_config(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """Ours as a file's values, or a ModelError with what prevents it."""
    family, _ = hub.write_config(config)
    architecture = next(one for one in ARCHITECTURES.values() if one.family == family.model_type)
    wrong = [
        f"{key} = {getattr(config, key)!r}, needs {value!r}"
        for key, value in architecture.needs.items()
        if getattr(config, key) != value
    ]
    if wrong:
        raise ModelError(
            f"As GGUF this model would be a {architecture.name}, which cannot say {'; '.join(wrong)}.",
            do="llama.cpp would compute something else; save_pretrained writes it for transformers.",
        )
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size, "context_length": config.context, "embedding_length": config.width,
        "block_count": config.layers, "feed_forward_length": config.ff_width,
        "attention.head_count": config.num_heads, "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_width, "attention.value_length": config.head_width,
        architecture.epsilon: config.norm_epsilon,
    }  # fmt: skip
    if config.positions == "rope":
        values |= {"rope.dimension_count": config.rotary_width, "rope.freq_base": config.rope_base}
    if architecture.name == "gptneox":
        values["use_parallel_residual"] = config.parallel
    stem = architecture.name
    return architecture, {"general.architecture": stem} | {f"{stem}.{k}": v for k, v in values.items()}


def parts(architecture: Architecture, config: ModelConfig) -> list[Part]:
    """What each of our tensors is made of."""
    kv = config.num_kv_heads
    rows = [size * config.head_width for size in (config.num_heads, kv, kv)]
    found: list[Part] = []
    for ours, shape in shapes(config).items():
        stack, layer, name, kind = hub.taken_apart(ours)
        stem = f"blk.{layer}." if stack else ""
        if name == "attn.qkv" and not architecture.fused:
            names, sizes = ["attn_q", "attn_k", "attn_v"], rows
        elif name == "mlp.up" and architecture.gated:
            names, sizes = ["ffn_gate", "ffn_up"], [config.ff_width] * 2
        else:
            names, sizes = [_NAMES[name]], [shape[0]]
        theirs = {f"{stem}{one}.{kind}": (size, *shape[1:]) for one, size in zip(names, sizes, strict=True)}
        if len(names) == 3 and architecture.paired:
            found.append(Paired(ours, theirs, "rows", heads_of=(config.num_heads, kv)))
        else:
            found.append(Part(ours, theirs, "rows" if len(names) > 1 else "same"))
    return found


_NAMES = {
    "embed": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output",
    "norm1": "attn_norm", "attn.qkv": "attn_qkv", "attn.out": "attn_output", "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm", "norm2": "ffn_norm", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip

_NEUTRAL = {
    "attention.scale": 0.0, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "logit_scale": 1.0,
    "residual_scale": 1.0, "embedding_scale": 1.0, "rope.scale_linear": 1.0, "attention.causal": True,
    "rope.scaling.type": "none",
}  # fmt: skip
"""Keys that change what is computed, and the value with which they do not."""


class _Says:
    """A file's values for its architecture; what is wrong with them is gathered."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata, self._stem, self.problems = metadata, architecture, list[str]()

    def given(self, key: str) -> Any:
        return self._metadata.get(f"{self._stem}.{key}")

    def whole(self, key: str, otherwise: int | None = None) -> int:
        value = self.given(key) if self.given(key) is not None else otherwise
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self._wrong(key, value, "a whole number")
        return 0

    def real(self, key: str, otherwise: float | None = None) -> float:
        """Files hold 32 bits: 1e-5 comes back as 9.99999974e-06, so the shortest decimal is taken."""
        value = self.given(key) if self.given(key) is not None else otherwise
        if isinstance(value, float) and abs(value) <= np.finfo(np.float32).max:
            return float(str(np.float32(value)))
        self._wrong(key, value, "a finite number")
        return 0.0

    def refuse_what_changes_the_sums(self, tensors: Mapping[str, Any]) -> None:
        for key, neutral in _NEUTRAL.items():
            value = self.given(key)
            if value is not None and value != neutral:
                self.problems.append(f"{self._stem}.{key} = {value!r}: this is not computed here")
        if any(name.startswith("rope_f") for name in tensors):
            self.problems.append("rope_freqs.weight: the angles are those of Su et al. 2021 alone")

    def _wrong(self, key: str, value: Any, expected: str) -> None:
        said = "is missing" if value is None else f"is {value!r:.60}, expected {expected}"
        self.problems.append(f"{self._stem}.{key} {said}")


def _turned(rows: Tensor, heads: int, *table: int) -> Tensor:
    """The rows of each head, read as a table of this shape, column by column: (half, 2) <-> (2, half)."""
    return rows.reshape(heads, *table, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def _fraction(turned: int, d_head: int) -> float:
    """The rotary_fraction for which int(d_head x fraction) is `turned`."""
    fraction = turned / d_head if d_head else 0.0
    return fraction if int(d_head * fraction) == turned else math.nextafter(fraction, 2.0)
