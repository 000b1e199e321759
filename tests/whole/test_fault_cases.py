"""The table of fault cases cannot lie: all 31 are there, every test it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fault-cases.md"


def cases() -> dict[int, list[tuple[str, str]]]:
    """Number -> file and name of each test."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            assert len(cells) == 4, line
            found[int(cells[0])] = named = re.findall(r"`(tests/[^`:]+)::([^`]+)`", cells[3])
            assert cells[3] == "<br>".join(f"`{file}::{name}`" for file, name in named)
    return found


def test_all_cases_are_there_once_and_have_a_test() -> None:
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), re.M)]
    assert numbers == list(range(1, 32))
    for number, tests in cases().items():
        assert tests, f"case {number} has no test"
        assert len(tests) == len(set(tests)), f"case {number} names a test twice"


@pytest.mark.parametrize("file", sorted({file for tests in cases().values() for file, _ in tests}))
def test_every_test_that_is_named_exists(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = {name for tests in cases().values() for place, name in tests if place == file}
    assert named <= there, f"{file} has no {', '.join(sorted(named - there))}"
