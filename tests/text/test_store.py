import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glassformer.errors import TextError, TokenizerError
from glassformer.text.config import TokenizerConfig
from glassformer.text.store import StoreWriter, TokenStore
from glassformer.text.tokenizer import Tokenizer

MakeStore = Callable[..., TokenStore]


def test_documents_come_back_with_their_source_and_name(make_store: MakeStore) -> None:
    store = make_store([b"one", b"", b"three"], sources=[0, 0, 2])
    assert (store.num_documents, store.num_tokens, store.num_bytes) == (3, 11, 8)
    assert store.starts.tolist() == [0, 4, 5, 11]
    assert store.sources.tolist() == [0, 0, 2]
    assert store.names == ["doc-0", "doc-1", "doc-2"]
    assert store.ids.dtype == np.uint16
    assert store.ids.tolist() == [*b"one", 256, 256, *b"three", 256]


def test_the_files_are_ordinary_numpy_arrays(make_store: MakeStore) -> None:
    store = make_store([b"one"])
    for name in ("ids", "starts", "sources"):
        assert np.load(store.path / f"{name}.npy").tolist() == getattr(store, name).tolist()


def test_a_store_without_documents_can_be_opened(make_store: MakeStore) -> None:
    assert make_store([]).num_tokens == 0


def test_names_keep_any_characters(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    names = ["línea\nbreak.txt", "日本 語.txt", "\udcff.txt", "next\u2028line\x85"]
    with StoreWriter(tmp_path / "s", byte_tokenizer, "") as writer:
        for name in names:
            writer.add(name, 0, byte_tokenizer.encode(b"x"), 1)
    assert TokenStore.open(tmp_path / "s", tokenizer=byte_tokenizer).names == names


@pytest.mark.parametrize(("characters", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(tmp_path: Path, characters: int, dtype: type) -> None:
    # characters + end_of_text: 65,536 tokens still fit 16 bits, 65,537 do not.
    alphabet = "".join(chr(0x10000 + number) for number in range(characters))
    tokenizer = Tokenizer.train(TokenizerConfig(kind="characters"), [alphabet.encode()])
    ids = tokenizer.encode(alphabet[-3:])
    with StoreWriter(tmp_path / "s", tokenizer, "") as writer:
        writer.add("d", 0, ids, 12)
    store = TokenStore.open(tmp_path / "s", tokenizer=tokenizer)
    assert store.ids.dtype == dtype
    assert store.ids.tolist() == [*ids.tolist(), tokenizer.end_of_text]


def test_a_store_of_another_format_is_refused(make_store: MakeStore, byte_tokenizer: Tokenizer) -> None:
    store = make_store([b"one"])
    manifest = json.loads((store.path / "manifest.json").read_text())
    (store.path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(TextError, match="its format is 99, this version reads 1"):
        TokenStore.open(store.path, tokenizer=byte_tokenizer)


def test_another_tokenizer_is_refused(make_store: MakeStore) -> None:
    store = make_store([b"one"])
    other = Tokenizer.train(TokenizerConfig(vocab=300), [b"one two one two"])
    with pytest.raises(TokenizerError, match=r"was made with another tokenizer .* 257 tokens"):
        TokenStore.open(store.path, tokenizer=other)
