"""Writing with a model: what is written, when it ends, and that nothing else has a say in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from glassformer.errors import ModelError, UsageError
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.generate import Generation, generate, stream
from glassformer.use.load import Loaded, weights_digest
from glassformer.use.sample import Sampling, choose, uniform

Make = Callable[..., Loaded]

PROMPTS = ["def ", "x", "", "hello, world: ", "über"]


def without_cache(loaded: Loaded, prompt: str, count: int, sampling: Sampling, seed: int = 0) -> list[int]:
    """The plainest way to write: the whole text through the model for every token."""
    ids = loaded.tokenizer.encode(prompt).tolist() or [loaded.tokenizer.end_of_text]
    start = len(ids)
    for number in range(count):
        logits = loaded.model(torch.tensor([ids]))[0, -1]
        ids.append(int(choose(logits, sampling, torch.tensor(uniform(seed, number), dtype=torch.float64))))
    return ids[start:]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "learned", "norm": "layernorm", "bias": True},
        {"positions": "alibi", "kv_heads": 2, "gated": True},
        {"layers": 0, "positions": "learned", "tied": False},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_writing_with_the_cache_gives_the_tokens_of_writing_without(
    make: Make, changes: dict[str, Any], temperature: float
) -> None:
    loaded = make(**changes)
    for prompt in (prompt for prompt in PROMPTS if prompt == prompt.rstrip()):
        expected = without_cache(loaded, prompt, 15, Sampling(temperature))
        if loaded.tokenizer.end_of_text in expected:
            expected = expected[: expected.index(loaded.tokenizer.end_of_text)]
        assert generate(loaded, prompt, max_tokens=15, temperature=temperature).tokens == expected


def test_a_space_at_the_end_of_a_prompt_becomes_the_beginning_of_the_next_word(loaded: Loaded) -> None:
    written = generate(loaded, "abc ", max_tokens=5, temperature=1.0, seed=3)
    first = loaded.tokenizer.decode_bytes(written.tokens[:1])
    assert first.startswith(b" ")
    assert str(written) == "abc" + loaded.tokenizer.decode(written.tokens)


def test_logprobs_are_those_of_the_whole_text_read_at_once(loaded: Loaded) -> None:
    written = generate(loaded, "abc", max_tokens=20, temperature=1.3, top_k=40)
    ids = torch.tensor([[*loaded.tokenizer.encode("abc").tolist(), *written.tokens]])
    expected = loaded.model(ids).log_softmax(-1)[0, 2:-1].gather(-1, ids[0, 3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(written.logprobs), expected, rtol=0, atol=1e-5)


def test_a_request_gets_the_same_text_alone_and_among_others(make: Make) -> None:
    loaded = make(context=24)  # some of the rows go beyond it
    settings: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1}
    seeds = [5, 6, 5, 8, 9]
    together = generate(loaded, PROMPTS, seed=seeds, **settings)
    requests = zip(PROMPTS, seeds, strict=True)
    alone = [generate(loaded, prompt, seed=seed, **settings) for prompt, seed in requests]
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        assert one.warnings == other.warnings
    again = generate(loaded, list(reversed(PROMPTS)), seed=list(reversed(seeds)), **settings)
    assert [written.text for written in reversed(again)] == [written.text for written in alone]


def test_the_seed_decides_the_text_and_other_randomness_does_not(loaded: Loaded) -> None:
    first = generate(loaded, "a", max_tokens=20, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert generate(loaded, "a", max_tokens=20, seed=1).tokens == first.tokens
    assert torch.get_rng_state().equal(state)
    assert generate(loaded, "a", max_tokens=20, seed=2).tokens != first.tokens


def test_the_weights_are_the_same_after_a_thousand_tokens_as_before(make: Make) -> None:
    loaded = make(layers=1, width=16)
    before = weights_digest(loaded.model)
    generate(loaded, ["a", "bc"] * 20, max_tokens=25, temperature=1.5)
    assert weights_digest(loaded.model) == before
    with torch.no_grad():
        loaded.model.blocks[0].mlp.up.weight[3, 4] += 1e-6  # type: ignore[union-attr, index] # a module by name
    assert weights_digest(loaded.model) != before


def test_a_stream_gives_whole_characters_that_together_are_the_text(loaded: Loaded) -> None:
    written = generate(loaded, "é", max_tokens=60, temperature=1.5, seed=3)
    heard: list[str] = []
    generate(loaded, "é", max_tokens=60, temperature=1.5, seed=3, on_text=heard.append)
    pieces = list(stream(loaded, "é", max_tokens=60, temperature=1.5, seed=3))
    assert pieces == heard and all(pieces)
    assert "".join(pieces) == written.text == loaded.tokenizer.decode(written.tokens)


def test_a_stream_returns_the_generation_and_may_be_left_early(loaded: Loaded) -> None:
    flow = stream(loaded, "a", max_tokens=5)
    while True:
        try:
            next(flow)
        except StopIteration as end:
            assert isinstance(end.value, Generation) and len(end.value.tokens) == 5
            break
    left = stream(loaded, "a", max_tokens=10**9)
    next(left)
    assert not torch.is_inference_mode_enabled()
    left.close()


def test_a_stop_string_ends_the_text_and_is_not_in_it(loaded: Loaded) -> None:
    free = generate(loaded, "a", max_tokens=40, temperature=1.0)
    stop = next(pair for pair in (free.text[at : at + 2] for at in range(8, 30)) if pair.isascii())
    for given in (stop, [stop], ("never to be seen", stop)):
        written = generate(loaded, "a", max_tokens=40, temperature=1.0, stop=given)
        assert written.finish == "stop"
        assert written.text == free.text[: free.text.find(stop)]
        assert written.tokens == free.tokens[: len(written.tokens)]
        assert stop in loaded.tokenizer.decode(written.tokens)


def test_the_model_ends_its_text_with_the_end_of_text_token(loaded: Loaded) -> None:
    texts = (generate(loaded, "a", max_tokens=50, temperature=2.0, seed=seed) for seed in range(100))
    ended = next(written for written in texts if written.finish == "end")
    assert loaded.tokenizer.end_of_text not in ended.tokens
    assert len(ended.tokens) == len(ended.logprobs) < 50


def test_no_tokens_asked_for_is_an_empty_text(loaded: Loaded) -> None:
    written = generate(loaded, "abc", max_tokens=0)
    assert (written.text, written.tokens, written.finish) == ("", [], "length")
    assert list(stream(loaded, "abc", max_tokens=0)) == []
    assert generate(loaded, [], max_tokens=3) == []


def test_a_prompt_longer_than_the_context_is_cut_and_says_so(make: Make) -> None:
    loaded = make(context=16)
    long = "a long prompt that will never fit"
    written = generate(loaded, long, max_tokens=1)
    assert written.warnings == ["The prompt has 33 tokens; its last 16 were read, the model's context."]
    assert written.tokens == generate(loaded, long[-16:], max_tokens=1).tokens
    assert str(written).startswith(long)


def test_beyond_the_context_the_last_half_is_read_again_and_it_says_so(make: Make) -> None:
    loaded = make(context=16)
    written = generate(loaded, "abcdefgh", max_tokens=30, temperature=0.0)
    assert len(written.tokens) == 30
    assert written.warnings == [
        "The context of 16 tokens was full after 9 new ones; "
        "whenever it is, its last 8 are read as a new beginning."
    ]
    ids = [*loaded.tokenizer.encode("abcdefgh").tolist(), *written.tokens]
    # 16 positions give 9 tokens; the last 8 ids then begin anew.
    torch.testing.assert_close(
        written.logprobs[9],
        loaded.model(torch.tensor([ids[9:17]]))[0, -1].log_softmax(-1)[ids[17]].item(),
        rtol=0,
        atol=1e-5,
    )


def test_without_sliding_the_text_ends_with_the_context(make: Make) -> None:
    loaded = make(context=16)
    written = generate(loaded, "abcdefgh", max_tokens=30, slide=False)
    assert (len(written.tokens), written.finish) == (9, "length")
    assert written.warnings == ["The context of 16 tokens was full after 9 new ones; the text ends there."]
    assert len(generate(make(context=1), "a", max_tokens=5).tokens) == 5


def test_ids_beyond_the_tokenizer_are_never_drawn(make: Make, tokenizer: Tokenizer) -> None:
    loaded = make(vocab=4096)
    written = generate(loaded, ["a", "b"], max_tokens=60, temperature=3.0)
    assert all(token < tokenizer.vocab_size for one in written for token in one.tokens)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"top_k": 0}, "top_k must be 1 or more"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"stop": ["a", ""]}, "stop string is empty"),
        ({"seed": [1, 2]}, "1 prompts came with 2 seeds"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_done(
    loaded: Loaded, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        generate(loaded, "a", **settings)
    with pytest.raises(UsageError, match="one prompt"):
        generate(loaded, ["a"], on_text=print)


def test_a_model_that_has_overflowed_says_so_and_does_not_hang(make: Make) -> None:
    loaded = make()
    with torch.no_grad():
        loaded.model.blocks[1].mlp.down.weight[0, 0] = math.nan  # type: ignore[union-attr, index] # a module by name
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="257 of 257 are NaN"):
            generate(loaded, "a", temperature=temperature)


def test_a_generation_prints_as_its_text_and_goes_into_json(loaded: Loaded) -> None:
    written = generate(loaded, "def ", max_tokens=5)
    assert str(written) == "def " + written.text
    document = json.loads(json.dumps(written.to_dict()))
    assert (document["schema"], document["version"]) == ("glassformer.generation", 1)
    assert document["tokens"] == written.tokens and document["tokens_per_second"] > 0


def test_a_u_that_32_bits_would_round_up_to_1_draws_the_last_token(loaded: Loaded) -> None:
    """Seed 10,935,639 is the first whose first u is above 1 - 2^-25; no running sum passes 1."""
    assert 1 - 2**-25 < uniform(10_935_639, 0) < 1
    assert loaded.tokenizer.end_of_text == loaded.tokenizer.vocab_size - 1
    assert generate(loaded, "ab", seed=10_935_639, temperature=1.0, max_tokens=1).finish == "end"
