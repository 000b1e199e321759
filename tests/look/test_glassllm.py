"""Real trained weights of another glass box: glassllm's two small Llamas, number by number as its own NumPy pass
records them. Skipped where it is not installed (pip install --no-deps glassllm==0.1.0); nothing depends on it.

It turns neighbouring entries of a head, (x_2i, x_2i+1), where we turn (x_i, x_i+half): rows of W_q and W_k are
reordered, and what it records of queries and keys with them.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glassformer as gf
from glassformer.files import sha256
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer

PACKAGE, VERSION = "glassllm", "0.1.0"
SHA256 = {
    "en": "261ae219ab98caa1f3641e23deb3d9d91b7b7a276f991cbd494f67cfa5abce4d",
    "pt": "597120c1ccf0ba55af6f5aac949be7dbdfbbe7a5f1fc9214473d07f07c580ca2",
}
TEXTS = {"en": "Alice was beginning to get very tired", "pt": "O livro era bom, e a tarde longa"}
LOGITS, ATTENTION = 5e-5, 5e-6
PLACES = {  # theirs -> ours, and whether heads stand before positions there
    "norm.attn": ("ln1.normalized", False), "attn.q": ("attn.q", True), "attn.k": ("attn.k", True),
    "attn.v": ("attn.v", True), "attn.rope_q": ("attn.rot_q", True), "attn.rope_k": ("attn.rot_k", True),
    "attn.scores": ("attn.scaled", False), "attn.mask": ("attn.scores", False), "attn.softmax": ("attn.pattern", False),
    "attn.mix": ("attn.z", True), "attn.out": ("attn_out", False), "resid.attn": ("resid_mid", False),
    "norm.ffn": ("ln2.normalized", False), "ffn.gate": ("mlp.pre", False), "ffn.up": ("mlp.pre_linear", False),
    "ffn.act": ("mlp.post", False), "ffn.down": ("mlp_out", False), "resid.ffn": ("resid_post", False),
}  # fmt: skip

_FOUND = importlib.util.find_spec(PACKAGE)
pytestmark = pytest.mark.skipif(_FOUND is None, reason=f"{PACKAGE} {VERSION} is not installed")


def halves(size: int) -> torch.Tensor:
    """Entries of one head in our order: first those at even places, then those at odd ones."""
    return torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])


def ours(theirs: Any) -> Transformer:
    cfg = theirs.cfg
    config = gf.ModelConfig(
        vocab=cfg.vocab_size, width=cfg.d_model, layers=cfg.n_layers, heads=cfg.n_heads, kv_heads=cfg.n_kv_heads,
        context=cfg.max_len, feedforward=int(8 * cfg.d_model / 3), gated=True, activation="silu",
        norm_epsilon=cfg.eps, rope_base=cfg.rope_base,
    )  # fmt: skip
    made = build(config)
    turned = halves(config.head_width)

    def rows(weight: Any, turn: bool = False) -> torch.Tensor:
        """Theirs stands as (inputs, outputs)."""
        found = torch.from_numpy(weight.data.copy()).T
        return found.reshape(-1, config.head_width, config.width)[:, turned].flatten(0, 1) if turn else found

    state = {"embed.weight": torch.from_numpy(theirs.E.data.copy())}
    state["norm.weight"] = torch.from_numpy(theirs.norm_f.gamma.data.copy())
    for number, block in enumerate(theirs.blocks):
        attn, ffn, name = block.attn, block.ffn, f"blocks.{number}"
        state |= {
            f"{name}.norm1.weight": torch.from_numpy(block.norm1.gamma.data.copy()),
            f"{name}.norm2.weight": torch.from_numpy(block.norm2.gamma.data.copy()),
            f"{name}.attn.qkv.weight": torch.cat(
                [rows(attn.W_Q, True), rows(attn.W_K, True), rows(attn.W_V)]
            ),
            f"{name}.attn.out.weight": rows(attn.W_O),
            f"{name}.mlp.up.weight": torch.cat([rows(ffn.W1), rows(ffn.W3)]),
            f"{name}.mlp.down.weight": rows(ffn.W2),
        }
    assert state.keys() == dict(made.named_parameters()).keys()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(state[name])
    return made.eval()


@pytest.mark.parametrize("language", ["en", "pt"])
def test_every_step_it_records_is_the_same_number_here(language: str) -> None:
    from glassllm.model import GlassLM
    from glassllm.tokenizer import Tokenizer
    from glassllm.trace import Tracer

    assert _FOUND and _FOUND.origin and version(PACKAGE) == VERSION
    folder = Path(_FOUND.origin).parent / "weights"
    assert sha256(folder / f"{language}.npz") == SHA256[language]
    theirs = GlassLM.load(folder / f"{language}.npz")
    ids = Tokenizer.load(folder / f"{language}.tokenizer.json").encode(TEXTS[language])
    assert len(ids) > 8
    tracer = Tracer()
    theirs.forward(ids, trace=tracer)
    model = ours(theirs)
    trace = gf.look(model, ids, "*")
    logits = trace["logits"][0].numpy()
    np.testing.assert_allclose(logits, tracer.get("logits").value, rtol=0, atol=LOGITS)
    assert np.abs(logits).max() > 5  # trained weights: the scale is not that of a random start
    turned = halves(model.config.head_width)
    for layer in range(model.config.layers):
        for step, (place, heads_first) in PLACES.items():
            found = trace[f"blocks.{layer}.{place}"][0]
            expected = torch.from_numpy(np.asarray(tracer.get(step, layer).value))
            expected = expected.transpose(0, 1) if heads_first else expected
            if step in ("attn.q", "attn.k", "attn.rope_q", "attn.rope_k"):
                expected = expected[..., turned]
            most = ATTENTION if step == "attn.softmax" else LOGITS
            difference = torch.nan_to_num(found - expected).abs().max()  # nan: both masked, or one, below
            assert torch.equal(found.isfinite(), expected.isfinite()) and float(difference) <= most, step
