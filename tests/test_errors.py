"""The tree of errors: what each says and what the shell is told."""

import inspect
import re

import pytest

from glassformer import errors
from glassformer.errors import ConfigError, GlassformerError, nearest

CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, GlassformerError)]


def test_the_tree_in_the_docstring_is_the_tree():
    """Every class with its exit code and its depth."""
    drawn = {}
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([ │├└─]*)([A-Z]\w+)\s+(?:exit code )?(\d+)", line):
            drawn[found[2]] = (len(found[1]) // 4 - 1, int(found[3]))
    assert drawn == {c.__name__: (len(c.__mro__) - 4, c.exit_code) for c in CLASSES}


def test_a_message_is_what_was_given_expected_and_to_do():
    error = GlassformerError("It is 3.", expected="Expected 4.", do="Write 4.")
    assert str(error) == "It is 3. Expected 4. Write 4."
    assert (error.what, error.expected, error.do) == ("It is 3.", "Expected 4.", "Write 4.")
    assert str(GlassformerError("Only this.")) == "Only this."


def test_a_config_error_has_a_line_for_each_problem():
    error = ConfigError("a.toml has 2 problems:", ["one", "two"], do="Mend them.")
    assert str(error) == "a.toml has 2 problems:\n  - one\n  - two\nMend them."
    assert str(ConfigError("a.toml has 1 problem:", ["one"])) == "a.toml has 1 problem:\n  - one"
    assert error.problems == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("widht", "did you mean 'width'?"),
        ("heds", "did you mean 'heads'?"),
        ("LAYRES", "did you mean 'layers'?"),
        ("zzz", "it can be 'heads', 'layers', 'width'"),
    ],
)
def test_the_nearest_legal_names_are_proposed(name, phrase):
    assert nearest(name, ["width", "heads", "layers"]) == phrase


def test_a_long_list_of_names_is_cut():
    assert nearest("zzz", [f"name{n:02}" for n in range(30)]).endswith("'name19' ...")
