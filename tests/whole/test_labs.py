"""What lab/ claims is measured again."""

from __future__ import annotations

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
