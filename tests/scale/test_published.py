"""Published studies, recomputed from their own points: the same numbers, or better ones.

The points are those of ../shared/data/scaling (see its SOURCES.md), which does not ship; where it is absent these are
skipped by name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glassformer.scale.fit import Law, fit
from glassformer.scale.isoflop import isoflop
from glassformer.scale.points import read_points
from glassformer.scale.repeats import C4, Repeated, fit_repeats, loss_of_repeated
from glassformer.scale.solve import Huber

DATA = Path(__file__).parents[3] / "shared" / "data" / "scaling"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the published points (shared/data/scaling) are not here"
)


@pytest.fixture(scope="module")
def chinchilla() -> Law:
    points = read_points(DATA / "chinchilla_epoch_245.csv", where={"used_in_published_fit": "1"})
    return fit(points, bootstrap=2000)


def test_hoffmanns_points_give_the_best_known_fit_from_every_start(chinchilla: Law) -> None:
    assert len(chinchilla.points or ()) == 240 and chinchilla.objective <= 0.0010182741
    assert chinchilla.starts_agreed == chinchilla.starts == 12
    for name, value, off in (("E", 1.8172, 5e-4), ("A", 477.83, 1.5), ("B", 2143.4, 15), ("alpha", 0.3473, 5e-4),
                             ("beta", 0.3672, 5e-4), ("a", 0.5139, 5e-4)):  # fmt: skip
        assert chinchilla.values[name] == pytest.approx(value, abs=off)


def test_the_intervals_are_the_published_ones(chinchilla: Law) -> None:
    published = {"E": (1.770, 1.870), "A": (285.5, 726.7), "B": (1054, 5706), "alpha": (0.3167, 0.3722),
                 "beta": (0.3319, 0.4145), "a": (0.4805, 0.5571)}  # fmt: skip
    assert chinchilla.converged == 2000
    for name, (low, high) in published.items():
        mine = chinchilla.interval(name)
        assert mine[1] - mine[0] == pytest.approx(high - low, rel=0.08), (
            name
        )  # 2,000 replicates; 5 % with 4,000
        assert low - 0.06 * (high - low) <= mine[0] and mine[1] <= high + 0.1 * (high - low)


@pytest.mark.parametrize(
    ("phase", "best"), [("hot", 0.000692330), ("cool_end", 0.000204780), ("lr_half_hot", 0.000205843)]
)
def test_gemstones_fits_are_at_least_as_good_as_the_published_ones(phase: str, best: float) -> None:
    points = read_points(DATA / "gemstones_checkpoints.csv", where={"phase": phase})
    assert fit(points, noise=Huber(1e-4), bootstrap=0).objective <= best


def test_llama_3s_parabolas_give_its_own_allocation() -> None:
    found = isoflop(read_points(DATA / "llama3_isoflop_133.csv"))
    best_n, best_d = found.best(3.8e25)
    assert best_d == pytest.approx(16.55e12, rel=0.05) and best_n == pytest.approx(402e9, rel=0.05)
    low, high = found.interval()
    assert low < found.a < high and 1 - found.a == pytest.approx(0.537, abs=0.003)


def test_repeated_data_reproduce_the_published_losses_and_are_told_to_be_weakly_identified() -> None:
    published = (15.387756, 5.309743)
    assert loss_of_repeated(6.34e9, 242e9, 25e9, *published) == pytest.approx(2.2256440890, abs=1e-9)
    assert loss_of_repeated(8.67e9, 178e9, 25e9, *published) == pytest.approx(2.2269634075, abs=1e-9)
    points = read_points(DATA / "datablations_c4.csv", where={"used_in_published_fit": "1"})
    fitted, _ = Repeated(points, C4).log_loss(np.log([published]), {})
    assert Huber().rho(fitted - np.log(points.loss)).sum() == pytest.approx(0.0158259, abs=1e-7)
    found = fit_repeats(points)
    assert found.objective <= 0.0158047 and found.weakly_identified
    assert found.low <= 12 and found.high >= 200
    assert found.worth(4, 15.39) == pytest.approx(0.931, abs=1e-3)
    assert found.worth(40, 15.39) == pytest.approx(0.379, abs=1e-3)
