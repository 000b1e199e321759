"""docs/train.md cannot lie: it names every key and every choice, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from trainer import RECIPE

from glassformer.configs import Config
from glassformer.train.config import About, EngineConfig, OptimizerConfig, ScheduleConfig, TrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
TABLES = [About, TrainConfig, OptimizerConfig, ScheduleConfig, EngineConfig]


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_named(table: type[Config]) -> None:
    assert [name for name in table.model_fields if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("table", [OptimizerConfig, ScheduleConfig])
def test_every_kind_has_its_row_and_there_is_no_other(table: type[Config]) -> None:
    name = table.__name__.removesuffix("Config").lower()
    (section,) = re.findall(rf"^## \[{name}\]\n(.*?)(?=^## )", PAGE, re.M | re.S)
    rows = re.findall(r"^\| `(\w+)` \|", section.partition("| `kind` |")[2], re.M)
    assert sorted(rows) == sorted(get_args(table.model_fields["kind"].annotation))


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSFORMER_HOME", str(tmp_path / "home"))
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "one.txt").write_text("The cat sat on the mat. " * 200, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(RECIPE.replace('"texts"', '"my_texts"'), encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for old, new in {'"demo"': '"tiny.toml"', '"my_texts/"': '"tiny.toml"', "500": "2"}.items():
        assert old in example
        example = example.replace(old, new)
    exec(example, {})
    assert (tmp_path / "runs" / "tiny-1" / "model").is_dir() and (
        tmp_path / "runs" / "demo-1" / "report.html"
    ).exists()
