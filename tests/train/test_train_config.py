"""Recipes: everything wrong at once, one length, overrides, one level of extends, and those that come with us."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import ConfigError, UsageError
from glassformer.train.recipe import Recipe, load_recipe, recipes

TINY: dict[str, Any] = {"name": "tiny", "train": {"steps": 3}}


def with_train(**train: Any) -> Recipe:
    return load_recipe({"train": train}).recipe


def test_everything_wrong_is_listed_at_once_with_the_nearest_key() -> None:
    wrong = {
        "train": {"steps": 3, "batch": 8, "accumulate": 3, "sed": 1},
        "optimizer": {"kind": "adamx", "betas": [0.9]},
        "schedule": {"warmup": -1},
        "engine": {"precision": "fp8"},
        "modle": {},
    }
    with pytest.raises(ConfigError) as raised:
        load_recipe(wrong)
    said = str(raised.value)
    for told in ("batch 8 does not divide into 3 micro-batches", "train.sed", "'seed'", "optimizer.kind", "'adamx'",
                 "optimizer.betas", "schedule.warmup", "engine.precision", "'fp8'", "modle", "'model'"):  # fmt: skip
        assert told in said, (told, said)
    assert len(raised.value.problems) == 7


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({}, "give one of steps, tokens, epochs, minutes (given: none)"),
        ({"steps": 3, "minutes": 2}, "(given: steps, minutes)"),
        ({"steps": -1}, "train.steps"),
        ({"minutes": 0}, "train.minutes"),
        ({"tokens": 1.5}, "train.tokens"),
        ({"epochs": "two"}, "train.epochs"),
    ],
)
def test_a_recipe_has_exactly_one_length(train: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        with_train(**train)


def test_a_length_given_by_hand_replaces_the_recipes_own_whatever_its_unit() -> None:
    recipe = load_recipe(TINY, {"train.minutes": "0.5"}).recipe
    assert (recipe.train.steps, recipe.train.minutes) == (None, 0.5)


def test_values_are_overridden_by_dotted_names() -> None:
    changes = {
        "model.width": 64,
        "train.clip": "false",
        "optimizer.betas": "[0.8, 0.9]",
        "data.paths": '["a", "b"]',
    }
    recipe = load_recipe(TINY, changes).recipe
    assert (recipe.model.width, recipe.train.clip, recipe.optimizer.betas) == (64, None, (0.8, 0.9))
    assert recipe.data.paths == ("a", "b") and recipe.train.steps == 3


def test_clip_is_false_for_none_in_the_recipe_and_when_written_back() -> None:
    assert with_train(steps=1).train.clip == 1.0
    resolved = with_train(steps=1, clip=False).resolved()
    assert resolved["train"]["clip"] is False and load_recipe(resolved).recipe.train.clip is None


@given(
    st.fixed_dictionaries(
        {"train": st.fixed_dictionaries({"batch": st.integers(1, 64), "seed": st.integers(0, 2**40)})
         | st.fixed_dictionaries({"clip": st.just(False) | st.floats(0.1, 10), "z_loss": st.floats(0, 1)})},
        optional={
            "optimizer": st.fixed_dictionaries({"epsilon": st.floats(1e-9, 1)}),
            "schedule": st.fixed_dictionaries({"kind": st.sampled_from(["noam", "wsd"]), "warmup": st.floats(0, 1e4)}),
            "tokenizer": st.fixed_dictionaries({"kind": st.just("bytes")}),
            "model": st.fixed_dictionaries({"width": st.sampled_from([16, 64]), "tied": st.booleans()}),
        },
    )
)  # fmt: skip
def test_a_resolved_recipe_written_as_toml_and_read_back_is_the_same(values: dict[str, Any]) -> None:
    recipe = load_recipe({**values, "train": {"steps": 1, **values["train"]}}).recipe
    again = tomllib.loads(tomli_w.dumps(recipe.resolved()))
    assert load_recipe(again).recipe == recipe and load_recipe(again).recipe.resolved() == recipe.resolved()


def test_a_recipe_extends_another_by_one_level_and_paths_start_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('name = "base"\n[train]\nsteps = 7\nbatch = 4\n', encoding="utf-8")
    (tmp_path / "more.toml").write_text(
        'extends = "base.toml"\nname = "more"\n[train]\nbatch = 8\n', encoding="utf-8"
    )
    (tmp_path / "most.toml").write_text('extends = "more.toml"\n', encoding="utf-8")
    recipe, base = load_recipe(tmp_path / "more.toml")
    assert (recipe.name, recipe.train.steps, recipe.train.batch, base) == ("more", 7, 8, tmp_path.resolve())
    with pytest.raises(UsageError, match="One level of extends"):
        load_recipe(tmp_path / "most.toml")


def test_a_recipe_from_a_windows_editor_reads_the_same(tmp_path: Path) -> None:
    text = 'name = "windows"\n\n[train]\nsteps = 3\n'
    (tmp_path / "unix.toml").write_bytes(text.encode())
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "unix.toml") == load_recipe(str(tmp_path / "windows.toml"))


def test_a_file_that_is_no_toml_or_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("steps == 3", encoding="utf-8")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(tmp_path / "broken.toml")
    with pytest.raises(UsageError, match="There is no recipe"):
        load_recipe(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"no recipe, file or folder 'dmeo'.*'demo'"):
        load_recipe("dmeo")


def test_a_text_file_or_folder_is_learned_by_the_demos_settings(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("Dear cat,", encoding="utf-8")
    demo = load_recipe().recipe
    for what, name in ((tmp_path / "letters", "letters"), (tmp_path / "letters" / "one.txt", "one")):
        recipe = load_recipe(what, {"model.width": 32}).recipe
        assert recipe.name == name and recipe.data.paths == (str(what),) and recipe.about.text == ""
        assert recipe.train == demo.train and recipe.model.width == 32


def test_a_file_here_goes_before_a_packaged_recipe_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").recipe.data.paths == ("python:stdlib",)
    (tmp_path / "demo").mkdir()
    assert load_recipe("demo").recipe.data.paths == (str(tmp_path / "demo"),)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_that_comes_with_us_loads_and_states_hardware_minutes_and_loss(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.name == name
    about = recipe.about
    assert about.text and about.hardware and (about.minutes or 0) > 0 and (about.loss or 0) > 0


def test_a_recipe_is_read_without_torch() -> None:
    program = (
        "import sys; from glassformer.train.recipe import *; load_recipe(); print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout == b"False\n"
    )
