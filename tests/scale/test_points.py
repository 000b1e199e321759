"""Tables are read as they come: by whatever names, with what cannot be used told, and doubts by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulated import grid, losses

from glassformer.errors import UsageError
from glassformer.scale.fit import fit
from glassformer.scale.from_runs import scale_points
from glassformer.scale.honesty import best_of
from glassformer.scale.isoflop import envelope, isoflop
from glassformer.scale.points import Points, read_points


def table(folder: Path, header: str, *lines: str) -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_usual_names_are_known_and_others_can_be_given(tmp_path: Path) -> None:
    lines = [f"r{i},{1e7 * 2**i},{1e9 * 3**i},{3.0 - 0.1 * i}" for i in range(5)]
    points = read_points(table(tmp_path, "run,num_parameters,tokens,val_loss", *lines))
    assert points.N[1] == 2e7 and points.C[1] == 6 * 2e7 * 3e9 and points.runs[1] == "r1"
    path = table(tmp_path, "r,width_params,seen,cross", *lines)
    with pytest.raises(UsageError, match="nothing of loss and of two of N, D, C"):
        read_points(path)
    again = scale_points(path, columns="N=width_params,D=seen,loss=cross", unit="nats per token")
    assert (again.loss == points.loss).all() and again.unit == "nats per token"
    with pytest.raises(UsageError, match=r"no column 'width_param'(.|\n)*width_params"):
        read_points(path, columns={"N": "width_param"})


def test_the_third_of_size_tokens_and_compute_follows_and_is_said_to(tmp_path: Path) -> None:
    points = read_points(table(tmp_path, "flops,tokens,bpb", "6e18,1e9,1.1", "6e19,1e10,1.0"))
    assert pytest.approx([1e9, 1e9]) == points.N and points.unit == "bits per byte"
    assert "N = C / (6 D)" in points.counting and points.source == "runs.csv"


def test_lines_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    path = table(
        tmp_path, "run,N,D,loss", "a,1e7,1e9,3", "a,1e7,1e9,3", "b,1e7,1e9,nan", "c,1e7,0,3", "d,2e7,1e9,2.9"
    )
    points = read_points(path)
    assert len(points) == 2 and [line["line"] for line in points.dropped] == [3, 4, 5]
    assert [line["reason"] for line in points.dropped] == [
        "it is there twice",
        "loss is not a number",
        "D is 0",
    ]
    with pytest.raises(UsageError, match="No line"):
        read_points(table(tmp_path, "N,D,loss", "1e7,1e9,-1"))
    with pytest.raises(UsageError, match="no table"):
        read_points(tmp_path / "none.csv")


def said(points: Points) -> set[str]:
    return {doubt.name for doubt in fit(points, bootstrap=100).doubts}


def test_a_sound_ladder_raises_no_doubt_but_each_weakness_does() -> None:
    N, D = grid()  # noqa: N806
    rng = np.random.default_rng(0)
    y = losses(N, D) * np.exp(0.002 * rng.standard_normal(len(N)))
    sound = Points.of(N, D, y, unit="nats per token")
    assert said(sound) == set()
    assert "unit" in said(Points.of(N, D, y))
    narrow = sound.where(sound.C < 5e18)
    assert "narrow" in said(narrow)
    few = Points.of(
        np.repeat([1e8, 1e9, 1e10], 5), np.tile([1e9, 4e9, 2e10, 1e11, 5e11], 3), np.ones(15), unit="nats"
    )
    few = Points.of(few.N, few.D, losses(few.N, few.D), unit="nats")
    assert "few sizes" in said(few)
    only = np.geomspace(1e7, 1e10, 12)
    assert "one ratio" in said(Points.of(only, 20 * only, losses(only, 20 * only), unit="nats"))
    mixed = Points.of(N, D, y, C=6 * N * D * np.where(np.arange(len(N)) % 2, 1 / 3, 1), unit="nats")
    assert "counting" in said(mixed) and "counting" in said(Points.of(N, D, y, C=2 * N * D, unit="nats"))
    warm = (np.arange(len(N)) % 4 == 0).astype(float)
    assert "undecayed" in said(Points.of(N, D, y * np.exp(0.03 * warm), warm=warm, unit="nats"))
    assert "rising" in said(Points.of(N, D, 5 - y, unit="nats"))
    power = Points.of(N, D, 30 * (6 * N * D) ** -0.05, unit="nats")
    assert "floor" in said(power)
    alone = {doubt.name for doubt in fit(sound, "size", bootstrap=50).doubts}  # as if tokens did not matter
    assert "trend" in alone


def test_a_sweep_whose_best_rate_is_at_its_edge_is_told_and_its_winner_taken() -> None:
    N, D = grid(5, 5)  # noqa: N806
    three = [np.repeat(column, 3) for column in (N, D, losses(N, D))]
    rates = np.tile([1e-3, 2e-3, 4e-3], len(N))
    edge = Points.of(three[0], three[1], three[2] * np.tile([1.0, 1.02, 1.05], len(N)), lr=rates, unit="nats")
    assert "learning rate" in said(edge)
    tuned = Points.of(
        three[0], three[1], three[2] * np.tile([1.02, 1.0, 1.05], len(N)), lr=rates, unit="nats"
    )
    assert "learning rate" not in said(tuned)
    winners = best_of(tuned)
    assert len(winners) == len(N) and (winners.lr == 2e-3).all()


def test_points_that_lie_off_are_named_with_the_law_without_them() -> None:
    N, D = grid()  # noqa: N806
    y = losses(N, D) * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N)))
    y[[3, 20]] *= 1.2
    law = fit(Points.of(N, D, y), bootstrap=0)
    assert [row["what"] for row in law.off] == ["with all points", "without 2", "run 3", "run 20"] or [
        row["what"] for row in law.off
    ] == ["with all points", "without 2", "run 20", "run 3"]
    assert law.off[1]["a"] == pytest.approx(0.521, abs=0.01)


def test_parabolas_and_envelopes_find_the_best_size_of_a_known_law() -> None:
    N, D = grid(6, 9)  # noqa: N806
    found = isoflop(Points.of(N, D, losses(N, D)), bootstrap=50)
    assert found.a == pytest.approx(0.37 / 0.71, abs=0.01) and len(found.profiles) == 6
    sizes = np.geomspace(3e7, 3e10, 40)
    curve_n = np.repeat(sizes, 60)
    curve_d = np.tile(np.geomspace(2e8, 2e12, 60), 40)
    curves = Points.of(curve_n, curve_d, losses(curve_n, curve_d), runs=[f"{n:.0f}" for n in curve_n])
    inner = envelope(curves.where((curves.C > 1e18) & (curves.C < 1e22)), bootstrap=20)
    assert inner.a == pytest.approx(0.37 / 0.71, abs=0.03)
    with pytest.raises(UsageError, match="lowest point"):
        isoflop(Points.of(N[:4], D[:4], losses(N[:4], D[:4])))
    with pytest.raises(UsageError, match="have a curve"):
        envelope(Points.of(N, D, losses(N, D)))
