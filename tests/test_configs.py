"""Recipes: reading, merging, overriding, and every problem told at once (faults 41 and 46)."""

from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from glassformer.configs import Clash, Config, build, merge, override, read_toml
from glassformer.errors import ConfigError, UsageError


class Source(Config):
    path: str
    weight: float = Field(1.0, gt=0)


class Engine(Config):
    width: int = Field(64, ge=1)
    heads: int = Field(4, ge=1)
    groups: int = Field(1, ge=1)
    name: str = "plain"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = []
        if self.width % self.heads:
            problems.append(f"width {self.width} does not divide into {self.heads} heads")
        if self.heads % self.groups:
            problems.append(f"heads {self.heads} is not a multiple of groups {self.groups}")
        if problems:
            raise Clash(problems)
        return self


class Recipe(Config):
    engine: Engine = Engine()
    paths: tuple[str | Source, ...] = ()
    steps: int = 10
    warmup: int = 0

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than steps {self.steps}")
        return self


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        build(Recipe, values, origin="a.toml")
    assert str(caught.value).startswith(f"a.toml has {len(caught.value.problems)} problem")
    return caught.value.problems


def test_a_right_recipe_is_built():
    assert build(Recipe, {"engine": {"width": 8}}, origin="a.toml").engine.width == 8


def test_settings_never_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().steps = 3


def test_a_typo_is_told_the_nearest_key():
    assert problems(engine={"widht": 8}) == ["engine.widht: there is no such key; did you mean 'width'?"]
    assert problems(engin={}) == ["engin: there is no such key; did you mean 'engine'?"]


def test_a_key_like_no_other_is_told_them_all():
    assert problems(engine={"zzz": 1}) == [
        "engine.zzz: there is no such key; it can be 'groups', 'heads', 'name', 'width'"
    ]


def test_a_wrong_type_says_what_was_given():
    (problem,) = problems(steps="many")
    assert problem.startswith("steps: input should be a valid integer")
    assert problem.endswith("(given: 'many')")


def test_a_typo_a_wrong_type_and_an_impossible_combination_are_told_together():
    found = problems(engine={"widht": 10, "heads": 4, "groups": 3, "name": 5}, steps="x", wramup=3)
    assert [problem.split(":")[0] for problem in found] == [
        "engine.name", "engine.widht", "steps", "wramup", "engine", "engine",
    ]  # fmt: skip
    assert "engine: width 10 does not divide into 4 heads" in found
    assert "engine: heads 4 is not a multiple of groups 3" in found


def test_a_combination_with_a_wrong_setting_is_not_judged():
    assert len(problems(engine={"width": "wide", "heads": 3})) == 1


def test_a_combination_across_tables_is_told_although_a_table_is_wrong():
    found = problems(engine={"width": 10, "heads": 4}, steps=5, warmup=9)
    assert found == [
        "engine: width 10 does not divide into 4 heads",
        "recipe: warmup 9 is longer than steps 5",
    ]


def test_a_table_that_is_none_is_told_so():
    assert problems(engine=3) == ["engine: input should be a table (given: 3)"]


def test_problems_in_a_list_say_which_entry():
    found = problems(paths=["fine", {"pth": "a"}, {"path": "b", "weight": -1}])
    assert found == [
        "paths[1].path: field required",
        "paths[1].pth: there is no such key; did you mean 'path'?",
        "paths[2].weight: input should be greater than 0 (given: -1)",
    ]


def test_where_two_types_are_allowed_both_are_named():
    assert problems(paths=[3]) == [
        "paths[0]: input should be a valid string or input should be a table (given: 3)"
    ]


values = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans() | st.floats() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["engine", "paths", "steps", "warmup", "width", "heads", "path", "engin", "0", ""])


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=4), max_size=4))
def test_anything_at_all_is_built_or_refused_with_problems(recipe):
    try:
        assert isinstance(build(Recipe, recipe, origin="a.toml"), Recipe)
    except ConfigError as error:
        assert error.problems
        assert len(set(error.problems)) == len(error.problems)


def test_extends_starts_from_the_other_recipe(tmp_path):
    (tmp_path / "base.toml").write_text("steps = 3\n[engine]\nwidth = 8\nheads = 2\n")
    (tmp_path / "small.toml").write_text('extends = "base.toml"\n[engine]\nwidth = 4\n')
    assert read_toml(tmp_path / "small.toml") == {"steps": 3, "engine": {"width": 4, "heads": 2}}


def test_extends_goes_one_level_and_says_so(tmp_path):
    (tmp_path / "a.toml").write_text("steps = 3\n")
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    (tmp_path / "c.toml").write_text('extends = "b.toml"\n')
    with pytest.raises(UsageError, match=r"One level of extends is allowed.*Extend a\.toml directly"):
        read_toml(tmp_path / "c.toml")


@pytest.mark.parametrize("parent", ["3", "['a.toml']", "true"])
def test_extends_is_one_path(tmp_path, parent):
    (tmp_path / "a.toml").write_text(f"extends = {parent}\n")
    with pytest.raises(UsageError, match="the path of one other recipe"):
        read_toml(tmp_path / "a.toml")


def test_a_missing_recipe_a_directory_and_broken_toml_are_named(tmp_path):
    (tmp_path / "broken.toml").write_text("steps = = 3\n")
    for name, message in [
        ("no.toml", "There is no recipe"),
        ("", "cannot be read"),
        ("broken.toml", "line 1"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_toml(tmp_path / name)


def test_windows_files_and_names_of_any_language_are_read(tmp_path):
    folder = tmp_path / "mes recettes — été"
    folder.mkdir()
    (folder / "größe 1.toml").write_bytes(b"\xef\xbb\xbfsteps = 3\r\n[engine]\r\nname = 'caf\xc3\xa9'\r\n")
    assert read_toml(folder / "größe 1.toml") == {"steps": 3, "engine": {"name": "café"}}


def test_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.toml").write_bytes("name = 'café'".encode("utf-16"))
    with pytest.raises(UsageError, match="is not valid TOML"):
        read_toml(tmp_path / "a.toml")


def test_an_override_reaches_any_depth_and_keeps_the_rest():
    recipe = {"engine": {"width": 8, "heads": 2}, "steps": 3}
    assert override(recipe, {"engine.width": "16", "warmup": 1}) == {
        "engine": {"width": 16, "heads": 2}, "steps": 3, "warmup": 1,
    }  # fmt: skip
    assert recipe["engine"]["width"] == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("[1, 2]", [1, 2]), ("rope", "rope"),
     ("my texts/", "my texts/"), ("'3'", "3"), ("", "")],
)  # fmt: skip
def test_an_override_is_read_as_toml_where_it_is_and_as_text_otherwise(text, value):
    assert override({}, {"key": text}) == {"key": value}


tables = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.integers() | inner, max_size=3),
)


@given(tables, tables)
def test_merging_keeps_every_change_and_merging_again_changes_nothing(base, change):
    merged = merge(base, change)
    assert merge(merged, change) == merged
    assert merge(base, {}) == base == merge({}, base)
    assert set(merged) == {*base, *change}
