"""The page of the views: its example is run on a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import save_model

PAGE = Path(__file__).parents[2] / "docs/views.md"


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vl_convert")
    example = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert example
    tokenizer = Tokenizer.train(
        TokenizerConfig(kind="bpe", vocab=300), [b"import os, import sys, os.path " * 50]
    )
    model = build(ModelConfig(vocab=tokenizer.vocab_size, width=32, layers=2, heads=2, context=32))
    for number, weight in enumerate(model.parameters()):
        if weight.ndim > 1:
            weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    save_model(tmp_path / "runs/demo-1", model, tokenizer)
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    exec(example[1], known)
    assert (tmp_path / "next.svg").read_text("utf-8").startswith("<svg")
    assert known["order"].chart_names == ("angles", "kernel", "attention", "curves")  # type: ignore[attr-defined]
