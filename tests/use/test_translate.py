"""Beam search against an exhaustive search, alone against together; BLEU against sacrebleu's own words."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from glassformer.errors import ModelError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.bleu import bleu, exact_match, judge_translations
from glassformer.use.load import Loaded
from glassformer.use.translate import translate

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="characters"), [b"abcd"])
END = TOKENIZER.end_of_text


def made(seed: int, **changes: object) -> Loaded:
    config = ModelConfig.model_validate({
        "kind": "encoder-decoder", "vocab": TOKENIZER.vocab_size, "width": 16, "layers": 2, "heads": 2, "context": 12,
        **changes,
    })  # fmt: skip
    model = build(config)
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed * 1000 + index))
    return Loaded(model.eval().requires_grad_(False), TOKENIZER, config, Path())


def logprob(loaded: Loaded, source: str, tokens: list[int]) -> float:
    """Of a text and its end, without search, cache or batch."""
    read = torch.tensor([[*TOKENIZER.encode(source).tolist(), END]])
    written = torch.tensor([[END, *tokens]])
    logits = loaded.translator(read, written)[0].log_softmax(-1)
    return sum(logits[place, token].item() for place, token in enumerate([*tokens, END]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(seed: int, alpha: float) -> None:
    loaded, source = made(seed), "abca"
    letters = [token for token in range(TOKENIZER.vocab_size) if token != END]
    every = [list(text) for n in range(4) for text in itertools.product(letters, repeat=n)]
    scores = {
        tuple(text): logprob(loaded, source, text) / ((5 + len(text) + 1) / 6) ** alpha for text in every
    }
    best = max(scores, key=scores.__getitem__)
    found = translate(loaded, source, beam=300, length_penalty=alpha, more=8)
    if len(found.tokens) < 4:  # longer ones were not enumerated
        assert tuple(found.tokens) == best and found.score == pytest.approx(scores[best], abs=1e-5)
    assert found.score >= scores[best] - 1e-5
    assert (
        found.logprob == pytest.approx(logprob(loaded, source, found.tokens), abs=1e-4) or not found.finished
    )


@pytest.mark.parametrize("beam", [1, 3])
def test_texts_together_are_translated_as_each_alone(beam: int) -> None:
    loaded = made(1)
    sources = ["a", "abcdabcda", "dd", "abc", "", "bca"]
    together = translate(loaded, sources, beam=beam)
    for source, found in zip(sources, together, strict=True):
        alone = translate(loaded, source, beam=beam)
        assert alone.tokens == found.tokens and alone.logprob == pytest.approx(found.logprob, abs=1e-4)


def test_a_beam_of_one_takes_the_likeliest_token_each_time() -> None:
    loaded, source = made(3), "abcd"
    read = torch.tensor([[*TOKENIZER.encode(source).tolist(), END]])
    tokens: list[int] = []
    while len(tokens) < 12:
        logits = loaded.translator(read, torch.tensor([[END, *tokens]]))[0, -1]
        if int(logits.argmax()) == END:
            break
        tokens.append(int(logits.argmax()))
    found = translate(loaded, source, beam=1)
    assert found.tokens == tokens[: len(found.tokens)] and (found.finished or len(found.tokens) == 12)


def test_a_text_that_the_model_does_not_end_is_ended_and_says_so() -> None:
    loaded = made(0)
    with torch.no_grad():
        loaded.model.embed.weight[END] = 0.0
        loaded.model.embed.weight[0] = 5 * loaded.model.embed.weight[0].sign()
    found = [translate(loaded, "ab", beam=beam, more=2) for beam in (1, 2)]
    assert all(len(one.tokens) <= 5 for one in found)


def test_what_cannot_be_translated_is_refused() -> None:
    loaded = made(0)
    with pytest.raises(UsageError, match=r"13 tokens.*At most 12"):
        translate(loaded, "abcdabcdabcd")
    with pytest.raises(UsageError, match="beam is 0"):
        translate(loaded, "a", beam=0)
    decoder = made(0, kind="decoder")
    with pytest.raises(ModelError, match=r"kind 'decoder'.*encoder-decoder"):
        translate(decoder, "a")


def test_bleu_is_sacrebleus_with_its_signature() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    written = ["The cat sat on the mat.", "a dog"]
    wanted = ["the cat sat on the mat.", "a dog ran off"]
    for lowercase in (False, True):
        theirs = sacrebleu.corpus_bleu(written, [wanted], lowercase=lowercase)
        found = bleu(written, wanted, lowercase=lowercase)
        assert found is not None and found.score == theirs.score
        assert f"case:{'lc' if lowercase else 'mixed'}" in found.signature and found.signature in str(found)
    scores = judge_translations(written, wanted)
    assert scores["bleu"] < scores["bleu_lowercase"] and scores["exact_match"] == 0.0


def test_exact_match_counts_texts_that_are_just_right() -> None:
    assert exact_match(["a", "b", "c"], ["a", "x", "c"]) == pytest.approx(2 / 3)
    assert exact_match([], []) == 0.0
