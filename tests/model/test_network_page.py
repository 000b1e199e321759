"""docs/network.md cannot lie: it names every setting, place, activation and head, and its examples run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from glassformer.configs import Config
from glassformer.model.mlp import ACTIVATIONS
from glassformer.model.network import NETWORK_PLACES, Head, NetworkConfig
from glassformer.text.columns import ONE_HOT_AT_MOST
from glassformer.text.table_config import TableConfig
from glassformer.text.table_files import TABLES

PAGE = (Path(__file__).parents[2] / "docs" / "network.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def section(heading: str) -> str:
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return found


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ('Every key of `[model]` with `kind = "network"`', NetworkConfig),
        ("Every key of `[data]` for tables", TableConfig),
    ],
)
def test_every_setting_has_its_row_with_its_default_and_its_choices(
    heading: str, schema: type[Config]
) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(heading), re.M))
    assert list(rows) == list(schema.model_fields)
    for name, field in schema.model_fields.items():
        if field.default not in (None, ()):
            found = tomllib.loads(f"value = {rows[name].replace('`', '')}")["value"]
            assert (tuple(found) if isinstance(found, list) else found) == field.default
        (row,) = re.findall(rf"^\| `{name}` \|.*$", section(heading), re.M)
        assert all(
            f"`{choice}`" in row.replace('"', "")
            for choice in get_args(field.annotation)
            if isinstance(choice, str)
        )


def test_every_place_has_its_row_with_its_axes_and_meaning() -> None:
    rows = [f"| `{place.name}` | {', '.join(place.axes)} | {place.meaning} |" for place in NETWORK_PLACES]
    assert [line for line in section("Every place").splitlines() if line in rows] == rows


def test_every_activation_head_and_format_is_named() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("From a row to a loss"), re.M)
    assert rows == [*ACTIVATIONS, *(head for head in ("distribution", "number", "scores"))]
    assert set(get_args(Head)) == set(rows[-3:])
    assert all(f"`{suffix}`" in PAGE for suffix in TABLES) and f"at most {ONE_HOT_AT_MOST} different" in PAGE


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number: int, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    exec(EXAMPLES[number], {"folder": tmp_path / "model", "data_rows": load_digits().data[:2]})
    assert len(EXAMPLES) == 2
