"""Writing speed beside Hugging Face transformers: `python benchmarks/generate.py`.

Both write with the same architecture (GPT-2 124M, random weights), greedily, from 16-token prompts, the same
number of new tokens, with the same number of threads. A pair is one run of each, in turn; the table holds
medians over the pairs, and the ratio is the median of the pairs' own ratios. Reading the prompt is included.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.stats import median
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.generate import generate
from glassformer.use.load import Precision, load, save_model

PROMPT, VOCAB, CONTEXT = 16, 50_257, 1024

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = importlib.util.find_spec("transformers") is not None
    if not peer:
        print("transformers is not installed: its column is skipped")
    print(f"GPT-2 shape, {options.layers} layers, {options.tokens} new tokens, {options.threads} threads")
    print(f"{'tokens/s':10}{'batch':>6}{'glassformer':>13}{'transformers':>14}{'ratio':>7}")
    for precision in DTYPES:
        ours = our_loop(precision, options.layers)
        theirs = their_loop(precision, options.layers) if peer else None
        for batch in options.batches:
            rates = pairs(ours, theirs, batch, options.tokens, options.pairs)
            mine = median([one for one, _ in rates])
            other = f"{median([two for _, two in rates]):14.1f}" if peer else f"{'-':>14}"
            ratio = f"{median([one / two for one, two in rates]):7.2f}" if peer else ""
            print(f"{precision:10}{batch:6}{mine:13.1f}{other}{ratio}", flush=True)


Loop = Callable[[int, int], Any]
"""Writes for a batch a number of tokens."""


def pairs(ours: Loop, theirs: Loop | None, batch: int, tokens: int, count: int) -> list[tuple[float, float]]:
    """Tokens per second of both, taking turns, after one short run of each that does not count."""
    loops = [ours] if theirs is None else [ours, theirs]
    for loop in loops:
        loop(batch, 4)
    rates = []
    for _ in range(count):
        pair = []
        for loop in loops:
            start = time.perf_counter()
            loop(batch, tokens)
            pair.append(batch * tokens / (time.perf_counter() - start))
        rates.append((pair[0], pair[-1]))
    return rates


def our_loop(precision: Precision, layers: int) -> Loop:
    config = ModelConfig(
        vocab=VOCAB, width=768, layers=layers, heads=12, context=CONTEXT, positions="learned",
        norm="layernorm", bias=True, activation="gelu",
    )  # fmt: skip
    letters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x20000)]))[: VOCAB - 1]  # one token each
    tokenizer = Tokenizer.train(TokenizerConfig(kind="characters"), [letters.encode()])
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save_model(Path(folder) / "model", build(config), tokenizer), precision=precision)

    def loop(batch: int, tokens: int) -> None:
        prompts = [letters[500 + PROMPT * row :][:PROMPT] for row in range(batch)]
        written = generate(loaded, prompts, max_tokens=tokens, temperature=0)
        assert all(len(one.tokens) == tokens for one in written), "the model ended early"

    return loop


def their_loop(precision: Precision, layers: int) -> Loop:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_layer=layers, eos_token_id=None)
    model = GPT2LMHeadModel(config).to(DTYPES[precision]).eval()

    def loop(batch: int, tokens: int) -> None:
        ids = torch.arange(batch * PROMPT).view(batch, PROMPT) % VOCAB
        with torch.inference_mode():
            written = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert written.shape == (batch, PROMPT + tokens), "the model ended early"

    return loop


if __name__ == "__main__":
    main()
