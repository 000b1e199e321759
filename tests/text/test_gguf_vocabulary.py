"""Tokenizers in GGUF metadata: the words of each rule are those its makers cut, ids survive, faults are named."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from glassformer.errors import TokenizerError
from glassformer.text.config import TokenizerConfig
from glassformer.text.gguf_vocabulary import RULES, read_tokenizer, write_tokenizer
from glassformer.text.tokenizer import Tokenizer, byte_letters

CORPUS = b"It's 12345 of the words, and 678 don't; we'll see: the  end\n\n" * 20
TEXTS = st.text(
    st.sampled_from("aZ 'stléß1٣5②.,$+<|\n\r\t你́\u3000")
    | st.characters(exclude_categories=("Cs", "Cn", "Co"))
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""From OpenAI's encoder.py."""
LLAMA3: str = inspect.signature(TikTokenConverter).parameters["pattern"].default
STAGES = {
    "gpt-2": [GPT2], "olmo": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [LLAMA3],
    "qwen2": [PRETOKENIZE_REGEX],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}  # fmt: skip
"""Each pattern cuts the pieces of the one before; what is between its finds stays together."""


def values(tokenizer: Tokenizer | None = None, **changes: Any) -> dict[str, Any]:
    tokenizer = tokenizer or Tokenizer.train(TokenizerConfig(vocab=280), [CORPUS])
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    found = {**write_tokenizer(tokenizer, tokenizer.vocab_size), **changes}
    return {key: value for key, value in found.items() if value is not None}


def like_hub(*, rule: str = "llama-bpe", specials_first: bool = False) -> Tokenizer:
    """A tokenizer as others ship it: specials beside the vocabulary or in it, an added token, a rule."""
    trained = Tokenizer.train(TokenizerConfig(vocab=320), [CORPUS]).content["model"]
    tokens = [token for token in trained["vocab"] if token != "<|endoftext|>"]
    names = ["<|endoftext|>", "<|im_start|>"]
    order = [*names, *tokens] if specials_first else tokens
    merges = [tuple(pair) for pair in trained["merges"]]
    model = models.BPE(
        {token: number for number, token in enumerate(order)}, merges,
        ignore_merges=RULES[rule].ignore_merges,
    )  # fmt: skip
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer, library.decoder = RULES[rule].splitter(), decoders.ByteLevel()
    library.normalizer = normalizers.NFC() if RULES[rule].nfc else None
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    library.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return Tokenizer(library)


@pytest.mark.parametrize("name", STAGES)
@given(TEXTS)
def test_each_rule_cuts_the_words_that_its_pattern_finds(name: str, text: str) -> None:
    pieces = [text]
    for pattern in STAGES[name]:
        pieces = [word for piece in pieces for word in regex.split(f"({pattern})", piece) if word]
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    found = [
        bytes(byte_of[letter] for letter in word).decode()
        for word, _ in RULES[name].splitter().pre_tokenize_str(text)
    ]
    assert found == pieces


@pytest.mark.parametrize("config", [TokenizerConfig(vocab=300), TokenizerConfig(kind="bytes")])
def test_ours_come_back_the_same_to_the_digest(config: TokenizerConfig) -> None:
    tokenizer = Tokenizer.train(config, [CORPUS])
    again, warnings = read_tokenizer(values(tokenizer), origin="x")
    assert again.digest == tokenizer.digest and not warnings


@pytest.mark.parametrize("specials_first", [True, False])
@pytest.mark.parametrize("rule", RULES)
@given(st.one_of(TEXTS, st.binary()))
def test_those_of_others_come_back_with_the_same_ids(
    rule: str, specials_first: bool, text: str | bytes
) -> None:
    key = (rule, specials_first)
    if key not in _MADE:
        tokenizer = like_hub(rule=rule, specials_first=specials_first)
        found = values(tokenizer)
        assert found["tokenizer.ggml.pre"] == rule
        _MADE[key] = tokenizer, read_tokenizer(found, origin="x")[0]
    tokenizer, again = _MADE[key]
    for one in (text, b"<tool>2024"):
        assert again.encode(one).tolist() == tokenizer.encode(one).tolist()
    assert (again.specials, again.end_of_text) == (tokenizer.specials, tokenizer.end_of_text)
    assert again.decode_bytes(range(again.vocab_size)) == tokenizer.decode_bytes(range(again.vocab_size))


_MADE: dict[tuple[str, bool], tuple[Tokenizer, Tokenizer]] = {}


def test_unused_tokens_fill_the_models_vocabulary_up_and_are_left_out_again() -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(vocab=300), [CORPUS])
    found = write_tokenizer(tokenizer, tokenizer.vocab_size + 3)
    assert found["tokenizer.ggml.tokens"][-3:] == ["[PAD0]", "[PAD1]", "[PAD2]"]
    assert found["tokenizer.ggml.token_type"][-4:] == [1, 5, 5, 5]
    assert read_tokenizer(found, origin="x")[0].digest == tokenizer.digest


def test_a_file_that_names_no_rule_gets_the_default_with_a_warning_and_types_may_be_left_out() -> None:
    found, warnings = read_tokenizer(values(pre=None), origin="x")
    assert "default" in warnings[0] and found.encode("$12345").size
    with pytest.raises(TokenizerError, match="no token that ends a text"):
        read_tokenizer(values(token_type=None), origin="x")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "llama"}, "of kind 'llama'"),
        ({"model": None}, "of kind None"),
        ({"pre": "deepseek-llm"}, "rule 'deepseek-llm'"),
        ({"pre": 3}, "rule 3"),
        ({"tokens": None}, r"no list tokenizer\.ggml\.tokens"),
        ({"tokens": [1, 2]}, r"no list tokenizer\.ggml\.tokens"),
        ({"merges": "a b"}, r"no list tokenizer\.ggml\.merges"),
        ({"token_type": [1]}, "280 tokens, but types for 1"),
        ({"tokens": ["a"] * 280}, "token 1, 'a', is there twice"),
        ({"tokens": [f"a b{n}" for n in range(280)]}, "token 1, 'a b1', is no text in letters"),
        ({"merges": ["a b c"]}, "the merge 'a b c' is no pair"),
        ({"merges": ["zzz q"]}, "cannot be used"),
    ],
)
def test_a_tokenizer_that_is_damaged_or_of_another_kind_is_refused_by_name(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(TokenizerError, match=says):
        read_tokenizer(values(**changes), origin="x")


def test_what_llama_cpp_could_not_read_alike_is_not_written() -> None:
    characters = Tokenizer.train(TokenizerConfig(kind="characters"), [CORPUS])
    with pytest.raises(TokenizerError, match="'characters' cannot be written"):
        write_tokenizer(characters, characters.vocab_size)
    compatible = Tokenizer.train(TokenizerConfig(vocab=300, normalization="nfkc"), [CORPUS])
    with pytest.raises(TokenizerError, match="normalizer NFKC"):
        write_tokenizer(compatible, 300)
    content = like_hub().content
    content = json.loads(json.dumps(content).replace("{1,3}", "{1,2}"))
    with pytest.raises(TokenizerError, match="no name for the way"):
        write_tokenizer(Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content))), 400)
