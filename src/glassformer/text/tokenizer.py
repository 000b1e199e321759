"""Bytes <-> ids, by the `tokenizers` library, with an exact round trip for any bytes but by `wordpiece`.

| kind       | a token is                                                              |
|------------|-------------------------------------------------------------------------|
| bpe        | bytes that occur together often: byte pair encoding over GPT-2's words  |
|            | (Sennrich et al. 2016; Radford et al. 2019)                             |
| characters | one Unicode character of the training text                              |
| bytes      | one byte: id = byte                                                     |
| wordpiece  | a word of BERT's list, or a piece of one (Schuster and Nakajima 2012)   |

Each of the first three has a special token, `<|endoftext|>`, that ends a document, and with `mask_token` another,
`<|mask|>`, that stands for a hidden token. `wordpiece` is read from BERT's `tokenizer.json`, not trained; `[SEP]`
ends its texts and `[MASK]` hides. It is not exact: upper case and accents are lost, spaces are guessed and unknown
words are all `[UNK]`, so no token stands for bytes and bits per byte are not known.

Typed in a text a special token is ordinary text; only `allow_special=True` reads it as what it is. With `bpe` and
`bytes` a byte that is not valid UTF-8 becomes the token of that byte, so nothing is lost.

A long text is encoded in pieces, cut between a letter or digit and the white space after it. No word of
GPT-2's pattern (nor of its descendants') reaches across such a place, and none looks behind it, so the ids
are those of the whole text. Only a text with no such place in `LONGEST_PIECE` characters is cut regardless.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from glassformer.errors import TokenizerError
from glassformer.files import write_json, write_text
from glassformer.text.config import TokenizerConfig

Kind = Literal["bpe", "characters", "bytes", "wordpiece"]
Ids = NDArray[np.int64]

END_OF_TEXT, MASK = "<|endoftext|>", "<|mask|>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # as other people's files call it
MASKS = (MASK, "[MASK]", "<mask>")
BEFORE_TEXT = "[CLS]"  # of BERT
PIECE, LONGEST_PIECE = 2**17, 2**20  # characters
BYTES_AT_ONCE = 4 * 2**20  # the library needs about 100 bytes of memory for each token it holds
MIN_FREQUENCY = 2  # a pair seen once teaches nothing
_SAFE_CUT = re.compile(r"[^\W_](?=\s)")
_STRAY = re.compile("([\udc80-\udcff]+)")


class Tokenizer:
    """A trained tokenizer; it never changes."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        _survive_forks()
        self._library = library
        self._library.encode_special_tokens = True  # read specials in text as text
        self._library.no_padding()  # which files from elsewhere may ask for
        self._library.no_truncation()
        canonical = json.dumps(json.loads(library.to_str()), sort_keys=True, separators=(",", ":"))
        self._json: dict[str, Any] = json.loads(canonical)
        self.digest = hashlib.sha256(canonical.encode()).hexdigest()
        self.kind: Kind = _kind(self._json)
        self.vocab_size = library.get_vocab_size(with_added_tokens=True)
        self.specials: dict[str, int] = {
            t["content"]: t["id"] for t in self._json["added_tokens"] if t["special"]
        }
        self.end_of_text = _end_of_text(self.specials)
        self.mask = next((self.specials[name] for name in MASKS if name in self.specials), None)
        """The id that stands for a hidden token, of tokenizers that have one."""
        self._bytes = _bytes_of_each_id(self)
        self.token_bytes: NDArray[np.int32] = np.array([len(b) for b in self._bytes], np.int32)
        self._single = _id_of_each_unit(self)

    @classmethod
    def train(cls, config: TokenizerConfig, documents: Iterable[bytes]) -> Tokenizer:
        """Learn a vocabulary: `bpe` from the first `config.training_bytes` of `documents`, `characters` from
        all of them. The result does not depend on the number of threads."""
        _survive_forks()
        if config.kind == "bpe":
            return cls(_bpe(config, _until(config.training_bytes, documents)))
        return cls(_characters(config, documents) if config.kind == "characters" else _every_byte(config))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a directory."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8")))
        except TokenizerError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"{file} cannot be used as a tokenizer: {error}.",
                expected="A tokenizer.json as the `tokenizers` library writes it.",
                do="Check the path, or leave tokenizer.path out to train one.",
            ) from None

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` at `path`, and beside it what `transformers.AutoTokenizer` reads first."""
        write_text(path, self._library.to_str(pretty=True))
        beside = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": next(name for name, number in self.specials.items() if number == self.end_of_text),
            "clean_up_tokenization_spaces": False,
            **{key: name for key, names in _ROLES.items() for name in names if name in self.specials},
        }
        write_json(path.with_name("tokenizer_config.json"), beside)

    @property
    def content(self) -> dict[str, Any]:
        """What its tokenizer.json says; not to be changed."""
        return self._json

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> Ids:
        """The ids of `text`."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if not allow_special:
            return self.encode_batch([data])[0]
        names = b"|".join(re.escape(name.encode()) for name in sorted(self.specials, key=len, reverse=True))
        parts = re.split(b"(" + names + b")", data)
        specials = [np.array([self.specials[name.decode()]]) for name in parts[1::2]]
        between = self.encode_batch(parts[::2])
        return np.concatenate(
            [ids for pair in zip(between, [*specials, between[-1][:0]], strict=True) for ids in pair]
        )

    def framed(self, ids: Ids) -> Ids:
        """What an encoder reads of a text: `[CLS] ids [SEP]` by BERT's tokenizer, `<|endoftext|> ids` by ours, as
        texts stand in a training row."""
        if self.kind == "wordpiece":
            return np.concatenate([[self.specials[BEFORE_TEXT]], ids, [self.end_of_text]]).astype(np.int64)
        return np.concatenate([[self.end_of_text], ids]).astype(np.int64)

    def encode_batch(self, documents: list[bytes]) -> list[Ids]:
        """The ids of each document, on all threads."""
        if self.kind == "wordpiece":  # which has no tokens for stray bytes
            documents = [data.decode("utf-8", "replace").encode() for data in documents]
        if self.kind == "bytes" and not self._library.normalizer:
            return [self._single[np.frombuffer(data, np.uint8)] for data in documents]
        if self.kind == "characters":
            return [self._encode_characters(data) for data in documents]
        pieces = [(number, piece) for number, data in enumerate(documents) for piece in _pieces(data)]
        found: list[list[Ids]] = [[] for _ in documents]
        for group in _groups(pieces):
            texts = [piece for _, piece in group if isinstance(piece, str)]
            encoded = iter(self._library.encode_batch_fast(texts, add_special_tokens=False))
            for number, piece in group:
                ids = (
                    next(encoded).ids
                    if isinstance(piece, str)
                    else self._single[np.frombuffer(piece, np.uint8)]
                )
                found[number].append(np.asarray(ids, np.int64))
        return [np.concatenate(ids) if ids else np.empty(0, np.int64) for ids in found]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids` (of `wordpiece`: its words, spaces guessed); special tokens have none."""
        table = self._bytes
        numbers = [int(i) for i in ids]
        if numbers and not (min(numbers) >= 0 and max(numbers) < len(table)):
            worst = max(numbers) if max(numbers) >= len(table) else min(numbers)
            raise TokenizerError(
                f"There is no token {worst}.",
                expected=f"Ids from 0 to {len(table) - 1}.",
                do="Use the tokenizer that made these ids.",
            )
        if self.kind == "wordpiece":
            text: str = self._library.decode(numbers)
            return text.encode()
        return b"".join([table[number] for number in numbers])

    def beginning_with(self, start: bytes) -> NDArray[np.bool_]:
        """For each id, whether its text begins so."""
        return np.array([text.startswith(start) for text in self._bytes])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, with U+FFFD where the bytes are no whole character."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _encode_characters(self, data: bytes) -> Ids:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"Byte 0x{data[error.start]:02X} at position {error.start} is not valid UTF-8.",
                expected="Whole characters, as tokenizer.kind is 'characters'.",
                do="Use kind 'bpe' or 'bytes', or data.encoding = 'replace'.",
            ) from None
        if self._library.normalizer:
            text = self._library.normalizer.normalize_str(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._single[points]
        if ids.size and ids.min() < 0:
            position = int(np.argmin(ids >= 0))
            raise TokenizerError(
                f"Character {text[position]!r} (U+{points[position]:04X}) at position {position} is unknown.",
                expected=f"One of the {self.vocab_size - len(self.specials)} characters it was trained on.",
                do="Leave it out, train on text that has it, or use kind 'bpe' or 'bytes', which know all.",
            )
        return ids


def _bpe(config: TokenizerConfig, texts: Iterator[str]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    _normalize(library, config)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        min_frequency=MIN_FREQUENCY,
        special_tokens=_specials(config),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def _characters(config: TokenizerConfig, documents: Iterable[bytes]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordLevel({}, unk_token=END_OF_TEXT))
    _normalize(library, config)
    found: set[str] = set()
    for data in documents:
        text = data.decode("utf-8", "ignore")
        found.update(library.normalizer.normalize_str(text) if library.normalizer else text)
    vocab = {character: number for number, character in enumerate(sorted(found))}
    # The unknown token is not in this vocabulary, so the library refuses unknown characters, as we do.
    library.model = models.WordLevel(vocab, unk_token=END_OF_TEXT)
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens(_specials(config))
    return library


def _every_byte(config: TokenizerConfig) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(
        models.BPE({letter: byte for byte, letter in enumerate(byte_letters())}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    _normalize(library, config)
    library.add_special_tokens(_specials(config))
    return library


def _specials(config: TokenizerConfig) -> list[AddedToken]:
    names = [END_OF_TEXT, *([MASK] if config.mask_token else [])]
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _normalize(library: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    if config.normalization != "none":
        library.normalizer = normalizers.NFC() if config.normalization == "nfc" else normalizers.NFKC()


def _until(limit: int, documents: Iterable[bytes]) -> Iterator[str]:
    """The valid text of `documents`, in pieces, up to `limit` bytes."""
    for data in documents:
        for piece in _pieces(data[:limit]):
            if isinstance(piece, str):
                yield piece
        limit -= len(data)
        if limit <= 0:
            return


def _pieces(data: bytes) -> Iterator[str | bytes]:
    """`data` in order as valid text (cut where it is safe) and runs of stray bytes."""
    # surrogateescape maps exactly the invalid bytes to U+DC80..U+DCFF, which valid UTF-8 cannot hold.
    for number, run in enumerate(_STRAY.split(data.decode("utf-8", "surrogateescape"))):
        if number % 2:
            yield run.encode("utf-8", "surrogateescape")
            continue
        start = 0
        while len(run) - start > PIECE:
            cut = _SAFE_CUT.search(run, start + PIECE, start + LONGEST_PIECE)
            if cut is None and len(run) - start <= LONGEST_PIECE:
                break
            end = cut.end() if cut else start + LONGEST_PIECE
            yield run[start:end]
            start = end
        if start < len(run):
            yield run[start:]


def _groups(pieces: list[tuple[int, str | bytes]]) -> Iterator[list[tuple[int, str | bytes]]]:
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1])
        if size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    yield group


@cache
def byte_letters() -> tuple[str, ...]:
    """GPT-2's letter for each byte: printable bytes are themselves, the others U+0100 and on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


def _kind(content: dict[str, Any]) -> Kind:
    model, decoder = content["model"], json.dumps(content["decoder"])
    if model["type"] == "WordLevel" and '"Fuse"' in decoder:
        return "characters"
    if model["type"] == "BPE" and '"ByteLevel"' in decoder:
        return "bpe" if model["merges"] else "bytes"
    specials = {token["content"] for token in content["added_tokens"] if token["special"]}
    if model["type"] == "WordPiece" and {BEFORE_TEXT, "[SEP]"} <= specials:
        return "wordpiece"
    raise TokenizerError(
        f"A {model['type']} tokenizer with decoder {decoder} is not one that glassformer reads.",
        expected="Byte-level BPE (as GPT-2 and Llama 3 use), BERT's WordPiece, or one that glassformer wrote.",
        do="Leave tokenizer.path out to train one.",
    )


_ROLES = {
    "mask_token": MASKS, "cls_token": ("[CLS]",), "sep_token": ("[SEP]",), "pad_token": ("[PAD]",),
    "unk_token": ("[UNK]",),
}  # fmt: skip
"""What `transformers` calls special tokens."""


def _end_of_text(specials: dict[str, int]) -> int:
    for name in ENDS_OF_TEXT:
        if name in specials:
            return specials[name]
    raise TokenizerError(
        f"The tokenizer has no token that ends a text; it has {', '.join(specials) or 'no special ones'}.",
        expected=f"One of {', '.join(ENDS_OF_TEXT)}.",
        do="Add one to the tokenizer's added_tokens.",
    )


def _bytes_of_each_id(tokenizer: Tokenizer) -> list[bytes]:
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    table = [b""] * tokenizer.vocab_size
    added = {token["content"] for token in tokenizer._json["added_tokens"]}
    for token, number in tokenizer._library.get_vocab(with_added_tokens=True).items():
        if token in tokenizer.specials or tokenizer.kind == "wordpiece":
            continue
        whole = tokenizer.kind == "characters" or token in added
        table[number] = token.encode() if whole else bytes(byte_of[letter] for letter in token)
    return table


def _id_of_each_unit(tokenizer: Tokenizer) -> Ids:
    """The id of each byte, or of each code point for `characters`; -1 where there is none."""
    table = np.full(0x110000 if tokenizer.kind == "characters" else 256, -1, np.int64)
    for number, token in enumerate(tokenizer._bytes):
        if tokenizer.kind == "characters" and token:
            table[ord(token.decode())] = number
        elif len(token) == 1:
            table[token[0]] = number
    return table


@cache
def _survive_forks() -> None:
    """A fork copies one thread of the library's pool and its locks, so a child that encodes on all threads
    hangs. The library avoids that by itself but prints a warning; saying it in its variable while forking
    keeps it quiet. What the user has set stays."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ or not hasattr(os, "register_at_fork"):
        return
    os.register_at_fork(
        before=lambda: os.environ.__setitem__(name, "false"),
        after_in_parent=lambda: os.environ.pop(name, None),
    )
