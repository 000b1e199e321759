"""docs/backward.md cannot lie: its examples run and print what it says, and it names every activation."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from glassformer.look.backward_layers import SLOPES
from glassformer.look.step_formulas import formula

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "backward.md").read_text(encoding="utf-8")


def test_every_example_prints_what_stands_below_it() -> None:
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == PAGE.count("```python") == 8
    names: dict[str, Any] = {}  # one after the other, as a reader would
    for code, shown in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert _plain(printed.getvalue()) == _plain(shown), code


def _plain(text: str) -> str:
    """A zero is a zero, whichever side it was rounded from."""
    return re.sub(r"-(0\.0+)\b", r" \1", text)


def test_every_activation_has_its_slope_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE.split("## A model")[0], re.M) == list(SLOPES)


def test_every_optimiser_with_a_formula_is_named_and_every_file_is_there() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.split("## One step")[1], re.M)
    weight = torch.nn.Parameter(torch.zeros(1))
    kinds = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    named = [k.__name__ for k in kinds if k is not torch.optim.Optimizer and _formula(k, weight)]
    assert sorted(rows) == sorted(named)
    files = re.findall(r"`(look/\w+\.py)`", PAGE)
    assert len(files) == 3 and all((ROOT / "src/glassformer" / file).exists() for file in files)


def _formula(kind: type, weight: torch.nn.Parameter) -> str | None:
    try:
        return formula(kind([weight]))
    except ValueError:  # Muon wants matrices
        return None
