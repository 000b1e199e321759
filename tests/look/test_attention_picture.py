"""One head as a picture: it is the pattern of the head it names, and the head it chooses is a telling one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.look.attention import attention_rows, concentration
from glassformer.look.trace import look
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import Loaded

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    config = ModelConfig(vocab=257, width=32, layers=3, heads=4, context=32, init="xavier")
    return Loaded(build(config).eval(), tokenizer, config, Path("made"))


def test_the_attention_picture_is_the_pattern_of_the_head_it_names(loaded: Loaded) -> None:
    picture = attention_rows(loaded.model, loaded.tokenizer, TEXT, layer=2, head=1)
    assert "".join(picture["tokens"]) == TEXT and (picture["layer"], picture["head"]) == (2, 1)
    expected = look(loaded, TEXT)["blocks.2.attn.pattern"][0, 1]
    torch.testing.assert_close(torch.tensor(picture["pattern"]), expected)
    chosen = attention_rows(loaded.model, loaded.tokenizer, TEXT)
    named = attention_rows(loaded.model, loaded.tokenizer, TEXT, chosen["layer"], chosen["head"])
    torch.testing.assert_close(torch.tensor(named["pattern"]), torch.tensor(chosen["pattern"]))
    assert len(attention_rows(loaded.model, loaded.tokenizer, TEXT * 9)["tokens"]) == 32
    with pytest.raises(UsageError, match="There is no head 4"):
        attention_rows(loaded.model, loaded.tokenizer, TEXT, head=4)


def test_the_most_telling_head_is_concentrated_but_neither_sink_nor_diagonal() -> None:
    even = torch.ones(8, 8).tril()
    even = even / even.sum(-1, keepdim=True)
    sink = torch.zeros(8, 8)
    sink[:, 0] = 1
    previous = torch.eye(8).roll(1, 0).tril()
    previous[0, 0] = 1
    mixed = (previous + even) / 2
    ranks = concentration(torch.stack([even, sink, torch.eye(8), previous, mixed]))
    assert ranks.argsort().tolist()[:3] == [3, 4, 0]
    assert float(ranks[0]) == pytest.approx(1, abs=1e-6) and float(ranks[3]) == pytest.approx(0, abs=1e-6)
