"""A byte-level BPE tokenizer as the `tokenizer.ggml.*` values of a GGUF file, both ways.

    model       "gpt2": byte-level BPE (others, as "llama" for SentencePiece, are refused by name)
    pre         the name of the rule that cuts a text into words before pairs are merged, below
    tokens      each id's token, in GPT-2's letters for bytes
    token_type  1 ordinary, 3 control (our specials), 4 added by hand, 5 unused
    merges      "left right", the earlier the sooner

A file names its rule and leaves the pattern to the reader, so a name that is not below is refused: other words
mean other ids. A file without one is from before May 2024; llama.cpp then takes its `default`, and so do we,
with a warning. `olmo` and `qwen2` are the names for models whose tokenizers bring text into NFC first: so do we
when reading, but llama.cpp does not, and gives text in another form other ids.

Unused tokens at the end only fill the embedding's rows up; they are left out here and written again.

Source: llama.cpp's `llama-vocab.cpp` (names and patterns); tokenizer.json of GPT-2, Llama 3, Qwen2, SmolLM2.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from glassformer.errors import TokenizerError, nearest
from glassformer.text.tokenizer import Tokenizer, byte_letters

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a text becomes words."""

    digits: bool = False
    """Each digit by itself, before GPT-2's pattern."""
    patterns: tuple[str, ...] = ()
    """Instead of GPT-2's; each cuts the pieces of the one before."""
    nfc: bool = False
    ignore_merges: bool = False
    """A word that is a token needs no merging."""

    def splitter(self) -> pre_tokenizers.PreTokenizer:
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if not self.patterns:
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, gpt2]) if self.digits else gpt2
        cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, letters])


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

RULES: dict[str, Rule] = {
    "gpt-2": Rule(),
    "olmo": Rule(nfc=True),
    "smollm": Rule(digits=True),
    "llama-bpe": Rule(patterns=(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), ignore_merges=True),
    "qwen2": Rule(patterns=(rf"{_WORDS}|\p{{N}}|{_REST}",), nfc=True),
    "default": Rule(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
_ALIASES = {
    "mpt": "gpt-2", "phi-2": "gpt-2", "starcoder": "smollm", "refact": "smollm", "codeshell": "smollm",
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip


def read_tokenizer(metadata: Mapping[str, Any], *, origin: str) -> tuple[Tokenizer, list[str]]:
    """The tokenizer in a file, and what is to be known about it."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise TokenizerError(
            f"{origin} has a tokenizer of kind {kind!r}.",
            expected="Expected 'gpt2': byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have.",
        )
    tokens = _list(metadata, "tokens", str, origin)
    merges = _list(metadata, "merges", str, origin)
    types = _list(metadata, "token_type", int, origin, len(tokens))
    warnings = []
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        name = "default"
        warnings.append(
            "The file does not say how text is cut into words; llama.cpp's default is used, "
            "which may not be what the model was trained with."
        )
    if not isinstance(name, str) or _ALIASES.get(name, name) not in RULES:
        raise TokenizerError(
            f"{origin} cuts text into words by the rule {name!r}, which is not known here.",
            expected=f"For a known one {nearest(str(name), [*RULES, *_ALIASES])}",
        )
    while types and types[-1] == _UNUSED:
        types.pop()
    tokens = tokens[: len(types)]
    problems = _problems(tokens, types, merges)
    if problems:
        raise TokenizerError(f"The tokenizer in {origin} is damaged: {'; '.join(problems[:5])}.")
    try:
        return Tokenizer(_build(tokens, types, merges, RULES[_ALIASES.get(name, name)])), warnings
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"The tokenizer in {origin} cannot be used: {error}.") from None


def write_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The values that say this tokenizer, with unused tokens up to the model's vocabulary."""
    if tokenizer.kind == "characters":
        raise TokenizerError(
            "A tokenizer of kind 'characters' cannot be written as GGUF.",
            expected="llama.cpp knows byte-level BPE, not a word for each character.",
            do="Train with tokenizer.kind 'bpe' or 'bytes', or keep the folder that save_model writes.",
        )
    content = tokenizer.content
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    size = tokenizer.vocab_size
    tokens = [library.id_to_token(number) for number in range(size)]
    types = [_NORMAL] * size
    for added in content["added_tokens"]:
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    unused = (f"[PAD{number}]" for number in itertools.count())
    known = set(tokens)
    tokens += itertools.islice((one for one in unused if one not in known), vocab_size - size)
    merges = [one if isinstance(one, str) else " ".join(one) for one in content["model"]["merges"]]
    end = tokenizer.end_of_text
    values = {
        "model": "gpt2", "pre": _rule_of(tokenizer), "tokens": tokens,
        "token_type": types + [_UNUSED] * (vocab_size - size), "merges": merges,
        "bos_token_id": end, "eos_token_id": end, "add_bos_token": False,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def _rule_of(tokenizer: Tokenizer) -> str:
    """The name of the rule that a tokenizer follows."""
    content = tokenizer.content
    normalizer = (content["normalizer"] or {}).get("type")
    if tokenizer.kind == "bytes" and normalizer is None:
        return "gpt-2"  # without merges every rule gives the same ids
    shown = _without_offsets(content["pre_tokenizer"])
    for name, rule in RULES.items():
        splitter = tokenizers.Tokenizer(models.BPE())
        splitter.pre_tokenizer = rule.splitter()
        same = _without_offsets(json.loads(splitter.to_str())["pre_tokenizer"]) == shown
        merging = content["model"].get("ignore_merges", False) == rule.ignore_merges
        if same and merging and normalizer == ("NFC" if rule.nfc else None):
            return name
    raise TokenizerError(
        f"llama.cpp has no name for the way this tokenizer cuts text into words (normalizer {normalizer}).",
        expected=f"Those of {', '.join(RULES)} are written.",
        do="With another rule the same text would get other ids, so nothing was written.",
    )


def _without_offsets(value: Any) -> Any:
    """Without `trim_offsets`, which says where in the text a token was, not which."""
    if isinstance(value, dict):
        return {key: _without_offsets(inner) for key, inner in value.items() if key != "trim_offsets"}
    return [_without_offsets(one) for one in value] if isinstance(value, list) else value


def _list(metadata: Mapping[str, Any], key: str, kind: type, origin: str, ordinary: int = -1) -> list[Any]:
    """The entries of an array, all of one kind; left out, so many times the ordinary type where that is allowed."""
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is None and ordinary >= 0:
        return [_NORMAL] * ordinary
    if isinstance(values, list) and all(isinstance(one, kind) for one in values):
        if ordinary in (-1, len(values)):
            return list(values)
        raise TokenizerError(f"{origin} has {ordinary} tokens, but types for {len(values)}.")
    raise TokenizerError(
        f"{origin} has no list tokenizer.ggml.{key}.",
        expected="A GGUF file with a model has its tokenizer in it.",
    )


def _problems(tokens: list[str], types: list[int], merges: list[str]) -> list[str]:
    """What would make ids mean something else than the file says."""
    letters, seen, found = frozenset(byte_letters()), set[str](), []
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if token in seen:
            found.append(f"token {number}, {token!r:.40}, is there twice")
        if kind == _NORMAL and not (token and letters.issuperset(token)):
            found.append(f"token {number}, {token!r:.40}, is no text in letters for bytes")
        if kind not in (_NORMAL, _USER_DEFINED) and not token:
            found.append(f"token {number} is empty")
        seen.add(token)
    return found + [f"the merge {merge!r:.40} is no pair" for merge in merges if len(merge.split(" ")) != 2]


def _build(tokens: list[str], types: list[int], merges: list[str], rule: Rule) -> tokenizers.Tokenizer:
    # Specials after all other tokens are kept beside the vocabulary, as their makers do; the ids are the same.
    inside = len(types)
    while inside and types[inside - 1] != _NORMAL:
        inside -= 1
    vocab = {token: number for number, token in enumerate(tokens[:inside])}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    model = models.BPE(vocab, pairs, ignore_merges=rule.ignore_merges)
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = rule.splitter()
    if not merges:  # every byte by itself: words are of no use
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    if rule.nfc:
        library.normalizer = normalizers.NFC()
    added = [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind != _NORMAL
    ]
    for special, group in itertools.groupby(added, key=lambda token: token.special):
        (library.add_special_tokens if special else library.add_tokens)(list(group))
    if library.get_vocab(with_added_tokens=True) != {token: number for number, token in enumerate(tokens)}:
        raise TokenizerError("The tokens of the file do not get the ids that it gives them.")
    return library
