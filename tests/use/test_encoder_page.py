"""docs/encoder.md cannot lie: its example runs, its BERT is one, its numbers are the recipes' own."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import glassformer as gf
from glassformer.model import hub
from glassformer.train.recipe import load_recipe
from glassformer.use.embed import Pooling

PAGE = (Path(__file__).parents[2] / "docs" / "encoder.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})


def test_every_pooling_has_its_row() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(get_args(Pooling))


def test_the_settings_it_calls_a_bert_are_written_as_one() -> None:
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    values = {"kind": "encoder", "vocab": 100, **tomllib.loads(settings)["model"]}
    family, fields = hub.write_config(gf.ModelConfig.model_validate(values))
    assert family.model_type == "bert" and fields["architectures"] == ["BertForMaskedLM"]


@pytest.mark.parametrize("name", ["demo-mask", "demo-label"])
def test_the_measured_losses_are_those_the_recipes_claim(name: str) -> None:
    about = load_recipe(name).recipe.about
    assert about.hardware and about.minutes is not None
    assert f"loss {about.loss:g}" in PAGE and f"{about.minutes:g} minutes" in PAGE
