"""What lab/ claims is measured again."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest

LAB = Path(__file__).parents[2] / "lab"


@pytest.mark.slow
def test_a_dense_model_keeps_two_features_and_a_sparse_one_five_as_a_pentagon() -> None:
    lab = runpy.run_path(str(LAB / "superposition" / "run.py"))
    found: dict[str, dict[str, Any]] = {
        name: lab["measured"](lab["train"](sparsity)[0])
        for name, sparsity in (("dense", 0.0), ("sparse", 0.95))
    }
    norms = sorted(found["dense"]["squared_norms"])
    assert all(norm > 0.8 for norm in norms[3:]) and all(norm < 0.1 for norm in norms[:3])
    assert found["sparse"]["kept"] == 5
    assert all(64 <= angle <= 80 for angle in found["sparse"]["angles_between_neighbours"])


def test_what_repetitions_are_worth_is_found_where_it_is_known() -> None:
    """Losses of a law D^-0.3 whose repetitions count as U R (1 - exp(-(e - 1) / R)) more, R = 6."""
    concluded = runpy.run_path(str(LAB / "epochs" / "run.py"))["concluded"]
    passes = (1, 2, 4, 8, 16, 32)
    worth = {e: 1 + 6 * (1 - math.exp(-(e - 1) / 6)) for e in passes}
    rows = [{"kind": "fresh", "epochs": e, "loss": 1 + e**-0.3} for e in passes]
    rows += [{"kind": "repeated", "epochs": e, "loss": 1 + worth[e] ** -0.3} for e in passes]
    found = concluded(rows, 125_000)
    assert abs(found["R_D"] / 6 - 1) < 0.05  # what interpolation leaves
    assert all(abs(row["worth_in_passes"] / worth[row["epochs"]] - 1) < 0.02 for row in found["worth"])


def test_repeated_text_pays_for_four_passes_and_does_harm_after_sixteen_in_the_result_that_is_kept() -> None:
    lab = runpy.run_path(str(LAB / "epochs" / "run.py"))
    kept = json.loads((LAB / "epochs" / "result.json").read_text(encoding="utf-8"))
    assert lab["concluded"](kept["runs"], kept["unique_bytes"])["worth"] == kept["worth"]
    share = {row["epochs"]: row["share"] for row in kept["worth"]}
    assert share[4] >= 0.85 and share[16] <= 0.5
    loss = {row["epochs"]: row["loss"] for row in kept["runs"] if row["kind"] == "repeated"}
    own = {row["epochs"]: row["train_loss"] for row in kept["runs"] if row["kind"] == "repeated"}
    assert loss[32] > loss[16] and own[32] < own[16]


def test_the_ladder_that_is_kept_shows_a_power_each_tenfold_less_and_a_skill_that_follows_loss() -> None:
    lab = runpy.run_path(str(LAB / "ladder" / "run.py"))
    kept = json.loads((LAB / "ladder" / "result.json").read_text(encoding="utf-8"))
    assert kept["power"]["low"] > 0
    gains = [row["takes_off"] for row in kept["tenfolds"]]
    assert gains == sorted(gains, reverse=True) and kept["tenfolds"][1]["measured"]
    assert lab["skill"](kept["rungs"]) == kept["skill"] and kept["skill"]["rank_correlation"] < -0.9
    assert lab["parses"]("x = [1, 2]") and not lab["parses"]("x = [1, 2")
    assert not lab["parses"]("if x:") and lab["parses"]("if x: pass")
