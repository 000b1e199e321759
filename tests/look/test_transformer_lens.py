"""All names that TransformerLens's cache and our trace share hold the same numbers, from the same weights.

Skipped where it is not installed. It declares much that it does not need for this; what it imports:
    pip install --no-deps transformer-lens==4.3.0 einops fancy-einsum datasets pandas dill multiprocess xxhash \\
        pytz python-dateutil six tzdata
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest
import torch
import transformers
from from_transformers import drawn, ours

import glassformer as gf

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_lens") is None,
        reason="transformer-lens 4.3.0 is not installed",
    ),
    pytest.mark.filterwarnings("ignore"),  # theirs, on import and use
]
MOST = 1e-4
SMALL: dict[str, Any] = {"vocab_size": 97, "max_position_embeddings": 32, "hidden_size": 64, "num_hidden_layers": 3,
                         "num_attention_heads": 4, "intermediate_size": 160}  # fmt: skip
MODELS: dict[str, Any] = {
    "GPT2LMHeadModel": transformers.GPT2Config(
        vocab_size=97, n_positions=32, n_embd=64, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    ),
    "LlamaForCausalLM": transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "GPTNeoXForCausalLM": transformers.GPTNeoXConfig(**SMALL),
}
NORMS = [f"{norm}.hook_{name}" for norm in ("ln1", "ln2") for name in ("scale", "normalized")]
ATTENTION = [f"attn.hook_{name}" for name in ("q", "k", "v", "attn_scores", "pattern", "z")]
STREAM = [f"hook_{name}" for name in ("resid_pre", "attn_out", "mlp_out")]
BLOCK = {*NORMS, *ATTENTION, *STREAM, "mlp.hook_pre", "mlp.hook_post"}
MORE = {  # what a bridge of this shape names besides
    "GPT2LMHeadModel": {"hook_resid_mid", "hook_resid_post"},
    "LlamaForCausalLM": {"hook_resid_mid", "hook_resid_post", "attn.hook_rot_q", "attn.hook_rot_k",
                         "mlp.hook_pre_linear"},
    "GPTNeoXForCausalLM": {"hook_resid_post"},
}  # fmt: skip


def bridge_and_model(name: str) -> tuple[Any, Any]:
    with warnings.catch_warnings(action="ignore"):
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    config = MODELS[name]
    config._attn_implementation = "eager"
    model = drawn(getattr(transformers, name)(config))
    made = ours(model)  # before theirs is changed: the bridge takes the module apart
    bridge = build_bridge_from_module(model, name, hf_config=config)
    bridge.enable_compatibility_mode(no_processing=True)
    return bridge, made


@pytest.mark.parametrize("name", MODELS)
def test_every_shared_name_holds_the_same_numbers(name: str) -> None:
    bridge, model = bridge_and_model(name)
    ids = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids)
    named = gf.transformer_lens_names(gf.look(model, ids, "*"))
    shared = [key for key in cache if key in named]
    assert {key.split(".", 2)[2] for key in shared if key.startswith("blocks.2.")} == BLOCK | MORE[name]
    assert {"hook_embed", "ln_final.hook_scale", "unembed.hook_in", "unembed.hook_out"} <= set(shared)
    errors = {}
    for key in shared:
        # 4.x takes `hook_normalized` before gain and bias, HookedTransformer took it after them, as we do
        theirs, own = cache[key.replace("hook_normalized", "hook_out")], named[key]
        if key.endswith("hook_attn_scores"):  # masked: -inf here, theirs is float32's least
            kept = own.isfinite()
            assert bool((theirs[~kept] < -1e30).all())
            theirs, own = theirs[kept], own[kept]
        assert theirs.shape == own.shape, key
        errors[key] = float((theirs - own).abs().max())
    print(name, len(shared), max(errors.values()))
    assert {key: found for key, found in errors.items() if not found <= MOST} == {}
