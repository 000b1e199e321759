"""docs/faults.md cannot lie: kinds, policies, decisions and fields are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from glassformer.run.events import MEANING
from glassformer.train.config import FaultsConfig
from glassformer.train.faults import Deed
from glassformer.train.spikes import Kind

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
KEYS = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## [faults]")[2]


def rows(section: str) -> list[str]:
    return re.findall(r"^\| `(\w+)`", PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0], re.M)


def test_every_kind_of_fault_and_every_decision_has_its_row_and_there_is_no_other() -> None:
    assert rows("What is watched") == list(get_args(Kind))
    assert rows("What happens") == list(get_args(Deed))


def test_every_policy_is_named_at_its_key() -> None:
    for key in ("not_finite", "spike", "divergence"):
        (row,) = re.findall(rf"^\| `{key}` \|.*", KEYS, re.M)
        field = FaultsConfig.model_fields[key]
        assert all(f"`{policy}`" in row or f'`"{policy}"`' in row for policy in get_args(field.annotation))
        assert f'`"{field.default}"`' in row


def test_every_number_that_the_page_gives_for_a_key_is_its_default() -> None:
    found = re.findall(r"`(\w+)` \((\d+)\)", PAGE)
    assert len(found) >= 4
    for key, number in found:
        assert FaultsConfig.model_fields[key].default == int(number), key


def test_the_event_shown_has_no_field_that_an_event_has_not() -> None:
    told = set(re.findall(r"\w+", MEANING["fault"])) | {"event"}
    for shown in re.findall(r"```json\n(.*?)```", PAGE, re.S):
        assert set(json.loads(shown)) <= told
    fields = PAGE.partition("| field |")[2].partition("```")[0]
    named = {
        word for row in re.findall(r"^\| (`.*?) \|", fields, re.M) for word in re.findall(r"`(\w+)`", row)
    }
    assert named <= told and {"place", "tensors", "samples", "ranks", "bundle", "step_back"} <= named
