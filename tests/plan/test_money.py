"""Dollars on three bases, against published prices and costs."""

import math

import pytest

from glassformer.errors import UsageError
from glassformer.plan.failures import Between
from glassformer.plan.hardware import accelerator, accelerators
from glassformer.plan.money import DEPRECIATION, cloud_price, costs, server_price

H100 = accelerator("h100-sxm-80gb")


def test_every_accelerator_has_a_price_on_all_three_bases_with_its_date_and_source():
    for kind in accelerators().values():
        rows = costs(kind, 1000).rows()
        assert [row["basis"] for row in rows] == [
            "cloud, on demand", "cloud, 1 year", "cloud, 3 years", "owned", "whole project",
        ]  # fmt: skip
        for row in rows:
            assert 0 < row["low"] <= row["usd"] <= row["high"] < math.inf
            assert 2016 <= row["year"] <= 2026
            assert row["source"]


def test_the_price_of_an_h100_spans_its_quotes():
    price = cloud_price(H100, year=2025)
    assert (price.usd.value, price.usd.low, price.usd.high, price.year) == (2.99, 2.45, 12.29, 2025)
    assert "hyperscaler" in price.source
    assert "other cloud" in price.source


def test_a_year_is_answered_in_its_own_prices():
    assert cloud_price(accelerator("v100-sxm2-16gb"), year=2020).usd.value == 3.06
    assert cloud_price(accelerator("v100-sxm2-16gb"), "3 years", year=2020).usd.value == 1.16
    assert cloud_price(accelerator("h100-sxm-80gb"), year=2019).year == 2023  # there was none before


def test_who_commits_pays_less():
    for kind in accelerators().values():
        paid = [cloud_price(kind, term).usd.value for term in ("on demand", "1 year", "3 years")]
        assert paid == sorted(paid, reverse=True)


def test_hardware_loses_a_third_of_its_price_a_year():
    assert pytest.approx(0.322, abs=0.001) == DEPRECIATION


def test_llama_3_1_owned_costs_what_epoch_computed():
    """73.4 million dollars, with the price of servers at their release; here the median of quotes to 2025."""
    owned = costs(H100, 30.84e6).owned
    assert owned.usd.low < 73.4e6 < owned.usd.high
    assert sum(owned.parts.values()) == pytest.approx(owned.usd.value)
    assert owned.parts["network"] / (owned.parts["network"] + owned.parts["servers"]) == pytest.approx(0.19)
    assert 0.02 < owned.parts["energy"] / owned.usd.value < 0.06  # 2405.21015: 2 to 6 %


def test_a_chip_alone_is_brought_to_a_server():
    assert server_price(accelerator("v100-sxm3-32gb"), 2018).usd.value == pytest.approx(11_500 * 1.69)


def test_what_nobody_quotes_is_taken_over_by_its_peak_and_less_sure():
    price = cloud_price(accelerator("gb300"))
    assert "no quote" in price.source
    assert price.usd.high / price.usd.low == pytest.approx(4)


def test_unsure_hours_make_unsure_dollars():
    sure = costs(H100, 1000).owned.usd
    unsure = costs(H100, 1000, hours=Between(1000, 500, 2000)).owned.usd
    assert unsure.value == sure.value
    assert unsure.low < sure.low < sure.high < unsure.high


def test_people_and_experiments_are_in_the_project():
    project = costs(H100, 1e6).project
    assert project.parts["people"] / project.usd.value == pytest.approx(0.39)
    assert sum(project.parts.values()) == pytest.approx(project.usd.value)


def test_no_hours_and_unknown_terms_are_refused():
    with pytest.raises(UsageError, match="More than 0"):
        costs(H100, 0)
    with pytest.raises(UsageError, match="One of on demand"):
        cloud_price(H100, "2 years")
