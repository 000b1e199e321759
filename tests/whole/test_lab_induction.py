"""The claim of lab/induction, run as its page says: two layers of attention form induction heads, one does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "lab" / "induction"


@pytest.mark.sampled
@pytest.mark.timeout(600)
def test_two_layers_of_attention_learn_to_copy_and_one_does_not(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, LAB / "run.py", "--seeds", "0", "--out", tmp_path / "out"],
        env={**os.environ, "GLASSFORMER_HOME": str(tmp_path / "home")},
        cwd=tmp_path, check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    one, two = json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))["runs"]
    assert (one["layers"], two["layers"]) == (1, 2)
    assert two["second_half"] <= 0.25 * two["first_half"] and two["induction"] >= 0.6
    assert two["induction_head"].startswith("L1") and two["previous_token_head"].startswith("L0")
    assert (
        max(one["induction"], one["previous_token"], one["duplicate_token"], one["highest_induction"]) <= 0.3
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "loss.svg", "heads.svg"}


def test_the_recorded_result_is_that_of_this_lab_and_holds_the_claim() -> None:
    result = json.loads((LAB / "result.json").read_text(encoding="utf-8"))
    source: dict[str, object] = {}
    exec(compile((LAB / "run.py").read_text(encoding="utf-8"), "run.py", "exec"), {"__name__": "lab"}, source)
    assert result["recipe"] == json.loads(json.dumps(source["RECIPE"])) and result["rows"] == source["ROWS"]
    assert len(result["runs"]) == 6
    for run in result["runs"]:
        assert run["seconds"] <= 300
        scores = [run["induction"], run["previous_token"], run["duplicate_token"]]
        if run["layers"] == 2:
            assert run["share"] <= 0.25 and run["induction"] >= 0.6 and run["step_of_induction_head"] <= 600
        else:
            assert max([*scores, run["highest_induction"]]) <= 0.3
