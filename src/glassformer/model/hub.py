"""Other people's models: how GPT-2, Llama, Qwen2, Qwen3, Arcee and GPT-NeoX call what we call by other names.

A family (`hub_family.py`) is four things: its `model_type`, its config in our words, ours in its words, and for
each of our tensors the `Part` that says which of theirs it is made of. Each part has an inverse, so ours ->
theirs -> ours is the identity to the bit (a test holds it). Only this file, `hub_encoders.py`, which has BERT and
Marian, and `gguf_names.py`, for GGUF files, know their names.

    qkv   Llama and kin q_proj, k_proj, v_proj below one another
          GPT-2         c_attn, kept as inputs x outputs ("Conv1D"), so transposed, like its other matrices
          GPT-NeoX      for each head its q, k and v: (head, 3, head_size) where ours is (3, head, head_size)
    up    gated         gate_proj, then up_proj below it

RoPE turns the pairs (x[i], x[i + half]) in all of them, as ours does. What a config says that this model
cannot do is refused, all of it at once. Dropout and starting weights belong to training: they are not
carried over, except GPT-2's dropout where its three are one number.

Source: the configs and modules of `transformers` 5 (their attribute names are the format).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from glassformer.configs import build
from glassformer.errors import ModelError
from glassformer.model import hub_encoders
from glassformer.model.config import ModelConfig
from glassformer.model.hub_family import THEIR_ACTIVATION, Family, Fields, Part, activation
from glassformer.model.shapes import in_block, shapes


def family_of(fields: Fields) -> Family:
    """The family a config.json names."""
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"config.json describes a model of type {kind!r}.",
            expected=f"Expected model_type 'glassformer', or one of {', '.join(FAMILIES)}.",
            do="Models of other types compute something else, so their weights would be meaningless here.",
        )
    return FAMILIES[kind]


def read_config(
    fields: Fields,
    *,
    tensors: Collection[str] = (),
    origin: str = "config.json",
    found: Sequence[str] = (),
) -> ModelConfig:
    """Their config as ours, or a ModelError with everything in it that cannot be represented, beside what the
    caller has `found` already.

    `tensors` are the names in their files, which say what a BERT's config leaves open: whether it has a pooler.
    """
    family, problems = family_of(fields), list(found)
    if family.model_type == "bert" and tensors:
        fields = {
            **fields,
            "add_pooling_layer": any(name.endswith("pooler.dense.weight") for name in tensors),
        }
    for key, reason in _NEVER.items():
        if fields.get(key):
            problems.append(f"{key} = {fields[key]!r}: {reason}")
    try:
        values = family.read(fields, problems)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"a wrong value: {error}"
        raise ModelError(f"{origin} cannot be read as a {family.model_type}: {reason}.") from None
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ModelError(
            f"{origin} asks for what this model does not do:\n{listed}",
            do="\nWithout these the predictions would be other ones, so nothing was loaded.",
        )
    return build(ModelConfig, values, origin=origin)


def write_config(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """Ours as the config of the first family that can say all of it, or a ModelError with what prevents each."""
    reasons = []
    for family in (one for one in FAMILIES.values() if one.kind == config.kind):
        wrong = [
            f"{key} = {_shown(getattr(config, key))}, needs {_shown(value)}"
            for key, value in family.needs(config).items()
            if getattr(config, key) != value
        ]
        wrong += ["feedforward = 0, needs 1 or more"] if config.ff_width == 0 else []
        if not wrong:
            about = {"model_type": family.model_type, "architectures": [family.architecture]}
            size = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied}
            return family, {**about, **size, **family.write(config), "dtype": "float32"}
        reasons.append(f"  - {family.model_type}: {'; '.join(wrong)}")
    raise ModelError(
        "No family of Hugging Face's expresses this model:\n" + "\n".join(reasons),
        do="\nTrain with the settings one line asks for, or keep the folder that save_model writes.",
    )


def parts(family: Family, config: ModelConfig) -> list[Part]:
    """What each of our tensors is made of."""
    found = []
    d_head, gate = config.head_width, config.ff_width
    rows = [config.num_heads * d_head, config.num_kv_heads * d_head, config.num_kv_heads * d_head]
    for ours, shape in shapes(config).items():
        stack, layer, name, kind = taken_apart(ours)
        if ours in family.names and config.head == "tokens":  # one that is called otherwise altogether
            theirs = family.names[ours]
            alone = {theirs: (1, *shape)} if theirs in _ONE_ROW else {theirs: shape}
            found.append(Part(ours, alone, "one row" if theirs in _ONE_ROW else "same"))
            continue
        their = family.names["classes" if name == "head" and config.head == "classes" else name]
        stem = "" if name in family.outside or config.head == "none" else f"{family.prefix}."
        stem += f"{family.names[stack]}.{layer}." if stack else ""
        names = [f"{stem}{one}.{kind}" for one in their.split(" ")]
        if len(names) > 1:
            sizes = rows if name.endswith(".qkv") else [gate, gate]
            several = {one: (size, *shape[1:]) for one, size in zip(names, sizes, strict=True)}
            found.append(Part(ours, several, "rows"))
        elif family.model_type == "gpt2" and stack and len(shape) == 2:
            found.append(Part(ours, {names[0]: shape[::-1]}, "turned"))
        elif family.model_type == "gpt_neox" and name == "attn.qkv":
            found.append(Part(ours, {names[0]: shape}, "heads", config.num_heads))
        else:
            found.append(Part(ours, {names[0]: shape}))
    return found


def their_name(family: Family, name: str, expected: Collection[str]) -> str:
    """The full name of a tensor in their file: a bare model's files leave out the prefix, old ones of BERT call a
    norm's weight and bias gamma and beta."""
    prefix = f"{family.prefix}."
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    bare = name.removeprefix(prefix)
    return next((one for one in (name, prefix + name, bare) if one in expected), name)


def is_computed(family: Family, name: str, config: ModelConfig) -> bool:
    """Whether a tensor in their file is no weight of this model: a mask or table, the tied head written out again,
    or the head of another task."""
    tail = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")
    tied = config.tied and name == f"{family.names['head']}.weight"
    return name.endswith(tail) or tied or hub_encoders.is_computed(family, name)


_NEVER = {
    "quantization_config": "quantised weights are not read",
    "add_cross_attention": "a decoder here reads no encoder",
    "scale_attn_by_inverse_layer_idx": "scores are not scaled by layer",
    "attn_logit_softcapping": "scores are not capped",
    "final_logit_softcapping": "logits are not capped",
    "num_local_experts": "mixtures of experts are not built",
    "num_experts": "mixtures of experts are not built",
}


_ONE_ROW = {"final_logits_bias"}
"""Theirs that are matrices of one row."""


def taken_apart(name: str) -> tuple[str, str, str, str]:
    """`blocks.3.attn.qkv.weight` -> `blocks`, `3`, `attn.qkv`, `weight`."""
    stem, kind = name.rsplit(".", 1)
    if not in_block(name):
        return "", "", stem, kind
    stack, layer, inner = stem.split(".", 2)
    return stack, layer, inner, kind


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _rope(fields: Fields, problems: list[str], fraction: float = 1.0) -> dict[str, Any]:
    """Base and fraction, whichever way the version that wrote them spells them."""
    rope: dict[str, Any] = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        problems.append(f"rope_type = {kind!r}: the angles are those of Su et al. 2021 alone")
    base: Any = rope.get("rope_theta", fields.get("rope_theta", fields.get("rotary_emb_base", 10000.0)))
    part: Any = rope.get(
        "partial_rotary_factor", fields.get("partial_rotary_factor", fields.get("rotary_pct", fraction))
    )
    return {"positions": "rope", "rope_base": float(base), "rotary_fraction": float(part)}


def _read_gpt2(fields: Fields, problems: list[str]) -> dict[str, Any]:
    if fields.get("scale_attn_weights") is False:
        problems.append("scale_attn_weights = false: scores are divided by sqrt(d_head)")
    dropout = {fields.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return {
        "vocab": fields.get("vocab_size", 50257), "width": fields["n_embd"], "layers": fields["n_layer"],
        "heads": fields["n_head"], "context": fields.get("n_positions", fields.get("n_ctx", 1024)),
        "feedforward": fields.get("n_inner") or 4 * fields["n_embd"], "positions": "learned", "norm": "layernorm",
        "activation": activation(fields.get("activation_function", "gelu_new"), "activation_function", problems),
        "norm_epsilon": fields.get("layer_norm_epsilon", 1e-5), "bias": True,
        "tied": fields.get("tie_word_embeddings", True), "dropout": dropout.pop() if len(dropout) == 1 else 0.0,
    }  # fmt: skip


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    return {
        "n_embd": config.width, "n_layer": config.layers, "n_head": config.num_heads, "n_inner": config.ff_width,
        "n_positions": config.context, "n_ctx": config.context, "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": THEIR_ACTIVATION[config.activation], **drops,
    }  # fmt: skip


def _read_llama(fields: Fields, problems: list[str]) -> dict[str, Any]:
    kind, layers = fields["model_type"], fields["num_hidden_layers"]
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    context = fields.get("max_position_embeddings", 2048)
    window = fields.get("sliding_window", 4096 if kind == "mistral" else None)
    used = kind == "mistral" or fields.get("use_sliding_window", False)
    if window is not None and used and window < context:
        problems.append(f"sliding_window = {window}: below the context of {context}, it hides earlier tokens")
    others = sorted({one for one in fields.get("layer_types") or [] if one != "full_attention"})
    if others and used:
        problems.append(f"layer_types = {others}: every layer attends to all tokens before")
    attention, mlp = bool(fields.get("attention_bias")), bool(fields.get("mlp_bias"))
    if attention != mlp:
        found = "attention_bias" if attention else "mlp_bias"
        problems.append(f"{found} = true: biases are on all matrices, or on q, k and v alone")
    d_head = fields.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    act = fields.get("hidden_act", "relu2" if kind == "arcee" else "silu")
    return {
        "vocab": fields["vocab_size"], "width": width, "layers": layers, "heads": heads,
        "kv_heads": fields.get("num_key_value_heads") or heads, "context": context,
        "head_size": None if d_head * heads == width else d_head, "feedforward": fields["intermediate_size"],
        "activation": activation(act, "hidden_act", problems), "gated": kind != "arcee",
        "norm_epsilon": fields.get("rms_norm_eps", 1e-6), "tied": fields.get("tie_word_embeddings", False),
        "bias": attention, "qkv_bias": kind == "qwen2", "qk_norm": kind == "qwen3", **_rope(fields, problems),
    }  # fmt: skip


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "intermediate_size": config.ff_width,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width, "max_position_embeddings": config.context, "rms_norm_eps": config.norm_epsilon,
        "hidden_act": THEIR_ACTIVATION[config.activation], "attention_bias": config.bias, "mlp_bias": config.bias,
        "rope_theta": config.rope_base, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }  # fmt: skip


def _read_neox(fields: Fields, problems: list[str]) -> dict[str, Any]:
    if fields.get("attention_bias") is False:
        problems.append("attention_bias = false: biases are on all matrices")
    return {
        "vocab": fields["vocab_size"], "width": fields["hidden_size"], "layers": fields["num_hidden_layers"],
        "heads": fields["num_attention_heads"], "context": fields.get("max_position_embeddings", 2048),
        "feedforward": fields["intermediate_size"], "norm": "layernorm", "bias": True,
        "activation": activation(fields.get("hidden_act", "gelu"), "hidden_act", problems),
        "norm_epsilon": fields.get("layer_norm_eps", 1e-5), "tied": fields.get("tie_word_embeddings", False),
        "parallel": fields.get("use_parallel_residual", True), **_rope(fields, problems, 0.25),
    }  # fmt: skip


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    rope = {
        "rope_type": "default",
        "rope_theta": config.rope_base,
        "partial_rotary_factor": config.rotary_fraction,
    }
    return {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.num_heads,
        "intermediate_size": config.ff_width, "max_position_embeddings": config.context,
        "layer_norm_eps": config.norm_epsilon, "hidden_act": THEIR_ACTIVATION[config.activation],
        "use_parallel_residual": config.parallel, "attention_bias": True, "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_base, "rope_parameters": rope,
    }  # fmt: skip


def _needs(**settings: Any) -> Callable[[ModelConfig], dict[str, Any]]:
    """Settings that must be so; the heads must divide the width, as their checks demand."""

    def needs(config: ModelConfig) -> dict[str, Any]:
        plain = {
            "norm_place": "pre",
            "scale_embeddings": False,
            "embed_norm": False,
            "head_bias": False,
            **settings,
        }
        if config.width % config.num_heads:
            plain["width"] = config.num_heads * -(-config.width // config.num_heads)
        if settings["norm"] == "layernorm":  # their heads are width / heads, each with its own key and value
            plain |= {
                "num_kv_heads": config.num_heads,
                "head_width": plain.get("width", config.width) // config.num_heads,
            }
        return plain

    return needs


_LLAMA_NAMES = {
    "embed": "embed_tokens", "norm": "norm", "head": "lm_head", "blocks": "layers", "norm1": "input_layernorm",
    "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "attn.out": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm", "norm2": "post_attention_layernorm",
    "mlp.up": "mlp.gate_proj mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
_GPT2_NAMES = {
    "embed": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head", "blocks": "h", "norm1": "ln_1",
    "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "norm2": "ln_2", "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}  # fmt: skip
_NEOX_NAMES = {
    "embed": "embed_in", "norm": "final_layer_norm", "head": "embed_out", "blocks": "layers",
    "norm1": "input_layernorm", "attn.qkv": "attention.query_key_value", "attn.out": "attention.dense",
    "norm2": "post_attention_layernorm", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h",
}  # fmt: skip
_ROPE: dict[str, Any] = {
    "positions": "rope",
    "parallel": False,
    "rotary_fraction": 1.0,
    "norm": "rmsnorm",
    "gated": True,
}
_WIDE: dict[str, Any] = {"norm": "layernorm", "gated": False, "bias": True, "qk_norm": False}


def _llama_like(kind: str, architecture: str, **settings: Any) -> Family:
    needs = _needs(**_ROPE | {"qk_norm": False, "qkv_bias": False} | settings)
    up = {} if settings.get("gated", True) else {"mlp.up": "mlp.up_proj"}
    return Family(kind, architecture, "model", _read_llama, _write_llama, needs, _LLAMA_NAMES | up)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _llama_like("llama", "LlamaForCausalLM"),
        _llama_like("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
        _llama_like("qwen3", "Qwen3ForCausalLM", qk_norm=True, bias=False),
        _llama_like("arcee", "ArceeForCausalLM", gated=False),
        Family(
            "gpt2", "GPT2LMHeadModel", "transformer", _read_gpt2, _write_gpt2,
            _needs(positions="learned", parallel=False, **_WIDE), _GPT2_NAMES,
        ),
        Family(
            "gpt_neox", "GPTNeoXForCausalLM", "gpt_neox", _read_neox, _write_neox,
            _needs(positions="rope", **_WIDE), _NEOX_NAMES,
        ),
        _llama_like("mistral", "MistralForCausalLM"),
        *hub_encoders.FAMILIES,
    )
}  # fmt: skip
"""In the order in which they are tried for a model of ours; Mistral comes after Llama, which says the same."""
