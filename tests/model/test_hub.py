"""Other people's weights and configs: a bijection, logits equal to theirs, refusals that name the key."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import ConfigError, ModelError
from glassformer.model import hub
from glassformer.model.config import Activation, ModelConfig
from glassformer.model.stacks import Decoder, build

SMALL = {"vocab_size": 61, "max_position_embeddings": 24}
LLAMA = {
    **SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip
NEOX = {
    **SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "gpt2": transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=32, n_layer=3, n_head=4),
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama-bias-head-tied": transformers.LlamaConfig(
        **LLAMA, attention_bias=True, mlp_bias=True, head_dim=6, tie_word_embeddings=True, rope_theta=5e5
    ),
    "mistral": transformers.MistralConfig(**LLAMA, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**LLAMA),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=16),
    "arcee": transformers.ArceeConfig(**LLAMA, tie_word_embeddings=True),
    "arcee-bias": transformers.ArceeConfig(**LLAMA, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "gpt_neox": transformers.GPTNeoXConfig(**NEOX),
    "gpt_neox-in-turn": transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=False, rotary_pct=1.0),
}


def theirs(name: str, std: float = 0.2) -> Any:
    """Their model with weights that are large enough for an error to show."""
    model = transformers.AutoModelForCausalLM.from_config(THEIRS[name], attn_implementation="eager").eval()
    for weight in model.parameters():
        weight.data.normal_(0.0, std)
    return model


def as_filed(model: Any) -> dict[str, torch.Tensor]:
    """Their weights under the names of their files: in memory they call NeoX's head otherwise."""
    head = "embed_out" if model.config.model_type == "gpt_neox" else "lm_head"
    return {
        name.replace("lm_head", head): weight for name, weight in model.state_dict(keep_vars=True).items()
    }


def ours(model: Any) -> Decoder:
    fields = model.config.to_dict()
    family, config = hub.family_of(fields), hub.read_config(fields)
    state = as_filed(model)
    made = build(config)
    for part in hub.parts(family, config):
        with torch.no_grad():
            made.get_parameter(part.ours).copy_(part.join([state[one] for one in part.theirs]))
    return made.eval()


@pytest.mark.parametrize("name", THEIRS)
def test_logits_are_those_of_transformers(name: str) -> None:
    model, ids = theirs(name), torch.randint(61, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(model)(ids), model(ids).logits, rtol=0, atol=5e-5)


def test_gpt2_agrees_to_the_last_digits_of_float64() -> None:
    model, ids = theirs("gpt2"), torch.randint(61, (2, 20))
    with torch.no_grad():
        expected = model.double()(ids).logits
        torch.testing.assert_close(ours(model).double()(ids), expected, rtol=0, atol=1e-12)


@st.composite
def expressible(draw: st.DrawFn) -> tuple[str, ModelConfig]:
    """A family's name and a config that it can express."""
    kind = draw(st.sampled_from(["gpt2", "llama", "qwen2", "qwen3", "arcee", "gpt_neox"]))
    wide = kind in ("gpt2", "gpt_neox")
    kv, d_head = draw(st.integers(1, 3)), 4 * draw(st.integers(1, 3))
    heads = kv if wide else kv * draw(st.integers(1, 3))
    values: dict[str, Any] = {
        "vocab": draw(st.integers(2, 40)), "width": heads * d_head, "layers": draw(st.integers(0, 3)),
        "heads": heads, "kv_heads": kv, "context": draw(st.integers(1, 20)), "tied": draw(st.booleans()),
        "feedforward": draw(st.integers(1, 30)), "activation": draw(st.sampled_from(get_args(Activation))),
    }  # fmt: skip
    if wide:
        values |= {"norm": "layernorm", "bias": True, "positions": "learned" if kind == "gpt2" else "rope"}
    else:
        values |= {"gated": kind != "arcee", "head_size": d_head * draw(st.integers(1, 2))}
        values["bias"] = kind in ("llama", "arcee") and draw(st.booleans())
        values |= {"qkv_bias": kind == "qwen2", "qk_norm": kind == "qwen3"}
    if kind == "gpt_neox":
        values |= {"rotary_fraction": draw(st.sampled_from([0.5, 1.0])), "parallel": draw(st.booleans())}
    if kind != "gpt2":
        values["rope_base"] = draw(st.sampled_from([10000.0, 5e5]))
    return kind, ModelConfig(**values)


@settings(max_examples=60)
@given(expressible(), st.integers(0, 9))
def test_ours_to_theirs_to_ours_is_the_identity_to_the_bit(case: tuple[str, ModelConfig], seed: int) -> None:
    kind, config = case
    family, fields = hub.write_config(config)
    assert family.model_type == kind
    again = hub.read_config(fields)
    same = {"heads", "kv_heads", "head_size", "feedforward"}
    assert again.model_dump(exclude=same) == config.model_dump(exclude=same)
    for size in ("num_heads", "num_kv_heads", "head_width", "ff_width"):
        assert getattr(again, size) == getattr(config, size)
    weights = dict(Decoder(config, seed=seed).named_parameters())
    parts = hub.parts(family, config)
    names = [name for part in parts for name in part.theirs]
    assert [part.ours for part in parts] == list(weights) and len(set(names)) == len(names)
    for part in parts:
        split = part.split(weights[part.ours])
        assert [tuple(one.shape) for one in split] == list(part.theirs.values())
        assert torch.equal(part.join(split), weights[part.ours])


@pytest.mark.parametrize("name", THEIRS)
def test_our_names_and_shapes_are_all_of_theirs_and_no_other(name: str) -> None:
    model = theirs(name)
    config = hub.read_config(model.config.to_dict())
    parts = hub.parts(hub.family_of(model.config.to_dict()), config)
    tied = {"lm_head.weight", "embed_out.weight"} if config.tied else set()
    expected = {key: tuple(weight.shape) for key, weight in as_filed(model).items() if key not in tied}
    assert {key: shape for part in parts for key, shape in part.theirs.items()} == expected


def test_all_that_cannot_be_represented_is_refused_at_once() -> None:
    fields = {
        **THEIRS["mistral"].to_dict(), "sliding_window": 8, "hidden_act": "mish", "attention_bias": True,
        "quantization_config": {"bits": 4}, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4},
        "num_local_experts": 8, "attn_logit_softcapping": 50.0,
    }  # fmt: skip
    with pytest.raises(ModelError) as caught:
        hub.read_config(fields)
    for key in ("sliding_window = 8", "hidden_act = 'mish'", "attention_bias", "quantization_config", "'yarn'",
                "num_local_experts = 8", "attn_logit_softcapping = 50.0"):  # fmt: skip
        assert key in str(caught.value)
    for change in (
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
        {"scale_attn_weights": False},
    ):
        with pytest.raises(ModelError, match=next(iter(change))):
            hub.read_config({**THEIRS["gpt2"].to_dict(), **change})


@pytest.mark.parametrize(("kind", "says"), [("t5", "'t5'"), (None, "None")])
def test_a_type_without_a_family_is_refused_by_name(kind: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        hub.read_config({"model_type": kind})


def test_a_config_with_a_key_missing_or_a_value_of_another_type_says_which() -> None:
    fields = THEIRS["llama"].to_dict()
    with pytest.raises(ModelError, match="hidden_size"):
        hub.read_config({key: value for key, value in fields.items() if key != "hidden_size"})
    with pytest.raises(ConfigError, match="layers"):
        hub.read_config({**fields, "num_hidden_layers": -3})
    with pytest.raises(ConfigError, match="heads"):
        hub.read_config({**fields, "num_attention_heads": "four"})


def test_the_demos_model_is_an_arcee_and_with_a_gate_a_llama() -> None:
    for gated, kind in ((False, "arcee"), (True, "llama")):
        family, fields = hub.write_config(ModelConfig(vocab=100, width=192, layers=4, gated=gated))
        assert family.model_type == kind and fields["hidden_act"] == "relu2"


def test_a_model_without_a_family_is_refused_with_the_settings_that_would_make_it_exportable() -> None:
    with pytest.raises(ModelError, match=r"arcee: positions = 'alibi', needs 'rope'\n") as caught:
        hub.write_config(ModelConfig(vocab=100, width=192, layers=4, positions="alibi"))
    assert "llama: positions = 'alibi', needs 'rope'; gated = false, needs true\n" in str(caught.value)
    assert "gpt2: positions = 'alibi', needs 'learned'" in str(caught.value)
