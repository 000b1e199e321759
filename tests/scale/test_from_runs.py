"""Run folders become points, with what they wrote down of how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import grid, losses

from glassformer.errors import UsageError
from glassformer.run.folder import Run
from glassformer.scale.checklist import checklist
from glassformer.scale.fit import fit
from glassformer.scale.from_runs import scale_points

RECIPE = {
    "optimizer": {"kind": "muon", "learning_rate": 0.006, "weight_decay": 0.0},
    "schedule": {"kind": "linear", "warmup": 0.0, "final": 0.0}, "train": {"batch": 16, "seed": 0},
    "model": {"kind": "decoder", "context": 256, "norm": "rmsnorm"}, "tokenizer": {"kind": "bpe", "vocab": 4096},
    "data": {"paths": ["tales.txt"]},
}  # fmt: skip


def trained(folder: Path, number: int, *, tokenizer: str = "t" * 64, **changed: Any) -> Path:
    N, D = grid(3, 4)  # noqa: N806 # the field's symbols
    n, d = float(N[number]), float(D[number])
    manifest = {"tokenizer": tokenizer, "data": "d" * 64, "glassformer": "0.1.0", "commit": "c" * 40}
    run = Run.create(folder / f"run-{number}", {**RECIPE, "name": f"run-{number}", **changed}, manifest)
    with run.lock():
        run.events.append("start", loss_unit="nats per token", parameters=int(n))
        run.events.append("step", step=1, loss=3.0, tokens=int(d))
        run.events.append("validation", step=1, loss=float(losses(np.array([n]), np.array([d]))[0]))
        run.events.append("cost", flops=6 * n * d)
        run.events.append("done", steps=1)
    return run.path


def test_finished_runs_are_points_that_know_their_unit_tokenizer_and_making(tmp_path: Path) -> None:
    paths = [trained(tmp_path, k) for k in range(12)]
    unfinished = Run.create(tmp_path / "begun", {"name": "begun"}, {}).path
    points = scale_points([*paths, unfinished])
    N, D = grid(3, 4)  # noqa: N806
    assert (
        len(points) == 12
        and pytest.approx(N, rel=1e-6) == points.N
        and pytest.approx(D, rel=1e-6) == points.D
    )
    assert points.unit == "nats per token" and points.tokenizer == "t" * 12 and points.warm is None
    assert points.dropped[0]["reason"] == "the run is new" and points.lr is None
    answers = {answer.question: answer.answer for answer in checklist(fit(points, bootstrap=10))}
    assert "kind muon" in answers["Optimizer"] and "vocab 4096" in answers["Vocabulary"]
    assert answers["Data digest"] == "d" * 12 and "commit cccccccccc" in answers["Code"]
    assert answers["Machine"] == "unknown"


def test_a_rate_that_was_not_decayed_makes_a_point_undecayed_and_what_varies_is_told(tmp_path: Path) -> None:
    paths = [
        trained(tmp_path, k, schedule={"kind": "constant"} if k % 2 else RECIPE["schedule"])
        for k in range(12)
    ]
    points = scale_points(paths)
    assert points.warm is not None and points.warm.mean() == 0.5
    assert "2 values" in points.about["schedule"]
    assert "undecayed" in {doubt.name for doubt in fit(points, bootstrap=0).doubts}


def test_runs_of_two_tokenizers_are_no_one_study(tmp_path: Path) -> None:
    paths = [trained(tmp_path, k, tokenizer=("a" if k % 2 else "b") * 64) for k in range(4)]
    with pytest.raises(UsageError, match="2 tokenizers"):
        scale_points(paths)
