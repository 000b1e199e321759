"""The table of fault cases cannot lie: all 31 are there, every test it names exists, and what is open is known."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fault-cases.md"

OPEN = {6, 7, 19, 20, 21, 23, 26, 27, 29, 30, 31}
"""Cases of which something is not shown yet. To shrink until it is empty."""


def cases() -> dict[int, tuple[list[tuple[str, str]], str]]:
    """Number -> (file and name of each test, what is open)."""
    found = {}
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdigit():
            assert len(cells) == 5, line
            found[int(cells[0])] = (re.findall(r"`(tests/[^`:]+)::([^`]+)`", cells[3]), cells[4])
            assert cells[3] == "<br>".join(f"`{file}::{name}`" for file, name in found[int(cells[0])][0])
    return found


def test_all_cases_are_there_once_and_have_a_test_or_are_open() -> None:
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), re.M)]
    assert numbers == list(range(1, 32))
    for number, (tests, left) in cases().items():
        assert tests or left == "everything", f"case {number} has no test"
        assert len(tests) == len(set(tests)), f"case {number} names a test twice"


def test_what_is_open_is_known() -> None:
    assert {number for number, (_, left) in cases().items() if left} == OPEN


@pytest.mark.parametrize("file", sorted({file for tests, _ in cases().values() for file, _ in tests}))
def test_every_test_that_is_named_exists(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = {name for tests, _ in cases().values() for place, name in tests if place == file}
    assert named <= there, f"{file} has no {', '.join(sorted(named - there))}"
