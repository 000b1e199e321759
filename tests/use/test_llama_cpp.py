"""What we write, opened by llama.cpp itself: the package `xllamacpp`, where it is installed.

llama.cpp multiplies in half precision in places and computes GELU from a table, so log-probabilities differ in
the third digit; with weights this large a wrong layout or rule for words shows in the first.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from glassformer.model.stacks import build
from glassformer.use.load import Loaded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None,
        reason="llama.cpp: the package xllamacpp is not installed",
    ),
]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"gated": True, "activation": "silu", "kv_heads": 2, "bias": True, "head_size": 24},
    "qwen2": {"gated": True, "activation": "silu", "kv_heads": 2, "qkv_bias": True, "rope_base": 5e5},
    "qwen3": {"gated": True, "activation": "silu", "kv_heads": 1, "qk_norm": True, "tied": False},
    "arcee": {},
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
    "gptneox": {
        "norm": "layernorm", "activation": "gelu", "bias": True, "parallel": True, "rotary_fraction": 0.25,
        "tied": False,
    },
}  # fmt: skip
PROMPT = "It's 12345 words, isn't it?  Straße, 你好\n\n  x = 1"
CORPUS = (Path(__file__).parents[2] / "docs" / "cli.md").read_bytes()

ASK = """
import json, sys, xllamacpp
path, prompt = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup = path, 128, False
answer = xllamacpp.Server(params).handle_completions(
    {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 8}
)
answer = answer if isinstance(answer, dict) else json.loads(answer)
best = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print(json.dumps([answer["usage"]["prompt_tokens"], [[one["id"], one["logprob"]] for one in best]]))
"""


def made(name: str, kind: Any, folder: Path) -> tuple[Loaded, list[int], torch.Tensor]:
    """A model of random weights, the prompt's ids and the logarithms of what may come next. Where that is no text
    by itself (an end, part of a character) the server answers nothing, so the first seed is taken where it is."""
    tokenizer = gf.Tokenizer.train(gf.TokenizerConfig(kind=kind, vocab=600), [CORPUS])
    sizes = {"vocab": tokenizer.vocab_size + 3, "width": 64, "layers": 2, "heads": 4, "context": 128}
    config = gf.ModelConfig(**{**sizes, **FAMILIES[name]})
    ids = tokenizer.encode(PROMPT)
    for seed in range(100):
        model = build(config).eval().requires_grad_(False)
        chance = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=chance) * (0.25 if weight.ndim > 1 else 0.2))
        chances = model(torch.from_numpy(ids)[None])[0, -1].log_softmax(-1)
        best = int(chances.argmax())
        if best < tokenizer.vocab_size and tokenizer.decode([best]).isascii() and tokenizer.decode([best]):
            break
    return Loaded(model, tokenizer, config, folder), ids.tolist(), chances


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_cuts_the_same_tokens_and_predicts_the_same(name: str, kind: Any, tmp_path: Path) -> None:
    loaded, ids, chances = made(name, kind, tmp_path)
    path = gf.save_gguf(loaded, tmp_path / "x.gguf", dtype="f32")
    command = [sys.executable, "-c", ASK, str(path), PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    num_tokens, theirs = json.loads(done.stdout.splitlines()[-1])
    assert num_tokens == len(ids)
    assert theirs[0][0] == int(chances.argmax())
    for number, chance in theirs:
        assert chance == pytest.approx(float(chances[number]), abs=0.02)
