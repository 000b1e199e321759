"""Other people's encoders and encoder-decoders: BERT and Marian, as `hub.py` reads and writes them.

    BERT     BertModel (head `none`), BertForMaskedLM (`tokens`), BertForSequenceClassification (`classes`): post-norm,
             learned positions, a norm on their sum, two token types
    Marian   MarianMTModel: the 2017 encoder-decoder with one embedding for both sides, sines first and cosines
             after them, and a bias on the logits, kept as a matrix of one row

Not read, because no prediction of the model depends on it: BERT's head for the next sentence where a file of
BertForMaskedLM holds one, and tables of positions that are computed.

Source: the configs and modules of `transformers` 5 (their attribute names are the format).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassformer.model.config import ModelConfig
from glassformer.model.hub_family import THEIR_ACTIVATION, Family, Fields, activation

_HEADS = {"none": "BertModel", "tokens": "BertForMaskedLM", "classes": "BertForSequenceClassification"}
_HEAD_OF = {architecture: head for head, architecture in _HEADS.items()}
_MARIAN_EPSILON = 1e-5  # torch's own default, which their modules leave as it is


def is_computed(family: Family, name: str) -> bool:
    """Whether a tensor in a file of theirs is a table, a copy, or the head of another task."""
    return family.model_type in _COMPUTED and name.endswith(_COMPUTED[family.model_type])


_COMPUTED = {
    "bert": (
        "embeddings.position_ids",
        "cls.predictions.decoder.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ),
    "marian": ("embed_positions.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
}


def _read_bert(fields: Fields, problems: list[str]) -> dict[str, Any]:
    architecture = (fields.get("architectures") or ["BertModel"])[0]
    if architecture not in _HEAD_OF:
        problems.append(f"architectures = [{architecture!r}]: its head is none of {', '.join(_HEAD_OF)}")
    head = _HEAD_OF.get(architecture, "none")
    if fields.get("is_decoder"):
        problems.append("is_decoder = true: an encoder's attention sees the whole row")
    if (kind := fields.get("position_embedding_type", "absolute")) != "absolute":
        problems.append(f"position_embedding_type = {kind!r}: positions are added, not compared")
    if head == "tokens" and not fields.get("tie_word_embeddings", True):
        problems.append("tie_word_embeddings = false: the output matrix is the token embedding")
    if not fields.get("type_vocab_size", 2):
        problems.append("type_vocab_size = 0: a row has at least one part")
    values: dict[str, Any] = {
        "kind": "encoder", "vocab": fields["vocab_size"], "width": fields["hidden_size"],
        "layers": fields["num_hidden_layers"], "heads": fields["num_attention_heads"],
        "feedforward": fields["intermediate_size"], "context": fields.get("max_position_embeddings", 512),
        "activation": activation(fields.get("hidden_act", "gelu"), "hidden_act", problems), "norm": "layernorm",
        "norm_place": "post", "norm_epsilon": fields.get("layer_norm_eps", 1e-12), "bias": True,
        "positions": "learned", "embed_norm": True, "token_types": fields.get("type_vocab_size", 2), "head": head,
        "dropout": _one(fields, "hidden_dropout_prob", "attention_probs_dropout_prob"),
        "pooler": fields.get("add_pooling_layer", head != "tokens"), "tied": fields.get("tie_word_embeddings", True),
    }  # fmt: skip
    if head == "tokens":
        values |= {"head_bias": True, "head_transform": True}
    if head == "classes":
        values["classes"] = len(fields["id2label"]) if "id2label" in fields else fields.get("num_labels", 2)
        if values["classes"] < 2 or fields.get("problem_type") not in (None, "single_label_classification"):
            problems.append(f"problem_type = {fields.get('problem_type')!r} with {values['classes']} labels: a row "
                            "has one class of at least two")  # fmt: skip
            values["classes"] = max(2, values["classes"])
    return values


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "architectures": [_HEADS[config.head]], "hidden_size": config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.num_heads, "intermediate_size": config.ff_width,
        "max_position_embeddings": config.context, "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_epsilon, "hidden_act": THEIR_ACTIVATION[config.activation],
        "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout,
        "add_pooling_layer": config.pooler,
    }  # fmt: skip
    if config.head == "classes":
        found |= named_classes([f"LABEL_{number}" for number in range(config.num_classes)])
    return found


def named_classes(names: Sequence[str]) -> dict[str, Any]:
    """What their config says about classes."""
    by_number = {str(number): name for number, name in enumerate(names)}
    return {"id2label": by_number, "label2id": {name: number for number, name in enumerate(names)}}


def class_names(fields: Fields, config: ModelConfig) -> tuple[str, ...]:
    """The names of a classifier's classes, where their config has them."""
    if config.head != "classes" or "id2label" not in fields:
        return ()
    names = {int(number): str(name) for number, name in fields["id2label"].items()}
    return tuple(names[number] for number in sorted(names))


def _bert_needs(config: ModelConfig) -> dict[str, Any]:
    needs = {**_POST, "positions": "learned", "embed_norm": True, "token_types": max(1, config.token_types),
             "scale_embeddings": False, **_whole_heads(config)}  # fmt: skip
    if config.head == "tokens":
        needs |= {"head_bias": True, "head_transform": True, "tied": True}
    if config.head == "classes":
        needs["pooler"] = True
    return needs


def _read_marian(fields: Fields, problems: list[str]) -> dict[str, Any]:
    for size in ("attention_heads", "ffn_dim"):
        encoder, decoder = fields[f"encoder_{size}"], fields[f"decoder_{size}"]
        if encoder != decoder:
            problems.append(
                f"encoder_{size} = {encoder}, decoder_{size} = {decoder}: both stacks have the same"
            )
    vocab, written = fields["vocab_size"], fields.get("decoder_vocab_size")
    if written not in (None, vocab):
        problems.append(
            f"decoder_vocab_size = {written}, vocab_size = {vocab}: both sides have one vocabulary"
        )
    for key, reason in _MARIAN_TRUE.items():
        if fields.get(key, True) is False:
            problems.append(f"{key} = false: {reason}")
    for key, reason in _MARIAN_FALSE.items():
        if fields.get(key):
            problems.append(f"{key} = true: {reason}")
    return {
        "kind": "encoder-decoder", "vocab": vocab, "width": fields["d_model"], "layers": fields["decoder_layers"],
        "encoder_layers": fields["encoder_layers"], "heads": fields["encoder_attention_heads"],
        "feedforward": fields["encoder_ffn_dim"], "context": fields.get("max_position_embeddings", 1024),
        "activation": activation(fields.get("activation_function", "gelu"), "activation_function", problems),
        "norm": "layernorm", "norm_place": "post", "norm_epsilon": _MARIAN_EPSILON, "bias": True, "head_bias": True,
        "positions": "sinusoidal_halves", "scale_embeddings": fields.get("scale_embedding", False),
        "dropout": _one(fields, "dropout", "attention_dropout"),
    }  # fmt: skip


_MARIAN_TRUE = {
    "share_encoder_decoder_embeddings": "both sides have one embedding",
    "tie_word_embeddings": "the output matrix is the token embedding",
    "static_position_embeddings": "positions are sines and cosines, not learned",
}
_MARIAN_FALSE = {
    "normalize_before": "norms come after the sum",
    "normalize_embedding": "there is no norm before the first block",
    "add_final_layer_norm": "there is no norm after the last block",
}


def _write_marian(config: ModelConfig) -> dict[str, Any]:
    sizes = {"attention_heads": config.num_heads, "ffn_dim": config.ff_width}
    both = {f"{side}_{key}": size for key, size in sizes.items() for side in ("encoder", "decoder")}
    return {
        **both, "d_model": config.width, "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.layers, "decoder_vocab_size": config.vocab_size, "is_encoder_decoder": True,
        "max_position_embeddings": config.context, "scale_embedding": config.scale_embeddings,
        "activation_function": THEIR_ACTIVATION[config.activation], "dropout": config.dropout,
        "attention_dropout": config.dropout, "activation_dropout": 0.0, "share_encoder_decoder_embeddings": True,
    }  # fmt: skip


def _marian_needs(config: ModelConfig) -> dict[str, Any]:
    more = {"positions": "sinusoidal_halves", "embed_norm": False, "head_bias": True, "tied": True}
    return {**_POST, **more, "norm_epsilon": _MARIAN_EPSILON, **_whole_heads(config)}


def _marian_ids(end: int) -> dict[str, Any]:
    """A text begins with the token that ends one, and padding is never looked at."""
    return {"bos_token_id": None, **dict.fromkeys(
        ("eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id"), end
    )}  # fmt: skip


_POST: dict[str, Any] = {
    "norm": "layernorm", "norm_place": "post", "bias": True, "gated": False, "qk_norm": False,
}  # fmt: skip


def _whole_heads(config: ModelConfig) -> dict[str, Any]:
    """Their heads are width / heads, each with its own key and value."""
    width = config.num_heads * -(-config.width // config.num_heads)
    needs = {"num_kv_heads": config.num_heads, "head_width": width // config.num_heads}
    return needs if width == config.width else {**needs, "width": width}


def _one(fields: Fields, *keys: str) -> float:
    """The dropout they all name; without agreement none, as it belongs to training."""
    found = {fields.get(key, 0.1 if key != "attention_dropout" else 0.0) for key in keys}
    return found.pop() if len(found) == 1 else 0.0


_BERT_NAMES = {
    "embed": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings", "embed_norm": "embeddings.LayerNorm", "blocks": "encoder.layer",
    "attn.qkv": "attention.self.query attention.self.key attention.self.value", "attn.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm", "mlp.up": "intermediate.dense", "mlp.down": "output.dense",
    "norm2": "output.LayerNorm", "pooler": "pooler.dense", "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm", "head": "cls.predictions.decoder",
    "head.bias": "cls.predictions.bias", "classes": "classifier",
}  # fmt: skip
_MARIAN_NAMES = {
    "embed": "shared", "encoder": "encoder.layers", "decoder": "decoder.layers", "head": "lm_head",
    "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "attn.out": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm", "cross.out": "encoder_attn.out_proj",
    "cross.qkv": "encoder_attn.q_proj encoder_attn.k_proj encoder_attn.v_proj",
    "norm_cross": "encoder_attn_layer_norm", "mlp.up": "fc1", "mlp.down": "fc2", "norm2": "final_layer_norm",
    "head.bias": "final_logits_bias",
}  # fmt: skip

FAMILIES = (
    Family(
        "bert", "BertModel", "bert", _read_bert, _write_bert, _bert_needs, _BERT_NAMES, kind="encoder",
        outside=frozenset({"head", "transform", "transform_norm"}),
    ),
    Family(
        "marian", "MarianMTModel", "model", _read_marian, _write_marian, _marian_needs, _MARIAN_NAMES,
        kind="encoder-decoder", ids=_marian_ids,
    ),
)  # fmt: skip
