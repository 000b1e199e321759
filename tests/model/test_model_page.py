"""docs/model.md cannot lie: it names every setting, place, kernel and convention, and its example runs."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from glassformer.model.attention import Kernel
from glassformer.model.config import ModelConfig
from glassformer.model.count import Convention
from glassformer.model.places import PLACES

PAGE = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ModelConfig.model_fields)
def test_every_setting_has_its_row_with_its_default_and_its_choices(name):
    field = ModelConfig.model_fields[name]
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
    if field.default is not None:
        assert tomllib.loads(f"value = {row.split('|')[2].replace('`', '')}")["value"] == field.default
    for choice in get_args(field.annotation):
        if isinstance(choice, str):
            assert choice in row


def test_every_place_has_its_row_with_its_axes_and_meaning():
    rows = [f"| `{place.name}` | {', '.join(place.axes)} | {place.meaning} |" for place in PLACES]
    assert [line for line in PAGE.splitlines() if line in rows] == rows


def test_every_kernel_and_every_convention_is_named():
    assert all(f"`{name}`" in PAGE for name in (*get_args(Kernel), *get_args(Convention)))


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
