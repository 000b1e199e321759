"""What a trace holds, by the names of places, beside what transformers gives out with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from from_transformers import drawn, ours

import glassformer as gf

LOGITS, ATTENTION, HIDDEN = 5e-5, 2e-5, 5e-5
SMALL = {"vocab_size": 97, "max_position_embeddings": 32}
CONFIGS: dict[str, Any] = {
    "GPT2LMHeadModel": transformers.GPT2Config(
        vocab_size=97, n_positions=32, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0,
    ),
    "LlamaForCausalLM": transformers.LlamaConfig(
        **SMALL, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=200,
    ),
    "BertForMaskedLM": transformers.BertConfig(
        **SMALL, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=200
    ),
    "MarianMTModel": transformers.MarianConfig(
        **SMALL, d_model=128, encoder_layers=4, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=200, decoder_ffn_dim=200, pad_token_id=0, eos_token_id=0,
        decoder_start_token_id=0, scale_embedding=True, activation_function="relu",
    ),
}  # fmt: skip
IDS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))
SOURCE = torch.randint(97, (2, 29), generator=torch.Generator().manual_seed(2))


def theirs(name: str) -> Any:
    config = CONFIGS[name]
    config._attn_implementation = "eager"
    return drawn(getattr(transformers, name)(config))


def near(found: torch.Tensor, expected: torch.Tensor, most: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=most)


def pair(name: str, dtype: torch.dtype) -> tuple[gf.Trace, Any]:
    """A whole trace of ours, and all that theirs gives out."""
    model = theirs(name).to(dtype)
    asked = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        if name == "MarianMTModel":
            return gf.look(ours(model), SOURCE, "*", target=IDS), model(
                SOURCE, decoder_input_ids=IDS, **asked
            )
        return gf.look(ours(model), IDS, "*"), model(IDS, **asked)


@pytest.mark.parametrize(
    ("name", "dtype", "logits", "attention", "hidden"),
    [
        ("GPT2LMHeadModel", torch.float32, LOGITS, ATTENTION, HIDDEN),
        ("GPT2LMHeadModel", torch.float64, 1e-12, 1e-12, 1e-12),
        ("LlamaForCausalLM", torch.float32, LOGITS, ATTENTION, HIDDEN),
        ("BertForMaskedLM", torch.float32, LOGITS, ATTENTION, HIDDEN),
        ("BertForMaskedLM", torch.float64, 1e-12, 1e-12, 1e-12),
    ],
)
def test_a_stacks_logits_patterns_and_stream_are_those_of_transformers(
    name: str, dtype: torch.dtype, logits: float, attention: float, hidden: float
) -> None:
    trace, given = pair(name, dtype)
    near(trace["logits"], given.logits, logits)
    for found, expected in zip(gf.attention_tuple(trace), given.attentions, strict=True):
        near(found, expected, attention)
    stream = [trace[f"blocks.{layer}.resid_pre"] for layer in range(4)]
    stream.append(trace.get("ln_final.normalized", trace["blocks.3.resid_post"]))
    for found, expected in zip(stream, given.hidden_states, strict=True):
        near(found, expected, hidden)


def test_an_encoder_decoders_three_attentions_and_two_streams_are_those_of_transformers() -> None:
    trace, given = pair("MarianMTModel", torch.float32)
    near(trace["logits"], given.logits, LOGITS)
    for which, expected in (
        ("encoder", given.encoder_attentions),
        ("decoder", given.decoder_attentions),
        ("cross", given.cross_attentions),
    ):
        found = gf.attention_tuple(trace, which)
        assert [one.shape for one in found] == [one.shape for one in expected]
        for ours_, theirs_ in zip(found, expected, strict=True):
            near(ours_, theirs_, ATTENTION)
    for stack, states in (("encoder", given.encoder_hidden_states), ("decoder", given.decoder_hidden_states)):
        found = [trace[f"{stack}.{layer}.resid_pre"] for layer in range(len(states) - 1)]
        found.append(trace[f"{stack}.{len(states) - 2}.resid_post"])
        for ours_, theirs_ in zip(found, states, strict=True):
            near(ours_, theirs_, HIDDEN)
