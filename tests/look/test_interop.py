"""A trace under TransformerLens's names and in BertViz's shape: the lists are complete, and BertViz draws it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from glassformer.errors import UsageError
from glassformer.look.interop import Which
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.places import canonical, find
from glassformer.model.stacks import build
from glassformer.use.load import Loaded

SIZES = {"vocab": 257, "width": 16, "heads": 4, "context": 32}
GPT2 = {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"}
ATTENTION = ["q", "k", "v", "attn_scores", "pattern", "z", "result"]
NORMS = ["scale", "normalized"]


def loaded(layers: int, **own: Any) -> Loaded:
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind="bytes"), [b""])
    config = gf.ModelConfig(**{**SIZES, "layers": layers, "init": "xavier", **own})
    return Loaded(build(config).eval(), tokenizer, config, Path("made"))


def block(stack: str, *, cross: bool = False) -> list[str]:
    """The names of a block of TransformerLens's with LayerNorm; `result` is there for who asks."""
    attentions = ["attn", "cross_attn"] if cross else ["attn"]
    streams = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    streams += ["cross_attn_out", "resid_mid_cross"] if cross else []
    return [
        *(f"{stack}.0.hook_{name}" for name in streams),
        *(f"{stack}.0.{norm}.hook_{name}" for norm in ("ln1", "ln2") for name in NORMS),
        *(f"{stack}.0.{attn}.hook_{name}" for attn in attentions for name in ATTENTION),
        *(f"{stack}.0.mlp.hook_{name}" for name in ("pre", "post")),
    ]


OUTSIDE = [
    "hook_embed",
    "ln_final.hook_scale",
    "ln_final.hook_normalized",
    "unembed.hook_in",
    "unembed.hook_out",
]
ROTARY = ["blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k"]


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (GPT2, [*OUTSIDE, "hook_pos_embed", *block("blocks")]),
        ({"gated": True}, [*OUTSIDE, *block("blocks"), *ROTARY, "blocks.0.mlp.hook_pre_linear"]),
        (
            {"kind": "encoder-decoder"},
            [
                *(f"{stack}.{name}" for stack in ("encoder", "decoder") for name in OUTSIDE[:3]),
                *block("encoder"), *block("decoder", cross=True), "unembed.hook_out",
            ],
        ),
    ],
    ids=["decoder", "decoder with rope and a gate", "encoder-decoder"],
)  # fmt: skip
def test_no_name_of_transformer_lens_is_missing(own: dict[str, Any], theirs: list[str]) -> None:
    target = {"target": "le chat"} if own.get("kind") else {}
    trace = gf.look(loaded(1, **own), "the cat", "*", **target)
    assert set(theirs) - set(gf.transformer_lens_names(trace)) == set()
    assert all(name in trace for name in theirs)  # and Trace takes the same spellings


@pytest.mark.parametrize(
    "own",
    [
        GPT2, {"gated": True, "kv_heads": 2, "qk_norm": True}, {"kind": "encoder", "positions": "alibi"},
        {"kind": "encoder-decoder"},
    ],
    ids=["gpt2", "llama", "encoder", "encoder-decoder"],
)  # fmt: skip
def test_every_name_leads_back_to_the_place_it_came_from_and_nothing_is_copied(own: dict[str, Any]) -> None:
    target = {"target": "le chat"} if own.get("kind") == "encoder-decoder" else {}
    trace = gf.look(loaded(2, **own), "the cat", "*", **target)
    named = gf.transformer_lens_names(trace)
    assert {canonical(name) for name in named} == set(trace)
    for name, tensor in named.items():
        assert re.search(r"(^|\.)hook_[a-z_]+$", name), name
        assert tensor.data_ptr() == trace[name].data_ptr()
        assert tensor.shape == trace[name].shape or (
            find(name).name == "pos_embed" and tensor.shape == (1, *trace[name].shape)
        )


def test_the_position_vectors_have_their_batch_axis() -> None:
    model = loaded(1, **GPT2).model
    rows = torch.randint(257, (3, 5))
    assert gf.transformer_lens_names(gf.look(model, rows, "*"))["hook_pos_embed"].shape == (3, 5, 16)


def test_only_what_was_recorded_is_named() -> None:
    trace = gf.look(loaded(2), "the cat", ["hook_embed", "blocks.1.attn.hook_attn_scores"])
    assert list(gf.transformer_lens_names(trace)) == ["hook_embed", "blocks.1.attn.hook_attn_scores"]


def test_a_tuple_of_patterns_has_one_for_each_layer_or_says_which_is_missing() -> None:
    model = loaded(3)
    tuples = gf.attention_tuple(gf.look(model, "the cat"))
    assert [one.shape for one in tuples] == [(1, 4, 7, 7)] * 3
    with pytest.raises(
        UsageError, match=r"2 of 3 layers.*'blocks.0.attn.pattern' first.*'blocks.\*.attn.pattern'"
    ):
        gf.attention_tuple(gf.look(model, "the cat", "blocks.1.attn.pattern"))
    with pytest.raises(UsageError, match=r"kind 'decoder'.*which = 'cross'"):
        gf.attention_tuple(gf.look(model, "the cat"), "cross")


def test_an_encoder_decoder_has_three_tuples() -> None:
    trace = gf.look(loaded(2, kind="encoder-decoder", encoder_layers=3), "the cat", target="chat")
    kinds: list[Which] = ["encoder", "decoder", "cross"]
    shapes = [[tuple(one.shape) for one in gf.attention_tuple(trace, which)] for which in kinds]
    assert shapes == [[(1, 4, 8, 8)] * 3, [(1, 4, 5, 5)] * 2, [(1, 4, 5, 8)] * 2]
    with pytest.raises(UsageError, match=r"which = None.*'encoder', 'decoder', 'cross'"):
        gf.attention_tuple(trace)
    with pytest.raises(UsageError, match="did you mean 'encoder'"):
        gf.attention_tuple(trace, "encodr")  # type: ignore[arg-type] # the point of the test


def test_a_plain_network_has_neither() -> None:
    trace = gf.look(Network(NetworkConfig(inputs=2, outputs=2, hidden=(3,))), [[0.5, 1.0]])
    for function in (gf.transformer_lens_names, gf.attention_tuple):
        with pytest.raises(UsageError, match="no attention"):
            function(trace)


draws = pytest.mark.filterwarnings(  # it leaves its own files for the collector to close
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def drawn_by_bertviz(name: str, **given: Any) -> dict[str, Any]:
    """What BertViz put into its page."""
    bertviz = pytest.importorskip(
        "bertviz", reason="bertviz 1.4.1 is not installed", exc_type=ModuleNotFoundError
    )
    page = getattr(bertviz, name)(**given, html_action="return").data
    (params,) = re.findall(r"const params = (\{.*\});", page)
    found: dict[str, Any] = json.loads(params)
    return found


@draws
@pytest.mark.parametrize("view", ["head_view", "model_view"])
def test_bertviz_draws_a_decoders_attention(view: str) -> None:
    trace = gf.look(loaded(2), "the cat")
    page = drawn_by_bertviz(view, attention=gf.attention_tuple(trace), tokens=trace.tokens)
    (drawn,) = page["attention"]
    found = torch.tensor(drawn["attn"])
    torch.testing.assert_close(found, torch.cat(gf.attention_tuple(trace)), rtol=0, atol=1e-6)
    assert len(drawn["left_text"]) == len(drawn["right_text"]) == 7


@draws
@pytest.mark.parametrize("view", ["head_view", "model_view"])
def test_bertviz_draws_an_encoder_decoders_three(view: str) -> None:
    trace = gf.look(loaded(2, kind="encoder-decoder"), "the cat", target="chat")
    kinds: list[Which] = ["encoder", "decoder", "cross"]
    page = drawn_by_bertviz(
        view,
        **{f"{which}_attention": gf.attention_tuple(trace, which) for which in kinds},
        encoder_tokens=trace.reading.source_tokens,
        decoder_tokens=trace.tokens,
    )
    for drawn, which in zip(page["attention"], kinds, strict=True):
        expected = torch.cat(gf.attention_tuple(trace, which))
        torch.testing.assert_close(torch.tensor(drawn["attn"]), expected, rtol=0, atol=1e-6)
