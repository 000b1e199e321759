"""BERT and Marian: a bijection, outputs equal to theirs, refusals that name the key."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import ModelError
from glassformer.model import hub
from glassformer.model.config import Activation, ModelConfig
from glassformer.model.stacks import Encoder, EncoderDecoder, build

BERT = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 24,
}  # fmt: skip
MARIAN = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 24,
    "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0, "scale_embedding": True,
    "activation_function": "relu",
}  # fmt: skip
BERTS: dict[str, Any] = {
    "none": transformers.BertModel,
    "tokens": transformers.BertForMaskedLM,
    "classes": transformers.BertForSequenceClassification,
}


def bert(head: str, **changes: Any) -> Any:
    """Their model with weights that are large enough for an error to show."""
    config = transformers.BertConfig(**{**BERT, "num_labels": 5, **changes}, attn_implementation="eager")
    return drawn(BERTS[head](config).eval())


def marian(**changes: Any) -> Any:
    config = transformers.MarianConfig(**{**MARIAN, **changes}, attn_implementation="eager")
    model = transformers.MarianMTModel(config).eval()
    model.final_logits_bias.normal_()
    return drawn(model)


def drawn(model: Any) -> Any:
    for name, weight in model.named_parameters():
        if "embed_positions" not in name:
            weight.data.normal_(0.0, 0.2)
    return model


def fields_of(model: Any) -> dict[str, Any]:
    """The config that their `save_pretrained` writes."""
    return {**model.config.to_dict(), "architectures": [type(model).__name__]}


def ours(model: Any) -> Any:
    fields, state = fields_of(model), dict(model.state_dict(keep_vars=True))
    family, config = hub.family_of(fields), hub.read_config(fields, tensors=list(state))
    made = build(config)
    for part in hub.parts(family, config):
        with torch.no_grad():
            made.get_parameter(part.ours).copy_(part.join([state[one] for one in part.theirs]))
    return made.eval()


def row(*shape: int) -> torch.Tensor:
    return torch.randint(1, 61, shape)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("head", BERTS)
def test_a_berts_vectors_and_scores_are_those_of_transformers(head: str, activation: str) -> None:
    model, ids = bert(head, hidden_act=activation), row(2, 20)
    types = (torch.arange(20) > 8).long().expand(2, -1)
    made = ours(model)
    assert isinstance(made, Encoder)
    with torch.no_grad():
        theirs = model(ids, token_type_ids=types)
        torch.testing.assert_close(made(ids, types=types), theirs[0], rtol=0, atol=5e-5)
        if head == "none":
            torch.testing.assert_close(made.pooled(theirs[0]), theirs.pooler_output, rtol=0, atol=5e-5)


@pytest.mark.parametrize("head", BERTS)
def test_bert_agrees_to_the_last_digits_of_float64(head: str) -> None:
    model, ids = bert(head).double(), row(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(model).double()(ids), model(ids)[0], rtol=0, atol=1e-12)


def test_what_is_padded_changes_nothing_as_with_their_mask() -> None:
    model, ids = bert("none"), row(2, 20)
    mask = torch.ones_like(ids)
    mask[0, 13:] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask)[0]
        found = ours(model)(ids, segments=mask - 1)
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], rtol=0, atol=5e-5)


@pytest.mark.parametrize("changes", [{}, {"activation_function": "swish", "scale_embedding": False}])
def test_a_marians_logits_and_cross_attention_are_those_of_transformers(changes: dict[str, Any]) -> None:
    model, source, ids = marian(**changes), row(2, 20), row(2, 15)
    made = ours(model)
    assert isinstance(made, EncoderDecoder)
    with torch.no_grad():
        theirs = model(source, decoder_input_ids=ids, output_attentions=True)
        torch.testing.assert_close(made(source, ids), theirs.logits, rtol=0, atol=5e-5)
        torch.testing.assert_close(made.double()(source, ids), model.double()(source, decoder_input_ids=ids).logits,
                                   rtol=0, atol=1e-6)  # fmt: skip # their table of positions is of float32
    seen: dict[str, torch.Tensor] = {}

    def see(name: str, y: torch.Tensor) -> torch.Tensor:
        seen[name] = y
        return y

    made.float()(source, ids, see=see)
    for layer, expected in enumerate(theirs.cross_attentions):
        found = seen[f"decoder.{layer}.cross_attn.pattern"]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert len(theirs.cross_attentions) == 2


@pytest.mark.parametrize(
    "model", [bert("none"), bert("tokens"), bert("classes"), marian()], ids=lambda model: type(model).__name__
)
def test_our_names_and_shapes_are_all_of_their_files_and_no_other(model: Any, tmp_path: Any) -> None:
    import safetensors

    model.save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 # no mapping
    fields = fields_of(model)
    family, config = hub.family_of(fields), hub.read_config(fields, tensors=list(written))
    parts = hub.parts(family, config)
    assert {name: shape for part in parts for name, shape in part.theirs.items()} == written


@st.composite
def expressible(draw: st.DrawFn) -> tuple[str, ModelConfig]:
    """A family's name and a config that it can express."""
    kind = draw(st.sampled_from(["bert", "marian"]))
    heads = draw(st.integers(1, 4))
    values: dict[str, Any] = {
        "vocab": draw(st.integers(2, 40)), "width": heads * 2 * draw(st.integers(1, 4)), "heads": heads,
        "layers": draw(st.integers(0, 3)), "context": draw(st.integers(1, 20)), "norm": "layernorm",
        "feedforward": draw(st.integers(1, 30)), "activation": draw(st.sampled_from(get_args(Activation))),
        "norm_place": "post", "bias": True, "dropout": draw(st.sampled_from([0.0, 0.25])),
    }  # fmt: skip
    if kind == "marian":
        values |= {"kind": "encoder-decoder", "positions": "sinusoidal_halves", "head_bias": True,
                   "encoder_layers": draw(st.integers(0, 3)), "scale_embeddings": draw(st.booleans())}  # fmt: skip
        return kind, ModelConfig(**values)
    head = draw(st.sampled_from(["none", "tokens", "classes"]))
    values |= {"kind": "encoder", "positions": "learned", "embed_norm": True, "head": head,
               "token_types": draw(st.integers(1, 3)), "norm_epsilon": draw(st.sampled_from([1e-12, 1e-5])),
               "pooler": head == "classes" or draw(st.booleans())}  # fmt: skip
    if head == "tokens":
        values |= {"head_bias": True, "head_transform": True}
    if head == "classes":
        values["classes"] = draw(st.integers(2, 6))
    return kind, ModelConfig(**values)


@settings(max_examples=60)
@given(expressible(), st.integers(0, 9))
def test_ours_to_theirs_to_ours_is_the_identity_to_the_bit(case: tuple[str, ModelConfig], seed: int) -> None:
    kind, config = case
    family, fields = hub.write_config(config)
    assert family.model_type == kind
    same = {"heads", "kv_heads", "head_size", "feedforward"}
    again = hub.read_config(fields)
    assert again.model_dump(exclude=same) == config.model_dump(exclude=same)
    assert (again.num_heads, again.ff_width) == (config.num_heads, config.ff_width)
    weights = dict(build(config, seed=seed).named_parameters())
    parts = hub.parts(family, config)
    names = [name for part in parts for name in part.theirs]
    assert {part.ours for part in parts} == set(weights) and len(set(names)) == len(names)
    for part in parts:
        split = part.split(weights[part.ours])
        assert [tuple(one.shape) for one in split] == list(part.theirs.values())
        assert torch.equal(part.join(split), weights[part.ours])


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (bert("tokens"), {"architectures": ["BertForQuestionAnswering"], "is_decoder": True}),
        (bert("tokens"), {"position_embedding_type": "relative_key", "hidden_act": "mish"}),
        (bert("tokens"), {"tie_word_embeddings": False, "type_vocab_size": 0}),
        (bert("classes"), {"problem_type": "regression", "add_cross_attention": True}),
        (marian(), {"decoder_ffn_dim": 40, "decoder_attention_heads": 2, "decoder_vocab_size": 30}),
        (marian(), {"share_encoder_decoder_embeddings": False, "normalize_before": True}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_all_that_cannot_be_represented_is_refused_at_once(model: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        hub.read_config({**fields_of(model), **changes})
    assert all(f"{key} = " in str(caught.value) for key in changes)


def test_an_encoder_that_no_family_expresses_is_refused_with_the_settings_that_would_help() -> None:
    with pytest.raises(ModelError, match=r"bert: norm = 'rmsnorm', needs 'layernorm'") as caught:
        hub.write_config(ModelConfig(kind="encoder", vocab=100))
    assert "gpt2" not in str(caught.value)


def test_bert_files_of_old_and_the_other_tasks_head_are_understood() -> None:
    family, config = hub.write_config(expressible_bert())[0], expressible_bert()
    expected = {name for part in hub.parts(family, config) for name in part.theirs}
    old = "bert.embeddings.LayerNorm.gamma"
    assert hub.their_name(family, old, expected) == "bert.embeddings.LayerNorm.weight"
    assert hub.is_computed(family, "cls.seq_relationship.weight", config)


def expressible_bert() -> ModelConfig:
    return ModelConfig(
        kind="encoder", vocab=30, width=16, layers=1, heads=2, context=8, norm="layernorm", norm_place="post",
        bias=True, activation="gelu", positions="learned", embed_norm=True, token_types=2, head_bias=True,
        head_transform=True,
    )  # fmt: skip
