"""Other people's laws: every digit, what may be asked of them, and what not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from simulated import grid, losses

from glassformer.errors import UsageError
from glassformer.scale.optimum import optimum
from glassformer.scale.points import Points
from glassformer.scale.published import FILE, names, published_law


def test_chinchillas_tables_follow_from_the_laws_that_are_stored() -> None:
    rows = {  # Hoffmann et al. 2022, tables 3 and A3: N -> (C by approach 1, 2)
        4e8: (1.92e19, 1.84e19), 1e9: (1.21e20, 1.20e20), 1e10: (1.23e22, 1.32e22), 2.8e11: (9.90e24, 1.18e25),
        1e12: (1.27e26, 1.59e26), 1e13: (1.30e28, 1.75e28),
    }  # fmt: skip
    for size, costs in rows.items():
        for name, cost in zip(("hoffmann-2022-envelope", "hoffmann-2022-isoflop"), costs, strict=True):
            assert published_law(name).best(cost)[0] == pytest.approx(size, rel=0.01), (name, size)
    n, d = published_law("hoffmann-2022").best(5.76e23)
    assert n == pytest.approx(40.4e9, rel=5e-3) and d / n == pytest.approx(
        59, rel=5e-3
    )  # implied by their TeX
    n, d = published_law("besiroglu-2024").best(5.76e23)
    assert n == pytest.approx(72.4e9, rel=5e-3) and d / n == pytest.approx(18.3, rel=5e-3)


def test_each_published_rule_gives_its_papers_own_run() -> None:
    n, d = published_law("llama3-2024").best(3.8e25)
    assert d == pytest.approx(16.55e12, rel=0.02) and n == pytest.approx(402e9, rel=0.05)
    for flops in (1e18, 1e24):
        n, d = published_law("deepseek-2024").best(flops)
        assert 6 * n == pytest.approx(0.1715 * flops**0.5243, rel=1e-3)  # M_opt
    assert published_law("kaplan-2020").best(8.64e19)[0] == pytest.approx(1.3e9)  # a PF-day


def test_the_constrained_example_of_the_authors_comes_out() -> None:
    found = optimum(published_law("muennighoff-2023"), flops=1e22, unique=25e9)
    assert pytest.approx(237.3e9, rel=2e-3) == found.D and found.epochs == pytest.approx(9.49, rel=2e-3)
    assert pytest.approx(7.02e9, rel=2e-3) == found.N


def test_kaplans_joint_law_is_his_law_of_size_where_text_has_no_end() -> None:
    sizes = np.array([1e8, 1e9, 1e10])
    told = np.exp(published_law("kaplan-2020").log_loss(sizes, np.full(3, 1e40))[0])
    assert told == pytest.approx((6.4e13 / sizes) ** 0.076, rel=1e-6)


def test_a_foreign_loss_is_refused_with_what_to_do_and_allocation_is_not() -> None:
    for name in names():
        law = published_law(name)
        with pytest.raises(UsageError, match="on another text it means nothing"):
            law.loss(7e9, 2e12)
        n, d = law.best(1e22)
        assert 6 * n * d == pytest.approx(1e22, rel=1e-6) and 1e8 < n < 1e11
        assert law.facts()["source"] and law.facts()["counting"] and law.rows()
        found = optimum(law, flops=1e22)
        assert found.loss is None and pytest.approx(n, rel=1e-4) == found.N
        assert any("need not be yours" in warning for warning in found.warnings) or not law.form or law.size
    with pytest.raises(UsageError, match="on another text"):
        optimum(published_law("besiroglu-2024"), loss=2.0)
    with pytest.raises(UsageError, match="did you mean 'besiroglu-2024'"):
        published_law("besiroglu")
    with pytest.raises(UsageError, match="nothing of loss"):
        published_law("llama3-2024").log_loss(np.array([1e9]), np.array([1e10]))


def test_recalibrated_a_foreign_law_keeps_its_exponents_and_gets_ones_own_losses() -> None:
    N, D = grid(4, 6)  # noqa: N806 # the field's symbols
    foreign = published_law("besiroglu-2024")
    mine = {
        "E": 0.9,
        "A": 200.0,
        "B": 900.0,
        "alpha": foreign.values["alpha"],
        "beta": foreign.values["beta"],
    }
    law = foreign.recalibrated(Points.of(N, D, losses(N, D, mine)), bootstrap=20)
    for name, value in mine.items():
        assert law.values[name] == pytest.approx(value, rel=1e-5)
    assert (
        law.held == {"alpha": mine["alpha"], "beta": mine["beta"]}
        and law.interval("alpha")[0] == mine["alpha"]
    )
    with pytest.raises(UsageError, match="no alpha and beta"):
        published_law("llama3-2024").recalibrated(Points.of(N, D, losses(N, D, mine)))


def test_numbers_are_stored_with_all_the_digits_that_were_published() -> None:
    text = FILE.read_text("utf-8")
    assert "intervals" in text and not re.search(r"alpha = 0\.34[, ]", text)
    law = published_law("hoffmann-2022")  # of the TeX: a 6.0073404, b 6.0179186, e 0.5267228
    assert np.log([law.values["A"], law.values["B"], law.values["E"]]) == pytest.approx(
        [6.0073404, 6.0179186, 0.5267228], abs=5e-8
    )
    base = published_law("muennighoff-2023").values
    assert np.log([base["A"], base["B"], base["E"]]) == pytest.approx(
        [6.255414, 7.3049974, 0.6254804], abs=5e-8
    )
