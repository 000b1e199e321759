"""Each warning is raised by what it is about, says what that does to the answer, and is silent on a sound ladder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from simulated import grid, losses

from glassformer.errors import UsageError
from glassformer.scale.fit import fit
from glassformer.scale.forecast import Forecaster
from glassformer.scale.honesty import Doubt
from glassformer.scale.points import Points, read_points


def sound(**more: object) -> Points:
    N, D = grid()  # noqa: N806 # the field's symbols
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N)))
    return Points.of(N, D, losses(N, D) * noise, unit="nats per token", **more)


def doubts(points: Points, form: str = "chinchilla") -> dict[str, Doubt]:
    return {doubt.name: doubt for doubt in fit(points, form, bootstrap=60).doubts}


def one_ratio() -> Points:
    N = np.geomspace(1e7, 1e10, 14)  # noqa: N806
    return Points.of(N, 20 * N, losses(N, 20 * N), unit="nats")


def no_floor() -> Points:
    N, D = grid()  # noqa: N806
    return Points.of(N, D, 30 * (6 * N * D) ** -0.05, unit="nats")


def floor_reached() -> Points:
    N, D = grid()  # noqa: N806
    flat = 2.0 + 0.004 * (losses(N, D) - 1.7)
    return Points.of(N, D, flat, unit="nats")


def few_sizes() -> Points:
    N = np.repeat([1e8, 1e9, 1e10], 5)  # noqa: N806
    D = np.tile([1e9, 4e9, 2e10, 1e11, 5e11], 3)  # noqa: N806
    return Points.of(N, D, losses(N, D), unit="nats")


def narrow() -> Points:
    points = sound()
    return points.where(points.C < 5e18)


def forward_only() -> Points:
    points = sound()
    third = np.where(np.arange(len(points)) % 2, 1 / 3, 1)
    return Points.of(points.N, points.D, points.loss, C=6 * points.N * points.D * third, unit="nats")


def marins_names() -> Points:
    """Half of the budgets in the names count the forward pass alone."""
    points = sound()
    named = 6 * points.N * points.D * np.where(np.arange(len(points)) % 2, 1 / 3, 1)
    runs = [f"isoflop-{c:.0e}-d{512 + k}-L8-B64-nemo" for k, c in enumerate(named)]
    return Points.of(points.N, points.D, points.loss, runs=runs, unit="nats")


def undecayed() -> Points:
    points = sound()
    warm = (np.arange(len(points)) % 4 == 0).astype(float)
    return Points.of(points.N, points.D, points.loss * np.exp(0.03 * warm), warm=warm, unit="nats")


def rate_at_the_edge() -> Points:
    N, D = grid(5, 5)  # noqa: N806
    n, d, y = (np.repeat(column, 3) for column in (N, D, losses(N, D)))
    y = y * np.tile([1.0, 1.02, 1.05], len(N))
    return Points.of(n, d, y, lr=np.tile([1e-3, 2e-3, 4e-3], len(N)), unit="nats")


def no_unit() -> Points:
    points = sound()
    return Points.of(points.N, points.D, points.loss)


GOAL_TEN: list[tuple[str, Callable[[], Points], str]] = [
    ("one ratio", one_ratio, "chinchilla"),
    ("floor", no_floor, "chinchilla"),
    ("floor", floor_reached, "frontier"),
    ("few sizes", few_sizes, "chinchilla"),
    ("narrow", narrow, "chinchilla"),
    ("counting", forward_only, "chinchilla"),
    ("named budgets", marins_names, "chinchilla"),
    ("undecayed", undecayed, "chinchilla"),
    ("learning rate", rate_at_the_edge, "chinchilla"),
    ("unit", no_unit, "chinchilla"),
    ("trend", sound, "size"),  # as if tokens did not matter
]


@pytest.mark.parametrize(("name", "points", "form"), GOAL_TEN, ids=lambda x: getattr(x, "__name__", str(x)))
def test_each_weakness_raises_its_warning_with_its_effect(
    name: str, points: Callable[[], Points], form: str
) -> None:
    found = doubts(points(), form)
    assert name in found
    assert len(found[name].effect) > 20 and "Effect: " in str(found[name])


def test_a_sound_ladder_raises_none_of_them_and_neither_does_a_near_forecast() -> None:
    points = sound(warm=np.zeros(45), runs=[f"isoflop-{c:.0e}-d512-L8-B64-x" for c in sound().C])
    assert doubts(points) == {}
    N, D = grid(5, 5)  # noqa: N806
    n, d, y = (np.repeat(column, 3) for column in (N, D, losses(N, D)))
    tuned = Points.of(
        n, d, y * np.tile([1.02, 1.0, 1.05], 25), lr=np.tile([1e-3, 2e-3, 4e-3], 25), unit="nats"
    )
    assert "learning rate" not in doubts(tuned)
    assert not Forecaster.of(points, bootstrap=30).forecast(flops=50 * float(points.C.max())).warnings


def test_a_forecast_more_than_a_hundred_times_beyond_warns() -> None:
    points = sound()
    made = Forecaster.of(points, bootstrap=30)
    assert "times the compute" in " ".join(made.forecast(flops=300 * float(points.C.max())).warnings)


def test_the_effect_of_points_that_can_be_left_out_is_what_changes_without_them() -> None:
    points = undecayed()
    effect = doubts(points)["undecayed"].effect
    whole, rest = fit(points, bootstrap=0), fit(points.where(np.asarray(points.warm) == 0), bootstrap=0)
    assert (
        f"a is {rest.values['a']:.3g} instead of {whole.values['a']:.3g}" in effect and "annealed" in effect
    )


def test_diverged_runs_are_told_with_the_law_without_them() -> None:
    points = sound()
    loss = points.loss.copy()
    loss[[3, 20]] *= 1.5
    found = doubts(Points.of(points.N, points.D, loss, unit="nats"))
    assert "2 runs" in found["diverged"].message and "instead of" in found["diverged"].effect
    loss[[3, 20]] = points.loss[[3, 20]] * 0.93
    assert "instead of" in doubts(Points.of(points.N, points.D, loss, unit="nats"))["outliers"].effect


def test_losses_that_rise_with_compute_make_every_forecast_void() -> None:
    points = sound()
    found = doubts(Points.of(points.N, points.D, 5 - points.loss, unit="nats"))
    assert "void" in found["rising"].effect


def test_runs_that_stand_twice_are_left_out_where_that_is_sure_and_else_told(tmp_path: Path) -> None:
    points = sound()
    lines = [f"{n},{d},{y}" for n, d, y in zip(points.N, points.D, points.loss, strict=True)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,loss", *lines, lines[0], lines[5]]), "utf-8")
    read = read_points(path)
    assert len(read) == 45 and "2 because it is there twice" in doubts(read)["dropped"].message
    path.write_text(
        "\n".join(["run,N,D,loss", *(f"r{k},{line}" for k, line in enumerate([*lines, lines[0]]))]), "utf-8"
    )
    found = doubts(read_points(path))["duplicates"]
    assert "1 points repeat" in found.message and "too narrow" in found.effect


def test_points_of_few_runs_are_no_more_than_those_runs() -> None:
    points = sound()
    few = Points.of(points.N, points.D, points.loss, runs=[f"r{k % 3}" for k in range(45)], unit="nats")
    assert "too narrow" in doubts(few)["few runs"].effect
    with pytest.raises(UsageError, match="3 points cannot hold"):
        fit(points.where(np.arange(45) < 3))


def test_tables_that_mix_units_or_tokenizers_are_refused_and_one_unit_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    lines = [f"{10**k},{10 ** (k + 2)},{3 - k / 10}" for k in range(6, 11)]
    for column, values in (("unit", ("nats per token", "bits per byte")), ("tokenizer", ("gpt2", "llama"))):
        body = [f"{line},{values[k % 2]}" for k, line in enumerate(lines)]
        path.write_text("\n".join([f"N,D,loss,{column}", *body]), "utf-8")
        with pytest.raises(UsageError, match=rf"mixes losses: {column}(.|\n)*--where {column}="):
            read_points(path)
        kept = read_points(path, where={column: values[0]})
        assert len(kept) == 3 and getattr(kept, column) == values[0]


def test_a_table_with_other_column_names_gets_a_proposal_that_works(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for header, row in (
        ("id,width_params,seen,cross_entropy", "r{k},{n},{d},{y}"),
        ("id,weights_m,budget_used,score", "r{k},{n},{d},{y}"),
    ):
        rows = [row.format(k=k, n=10.0**k, d=10.0 ** (k + 2), y=3.1 - k / 10) for k in range(6, 11)]
        path.write_text("\n".join([header, *rows]), "utf-8")
        with pytest.raises(UsageError) as refused:
            read_points(path)
        said = str(refused.value)
        assert "Is it this? --columns" in said
        proposal = said.rpartition("--columns ")[2].strip()
        columns = dict(pair.split("=") for pair in proposal.split(","))
        read = read_points(path, columns=columns)
        assert len(read) == 5 and read.loss[0] == pytest.approx(2.5) and read.N[0] in (1e6, 1e8 / 6e6)
    path.write_text("a,b\nx,y\n", "utf-8")
    with pytest.raises(UsageError, match="Say which is which"):
        read_points(path)
