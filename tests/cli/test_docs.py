"""Docs cannot lie: every verb, option, exit code and recipe key is in them, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

import glassformer as gf
from glassformer import errors
from glassformer.cli.main import build
from glassformer.configs import Config
from glassformer.text.config import LabelConfig, MaskConfig
from glassformer.train.recipe import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
NEGATIVE = ("--no-", "--empty-")  # cyclopts's own, switched off in the program


def verbs(app: App, path: str = "") -> Iterator[tuple[str, App]]:
    """Every command that does something, by its full name."""
    for name in (name for name in app if not name.startswith("-")):
        if app[name].default_command:
            yield f"{path}{name}", app[name]
        yield from verbs(app[name], f"{path}{name} ")


def options(app: App) -> set[str]:
    names = {name for argument in app.assemble_argument_collection() for name in argument.names}
    return {name for name in names if not name.startswith(NEGATIVE)} - {"*"}


VERBS = dict(verbs(build()))


def section(page: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert found, f"{page} has no section {heading}"
    return found[1]


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_the_program_has_every_option_of_each_verb_and_no_other(verb: str) -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("docs/cli.md", verb), re.M)
    documented = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert documented == options(VERBS[verb])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_docs_exists_with_the_flags_it_is_given(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    commands = re.findall(r"(?:^|`)(?:\$ )?glassformer ((?:[a-z]+ ?)[^`\n#]*)", text, re.M)
    for command in commands:
        words = command.split()
        verb = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in VERBS), None)
        assert verb or words[0] in build(), f"{page}: glassformer {command}"
        for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", command):
            known = options(VERBS[verb]) if verb else {"--help"}
            assert flag.split(".")[0] in known | {"--help"}, f"{page}: glassformer {command}"
            if "." in flag:
                table, key = flag.removeprefix("--").split(".")
                assert key == "KEY" or key in keys_of(table), f"{page}: {flag}"


def keys_of(table: str) -> set[str]:
    """What may be set in a table of a recipe, whatever the task."""
    fields = [recipe.model_fields[table] for recipe in RECIPES.values() if table in recipe.model_fields]
    return {name for field in fields for name in getattr(field.annotation, "model_fields", {})}


TABLES: dict[str, type[Config]] = {
    name: field.annotation
    for name, field in gf.Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
}


TABLES["mask"] = MaskConfig


@pytest.mark.parametrize("table", TABLES)
def test_the_page_of_recipes_has_every_key_of_each_table_and_no_other(table: str) -> None:
    documented = re.findall(r"^\| `(\w+)` \|", section("docs/recipes.md", rf"\[{table}\]"), re.M)
    assert sorted(documented) == sorted(TABLES[table].model_fields)


def test_the_page_of_recipes_has_every_key_of_labelled_texts_and_every_task() -> None:
    documented = re.findall(
        r"^\| `(\w+)` \|", section("docs/recipes.md", r"\[data\] of labelled texts"), re.M
    )
    assert sorted(documented) == sorted(LabelConfig.model_fields)
    text = (ROOT / "docs/recipes.md").read_text("utf-8")
    assert all(re.search(rf"^\| `{task}` \|", text, re.M) for task in RECIPES)


def test_every_recipe_that_comes_with_glassformer_is_described() -> None:
    from glassformer.train.recipe import recipes

    text = (ROOT / "docs/recipes.md").read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in recipes())


def test_every_exit_code_of_an_error_is_documented() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    text = (ROOT / "docs/cli.md").read_text("utf-8")
    assert all(f"| {kind.exit_code} |" in text for kind in kinds)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_inside_the_docs_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)", (ROOT / page).read_text("utf-8")):
        assert not target or ((ROOT / page).parent / target).exists(), f"{page}: {target}"
