"""Whole decoders against Hugging Face's GPT-2 and Llama with the same weights; nothing leaks backwards."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from glassformer.errors import ModelError
from glassformer.model.attention import Kernel
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import Decoder, build, count_parameters

PRECISION = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-12)])


def wide(model):
    """Weights large enough for every part to matter: attention not uniform, norms not at their start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model


@PRECISION
def test_a_decoder_equals_gpt2(dtype, tolerance):
    config = ModelConfig(
        vocab=97, width=128, layers=4, heads=4, context=32, positions="learned", norm="layernorm", bias=True,
        activation="gelu",
    )  # fmt: skip
    ours = wide(Decoder(config))
    theirs = GPT2LMHeadModel(GPT2Config(
        vocab_size=97, n_embd=128, n_layer=4, n_head=4, n_positions=32, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    ))  # fmt: skip
    mine = dict(ours.named_parameters())
    names = {
        "wte": "embed",
        "wpe": "positions",
        "h": "blocks",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "ln_f": "norm",
    }
    layers = {"c_attn": "qkv", "c_fc": "up", "lm_head": "head"}
    for name, parameter in theirs.named_parameters():
        words = [{**names, **layers}.get(word, word) for word in name.removeprefix("transformer.").split(".")]
        words = [{"attn": "out", "mlp": "down"}[words[2]] if word == "c_proj" else word for word in words]
        value = mine.pop(".".join(words)).data
        parameter.data.copy_(value.T if "c_" in name and value.ndim == 2 else value)
    assert not mine
    compare(ours, theirs, dtype, tolerance)


@PRECISION
def test_a_decoder_equals_llama(dtype, tolerance):
    config = ModelConfig(
        vocab=97, width=128, layers=4, heads=4, kv_heads=2, context=32, gated=True, activation="silu",
        feedforward=200, tied=False,
    )  # fmt: skip
    ours = wide(Decoder(config))
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=97, hidden_size=128, intermediate_size=200, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
    ))  # fmt: skip
    state = {"model.embed_tokens.weight": ours.embed.weight, "lm_head.weight": ours.head.weight}
    state["model.norm.weight"] = ours.norm.weight
    for number, block in enumerate(ours.blocks):
        layer = f"model.layers.{number}"
        split = dict(zip("qkv", block.attn.qkv.weight.split(block.attn.sizes), strict=True))
        state |= {f"{layer}.self_attn.{letter}_proj.weight": weight for letter, weight in split.items()}
        gate, up = block.mlp.up.weight.chunk(2)
        state |= {f"{layer}.mlp.gate_proj.weight": gate, f"{layer}.mlp.up_proj.weight": up}
        state |= {f"{layer}.self_attn.o_proj.weight": block.attn.out.weight}
        state |= {f"{layer}.mlp.down_proj.weight": block.mlp.down.weight}
        state |= {f"{layer}.input_layernorm.weight": block.norm1.weight}
        state |= {f"{layer}.post_attention_layernorm.weight": block.norm2.weight}
    theirs.load_state_dict(state)
    # Llama computes its norms and its table of angles in float32 even for float64 weights. With torch's norms
    # in their place, and its table in ours, the rest can be compared to the last digits.
    if dtype is torch.float64:
        for layer in theirs.model.layers:
            layer.input_layernorm = exact(layer.input_layernorm)
            layer.post_attention_layernorm = exact(layer.post_attention_layernorm)
        theirs.model.norm = exact(theirs.model.norm)
    cos, sin = theirs.model.rotary_emb(torch.zeros(1), torch.arange(32)[None])
    torch.testing.assert_close(ours.turn, torch.stack([cos[0, :, :16], sin[0, :, :16]]), atol=1e-5, rtol=0)
    ours.turn = torch.stack([cos[0, :, :16], sin[0, :, :16]])
    compare(ours, theirs, dtype, tolerance)


def exact(norm):
    replacement = torch.nn.RMSNorm(norm.weight.numel(), eps=norm.variance_epsilon)
    replacement.weight = norm.weight
    return replacement


def compare(ours, theirs, dtype, tolerance):
    ours, theirs, ids = ours.to(dtype).eval(), theirs.to(dtype).eval(), torch.randint(0, 97, (3, 32))
    expected = theirs(ids, use_cache=False).logits
    assert expected.std() > 0.3
    for kernel in get_args(Kernel):
        ours.use_attention(kernel)
        torch.testing.assert_close(ours(ids), expected, atol=tolerance, rtol=0)
    loss = ours.loss(ids[:, :-1], ids[:, 1:])
    theirs_loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, theirs_loss, atol=tolerance, rtol=0)


@given(at=st.integers(0, 15), positions=st.sampled_from(["rope", "learned", "sinusoidal", "alibi", "none"]))
def test_a_token_changes_nothing_before_it(at, positions):
    model = wide(Decoder(ModelConfig(vocab=29, width=24, layers=2, heads=4, context=16, positions=positions)))
    ids = torch.arange(16)[None]
    changed = ids.clone()
    changed[0, at] = 28
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal", "alibi", "none"])
@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_documents_in_one_row_do_not_see_each_other(tiny, positions, kernel):
    """Another document's tokens change no logit by a bit, and get a gradient of exactly zero."""
    model = wide(Decoder(tiny(positions=positions)))
    model.use_attention(kernel)
    segments = torch.tensor([[0] * 6 + [1] * 7 + [2] * 3])
    ids = torch.arange(16)[None]
    changed = ids.clone()
    changed[0, :6] = torch.arange(20, 26)
    before, after = model(ids, segments=segments), model(changed, segments=segments)
    assert torch.equal(before[:, 6:], after[:, 6:])
    assert not torch.equal(before[:, :6], after[:, :6])
    model.head.weight = torch.nn.Parameter(
        model.head.weight.detach().clone()
    )  # so that only inputs reach embed
    model(ids, segments=segments)[:, 6:13].square().sum().backward()
    reached = model.embed.weight.grad[:16].abs().sum(-1) > 0
    assert reached.tolist() == [False] * 6 + [True] * 7 + [False] * 3


@pytest.mark.parametrize("positions", ["alibi", "none", "rope"])
def test_a_masked_document_reads_as_if_it_were_alone(tiny, positions):
    """These positions say how far apart tokens are, so where a document starts does not matter."""
    model = wide(Decoder(tiny(positions=positions))).double()
    segments = torch.tensor([[0] * 6 + [1] * 10])
    ids = torch.arange(16)[None]
    torch.testing.assert_close(model(ids, segments=segments)[:, 6:], model(ids[:, 6:]), atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_over_targets_of_the_logits_cross_entropy(tiny):
    model, ids = Decoder(tiny()).double(), torch.randint(0, 29, (3, 16))
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(ids, targets), expected, atol=1e-14, rtol=0)


def test_embeddings_can_be_scaled_as_in_2017(tiny):
    seen = {}
    model = Decoder(tiny(scale_embeddings=True))
    model(torch.arange(5)[None], see=lambda name, y: seen.setdefault(name, y))
    torch.testing.assert_close(seen["embed"][0], model.embed.weight[:5] * 24**0.5)


def test_a_tied_head_is_the_embedding_and_counts_once(tiny):
    model = build(tiny())
    assert model.head.weight is model.embed.weight
    assert count_parameters(build(tiny(tied=False))) == count_parameters(model) + 29 * 24


def test_a_model_of_no_layers_is_embedding_norm_and_head(tiny):
    model = Decoder(tiny(layers=0))
    ids = torch.arange(5)[None]
    torch.testing.assert_close(model(ids), model.norm(model.embed(ids)) @ model.embed.weight.T)


@pytest.mark.parametrize("positions", ["rope", "learned", "sinusoidal"])
def test_a_row_longer_than_the_context_is_refused_with_both_numbers(tiny, positions):
    with pytest.raises(ModelError, match=r"holds 17 tokens.*context is 16"):
        Decoder(tiny(positions=positions))(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("positions", ["alibi", "none"])
def test_positions_without_a_table_read_longer_rows(tiny, positions):
    assert Decoder(tiny(positions=positions))(torch.zeros(1, 40, dtype=torch.long)).shape == (1, 40, 29)


def test_a_model_without_a_known_vocabulary_says_where_it_comes_from():
    with pytest.raises(ModelError, match="comes from the tokenizer"):
        Decoder(ModelConfig())
