"""`glassformer generate RUN`: the text comes as it is written."""

from __future__ import annotations

import sys
from pathlib import Path

import glassformer as gf
from glassformer.cli.model import COMPUTING, Computing
from glassformer.cli.terminal import document, note


def generate(
    model: Path,
    /,
    *,
    prompt: str = "",
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: list[str] | None = None,
    computing: Computing = COMPUTING,
    json: bool = False,
) -> None:
    """Let a model go on with a prompt.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        prompt: The beginning. Empty: a new document.
        max_tokens: Write at most so many tokens.
        temperature: 0 always takes the likeliest token; 1 is the model's own distribution.
        top_k: Draw from the K likeliest tokens only.
        top_p: Draw from the likeliest tokens that together have this probability.
        min_p: Draw from tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Above 1, tokens that are there already become less likely.
        seed: The same seed gives the same text.
        stop: A string that ends the text; may be given several times.
        json: One JSON document instead of the text.
    """
    loaded = computing.open(model)
    if not json and loaded.decoder:  # a model that cannot write says so first
        _write(prompt)
    generation = gf.generate(
        loaded,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        on_text=None if json else _write,
    )
    if json:
        document(generation.to_dict())
        return
    _write("\n")
    for warning in generation.warnings:
        note(f"warning: {warning}")
    speed = f"{generation.tokens_per_second:.0f} a second"
    note(f"{len(generation.tokens)} tokens, {speed}; ended by {generation.finish}")


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
