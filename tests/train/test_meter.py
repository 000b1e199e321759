"""Speed and utilisation are arithmetic; the ceiling is a measurement."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.shapes import matrices
from glassformer.train import meter
from glassformer.train.meter import Meter, joules, matmul_ceiling

MODEL = ModelConfig(vocab=64, width=16, layers=1, heads=2, context=16)


def test_utilisation_is_flops_a_second_over_the_ceiling() -> None:
    measured = Meter(flops_per_token=1000, ceiling=1e6)
    measured.add(500, 2.0)
    measured.add(500, 2.0)
    assert measured.overall() == {"tokens_per_second": 250.0, "utilisation": 0.25}


def test_recent_speed_is_that_since_it_was_last_asked() -> None:
    measured = Meter(1000, 1e6, tokens=10_000, seconds=1.0)
    measured.add(100, 1.0)
    assert measured.recent()["tokens_per_second"] == 100
    measured.add(300, 1.0)
    assert measured.recent()["tokens_per_second"] == 300
    assert measured.overall()["tokens_per_second"] == 10_400 / 3


def test_before_anything_was_measured_speed_is_nought() -> None:
    assert Meter(1000, 1e6).overall() == {"tokens_per_second": 0.0, "utilisation": 0.0}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
def test_the_ceiling_is_a_rate_that_this_machine_can_have(precision: Precision) -> None:
    found = matmul_ceiling(matrices(MODEL).values(), 64, precision, "cpu")
    assert math.isfinite(found) and 1e6 < found < 1e15


def test_a_model_without_blocks_has_a_ceiling_too() -> None:
    assert matmul_ceiling(matrices(MODEL.model_copy(update={"layers": 0})).values(), 64, "fp32", "cpu") > 0


def test_joules_are_the_sum_over_processors_and_none_where_the_machine_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "_POWERCAP", tmp_path)
    assert joules() is None
    for zone, microjoules in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:1", 9)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
    assert joules() == 3.5
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert joules() is None
