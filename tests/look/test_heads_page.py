"""docs/heads.md cannot lie: its example runs, and it has every score of each kind of attention and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glassformer.look.head_scores import KINDS, READ, REPEATED

PAGE = (Path(__file__).parents[2] / "docs" / "heads.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.M)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})


def test_every_score_has_its_row_with_what_it_is_measured_on_and_of_which_attention() -> None:
    scores = {score for kind in KINDS.values() for score in kind}
    assert sorted(name for name, *_ in ROWS) == sorted(scores)
    for name, _, measured, attention in ROWS:
        expected = "repeated" if name in REPEATED else "text" if name in READ else "random"
        assert measured == expected, name
        assert attention.split(", ") == [kind for kind, found in KINDS.items() if name in found], name
