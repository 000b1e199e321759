"""The page of a pass: every section for every member, with the functions' own numbers, and nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glassformer.errors import UsageError
from glassformer.look.page import write_page
from glassformer.look.summary import summary
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.run.page import show
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

TEXT, TARGET = "the <cat> sat", "on it"
ALWAYS = ["Where it looks", "What the heads do", "How it knows where a token stands", "Every place"]
WRITES = ["What each layer would say", "Why this token rather than that one", "Who is to blame"]


def made(**settings: Any) -> Loaded:
    config = ModelConfig(vocab=257, width=32, layers=2, heads=4, context=48, init="xavier", **settings)
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    return Loaded(build(config, seed=3).eval(), tokenizer, config, Path("made"))


MEMBERS = {
    "decoder": ({}, None, [*ALWAYS, *WRITES, "One neuron"]),
    "attention alone": ({"feedforward": 0}, None, [*ALWAYS, *WRITES]),
    "encoder": ({"kind": "encoder"}, None, [*ALWAYS, "One neuron"]),
    "classifier": ({"kind": "encoder", "head": "classes", "classes": 3}, None, [*ALWAYS, "One neuron"]),
    "encoder-decoder": ({"kind": "encoder-decoder", "encoder_layers": 1}, TARGET, [*ALWAYS, *WRITES, "One neuron"]),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "target", "titles"), MEMBERS.values(), ids=MEMBERS)
def test_every_member_has_its_page(
    settings: dict[str, Any], target: str | None, titles: list[str], tmp_path: Path
) -> None:
    model = made(**settings)
    text = write_page(model, TEXT, tmp_path / "page.html", target=target).read_text()
    found = re.findall(r"<h2>(.*?)</h2>", text)
    assert set(titles) <= set(found), found
    assert ("One neuron" in found) == ("One neuron" in titles)
    assert "<svg" in text and "<script" not in text and "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!#)', text)
    for row in summary(model, TEXT, target=target).answers:
        for value in row.values():
            assert show(value) in text


def test_words_of_the_text_are_never_markup(tmp_path: Path) -> None:
    text = write_page(made(), "<b>hi</b>&", tmp_path / "page.html").read_text()
    assert "<b>hi" not in text and "&lt;" in text


def test_what_has_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written as page\.txt"):
        write_page(made(), TEXT, tmp_path / "page.txt")
    from glassformer.model.mlp import Network
    from glassformer.model.network import NetworkConfig
    from glassformer.text.columns import Columns
    from glassformer.use.predict import Predictor

    network = Network(NetworkConfig(inputs=2, outputs=2))
    with pytest.raises(UsageError, match="this is a plain network"):
        write_page(Predictor(network, Columns.__new__(Columns)), TEXT, tmp_path / "page.html")
