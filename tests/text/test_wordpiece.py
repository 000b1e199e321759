"""BERT's tokenizer as transformers uses it, and the token that stands for a hidden one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from glassformer.configs import build
from glassformer.errors import ConfigError, TokenizerError
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "##s",
    "un",
    "##seen",
    ".",
    ",",
    "naive",
]


@pytest.fixture(scope="module")
def library() -> tokenizers.Tokenizer:
    """BERT's, over a few words; padded and cut as files from elsewhere may be."""
    vocab = {word: number for number, word in enumerate(WORDS)}
    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(WORDS[:5])
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return library


@pytest.fixture(scope="module")
def wordpiece(library: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    padded = tokenizers.Tokenizer.from_str(library.to_str())
    padded.enable_padding(length=9)
    padded.enable_truncation(3)
    file = tmp_path_factory.mktemp("bert") / "tokenizer.json"
    padded.save(str(file))
    return Tokenizer.load(file)


@given(st.text("The cat Sat, unseen naïve [SEP]\n\x00�", max_size=40))
@settings(deadline=None)
def test_framed_ids_are_those_of_the_library_with_its_special_tokens(
    wordpiece: Tokenizer, library: tokenizers.Tokenizer, text: str
) -> None:
    library.encode_special_tokens = True
    assert wordpiece.framed(wordpiece.encode(text)).tolist() == library.encode(text).ids


def test_its_specials_and_what_it_cannot_give_back(wordpiece: Tokenizer) -> None:
    assert (wordpiece.kind, wordpiece.mask, wordpiece.end_of_text) == ("wordpiece", 4, 3)
    ids = wordpiece.encode("The CATS sat, unseen.")
    assert [WORDS[number] for number in ids] == ["the", "cat", "##s", "sat", ",", "un", "##seen", "."]
    assert wordpiece.decode(ids) == "the cats sat, unseen."
    assert wordpiece.token_bytes.sum() == 0
    assert wordpiece.encode("a [MASK]", allow_special=True).tolist() == [1, 4]
    with pytest.raises(TokenizerError, match="no token 99"):
        wordpiece.decode([99])


def test_what_we_save_auto_tokenizer_reads(wordpiece: Tokenizer, tmp_path: Path) -> None:
    wordpiece.save(tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.mask_token_id == 4 and theirs.encode("the cat") == [2, 5, 6, 3]
    assert Tokenizer.load(tmp_path).digest == wordpiece.digest


@pytest.mark.parametrize("kind", ["bpe", "characters", "bytes"])
def test_our_own_get_a_mask_token_when_asked_and_frame_with_the_end_of_text(
    kind: str, tmp_path: Path
) -> None:
    values = {"kind": kind, "vocab": 270, "mask_token": True}
    tokenizer = Tokenizer.train(TokenizerConfig.model_validate(values), [b"the cat sat " * 9])
    assert tokenizer.mask is not None and tokenizer.specials["<|mask|>"] == tokenizer.mask
    ids = tokenizer.encode("cat <|mask|>" if kind != "characters" else "cat")
    assert tokenizer.mask not in ids
    assert tokenizer.framed(ids).tolist() == [tokenizer.end_of_text, *ids.tolist()]
    assert tokenizer.mask in tokenizer.encode("cat <|mask|>", allow_special=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).mask == tokenizer.mask
    plain = Tokenizer.train(TokenizerConfig.model_validate({**values, "mask_token": False}), [b"the cat"])
    assert plain.mask is None


def test_a_mask_token_needs_its_place_in_the_vocabulary() -> None:
    with pytest.raises(ConfigError, match="at least 258"):
        build(TokenizerConfig, {"vocab": 257, "mask_token": True}, origin="here")
