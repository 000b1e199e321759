"""A law that was kept comes back to the bit, and whoever changed it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import grid, losses

from glassformer.errors import GlassformerError, UsageError
from glassformer.scale.fit import Law, fit
from glassformer.scale.forecast import Forecaster
from glassformer.scale.law_file import save_law
from glassformer.scale.points import Points


@pytest.fixture(scope="module")
def points() -> Points:
    N, D = grid(4, 6)  # noqa: N806 # the field's symbols
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))
    return Points.of(
        N, D, losses(N, D) * noise, unit="nats per token", tokenizer="bpe", about={"data": "tales"}
    )


def same(one: Any, other: Any) -> bool:
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=True))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_every_field_of_a_law_and_of_a_forecaster_comes_back_to_the_bit(
    tmp_path: Path, points: Points
) -> None:
    law = fit(points, bootstrap=30)
    assert same(law, Law.load(law.save(tmp_path / "law.json")))
    forecaster = Forecaster.of(points, bootstrap=30)
    kept = Forecaster.load(forecaster.save(tmp_path / "forecaster.json"))
    assert same(forecaster, kept) and forecaster.forecast(flops=1e22) == kept.forecast(flops=1e22)
    assert same(Law.load(tmp_path / "forecaster.json"), forecaster.law)
    bare = fit(points, "tied", bootstrap=0)
    assert same(bare, Law.load(bare.save(tmp_path / "bare.json")))


def test_the_file_says_for_people_what_it_is_with_unit_counting_ranges_and_digest(
    tmp_path: Path, points: Points
) -> None:
    fit(points, bootstrap=30).save(tmp_path / "law.json")
    about = json.loads((tmp_path / "law.json").read_text("utf-8"))["about"]
    assert about["unit"] == "nats per token" and about["tokenizer"] == "bpe" and "6 N D" in about["counting"]
    assert about["digest"] == points.digest and about["ranges"]["C"] == [points.C.min(), points.C.max()]
    assert {row["number"] for row in about["values"]} == {"E", "A", "B", "alpha", "beta", "a"}


def test_a_law_alone_forecasts_by_its_points_and_one_kept_by_the_program_has_its_forecaster(
    tmp_path: Path, points: Points
) -> None:
    fit(points, bootstrap=30).save(tmp_path / "law.json")
    told = Forecaster.load(tmp_path / "law.json").forecast(flops=1e22)
    save_law(fit(points, "tied", bootstrap=0), tmp_path / "both.json")
    assert Forecaster.load(tmp_path / "both.json").forecast(flops=1e22) == told
    assert Law.load(tmp_path / "both.json").form == "tied"
    few = points.where(np.arange(len(points)) < 4)
    save_law(fit(few, "data", bootstrap=0), tmp_path / "few.json")


def test_points_that_were_changed_and_files_of_another_kind_are_refused(
    tmp_path: Path, points: Points
) -> None:
    path = fit(points, bootstrap=0).save(tmp_path / "law.json")
    content = json.loads(path.read_text("utf-8"))
    content["law"]["points"]["loss"]["float64"] = content["law"]["points"]["loss"]["float64"].replace(
        "2.", "3.", 1
    )
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(GlassformerError, match="digest differs"):
        Law.load(path)
    content["law"]["is"] = "Popen"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(GlassformerError, match="'Popen'"):
        Law.load(path)
    content["version"] = 2
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(GlassformerError, match="version 2"):
        Law.load(path)
    path.write_text('{"schema": "glassformer.law", "version": 1}', "utf-8")
    with pytest.raises(UsageError, match="--json prints"):
        Law.load(path)
    path.write_text("E = 1.7", "utf-8")
    with pytest.raises(GlassformerError, match="no JSON"):
        Law.load(path)
    with pytest.raises(UsageError, match="no law"):
        Law.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"ends in \.json"):
        fit(points, bootstrap=0).save(tmp_path / "law.pkl")


def test_forecasting_from_a_file_needs_no_torch(tmp_path: Path, points: Points) -> None:
    path = Forecaster.of(points, bootstrap=30).save(tmp_path / "law.json")
    code = (
        "import sys, glassformer as gf\n"
        f"f = gf.open_forecaster({str(path)!r}); f.forecast(flops=1e22)\n"
        f"gf.optimum(gf.open_law({str(path)!r}), flops=1e22); gf.published_law('kaplan-2020').best(1e22)\n"
        f"gf.forecast_report(f, f.forecast(flops=1e22), {str(tmp_path / 'page.html')!r})\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
