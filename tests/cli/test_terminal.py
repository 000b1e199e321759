"""Tables, documents, curves on the terminal, and flags for a recipe's values."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest

from glassformer.cli.overrides import Overrides
from glassformer.cli.terminal import document, facts, sparkline, table
from glassformer.configs import Config
from glassformer.train.recipe import RECIPES


def test_off_a_terminal_nothing_is_cut_or_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a/long/path" * 30
    table([{"path": long, "bytes": 1234567, "empty": 0}, {"path": "b", "bytes": None, "empty": 0}])
    shown = capsys.readouterr().out
    assert long in shown and "1,234,567" in shown and "empty" not in shown and "\x1b" not in shown


def test_markup_in_a_name_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    facts({"run": "[red]x[/red] :smile:", "nothing": None})
    assert capsys.readouterr().out.split(maxsplit=1)[1].strip() == "[red]x[/red] :smile:"


def test_a_document_is_one_line_of_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    document({"perplexity": math.inf, "text": "né\n"}, "score")
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    values = json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values == {"schema": "glassformer.score", "version": 1, "perplexity": "Infinity", "text": "né\n"}


def test_a_curve_goes_from_its_highest_to_its_lowest_sign() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0, math.nan, 1.0]) == "▁▁" and sparkline([]) == ""
    assert len(sparkline(range(1000), width=60)) == 60


def test_every_table_of_a_recipe_can_be_overridden_by_flags() -> None:
    tables = {
        name
        for recipe in RECIPES.values()
        for name, field in recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
    }
    assert {field.name for field in fields(Overrides)} == tables - {"about"}
    given = Overrides(model={"width": "64"}, train={"clip": "false"})
    assert given.dotted() == {"model.width": "64", "train.clip": "false"}
