"""Six claims: their numbers against the reference's, their verdicts as functions of the numbers."""

import pytest

from glassformer.plan.claims import Reading, _claim, claims
from glassformer.plan.growth import multipliers, size_pairs
from glassformer.plan.hardware import data_rows

CLAIMS = {one.name: one for one in claims()}


def reading(claim, *words):
    found = [one for one in CLAIMS[claim].readings if all(word in one.case for word in words)]
    assert len(found) == 1
    return found[0]


def test_the_verdicts():
    assert {name: one.verdict for name, one in CLAIMS.items()} == {
        "C1": "depends", "C2": "depends", "C3": "depends", "C4": "refuted", "C5": "supported", "C6": "depends",
    }  # fmt: skip


def test_1e24_costs_tens_of_millions_on_v100_and_less_since():
    assert reading("C1", "V100", "cloud").holds
    a100, h100 = reading("C1", "A100", "cloud"), reading("C1", "H100", "cloud")
    assert 3e6 < a100.low < a100.high < 8e6
    assert h100.high < 2.8e6


def test_1e25_is_a_hundred_million_for_a_whole_project_and_not_for_the_last_run():
    assert not reading("C2", "1e+25", "H100", "cloud").holds
    assert reading("C2", "3.8e+25", "whole project").holds


def test_1e26_depends_on_the_hardware():
    assert reading("C3", "H100", "whole project").holds
    assert not reading("C3", "GB200", "whole project").holds
    assert reading("C3", "published").low == pytest.approx(507e6, rel=0.01)  # Grok-3
    power = reading("C3", "H100", "days")
    assert power.low < 27 < power.high
    gb200 = reading("C3", "GB200", "days")
    assert gb200.low < 10 < gb200.high


def test_ten_times_the_parameters_cost_nine_times_as_much():
    numbers = CLAIMS["C4"].numbers
    assert numbers["pairs"] >= 111
    assert numbers["median"] == pytest.approx(9.2, abs=0.1)
    assert numbers["p5"] == pytest.approx(6.3, abs=0.2)
    assert numbers["p95"] == pytest.approx(11.2, abs=0.1)
    assert numbers["most"] == pytest.approx(13.7, abs=0.05)


def test_the_dearest_pair_is_mpt_70b_on_small_gpus():
    _, small, large = max(size_pairs())
    assert (small[:6], large[:7]) == ("mpt-7b", "mpt-70b")
    assert "a100_40gb" in large


def test_whole_runs_and_bad_layouts_are_as_tabled():
    hours = {one.case: one.low for one in CLAIMS["C4"].readings}
    assert hours["hours, llama2-7b to llama2-70b"] == pytest.approx(9.3, abs=0.05)
    assert hours["hours, llama1-7b to llama1-65b"] == pytest.approx(12.4, abs=0.05)
    assert hours["hours, pythia-1.4b to pythia-12b"] == pytest.approx(10.2, abs=0.1)
    numbers = CLAIMS["C4"].numbers
    assert numbers["bad layout, 530B on 2240 GPUs"] == pytest.approx(3.3, abs=0.05)
    assert numbers["bad layout, 175B on 768 GPUs"] == pytest.approx(1.7, abs=0.05)


def test_twenty_to_forty_times_is_a_scenario_with_more_tokens():
    assert [one.holds for one in CLAIMS["C4"].readings if not one.counts] == [True, True, False]
    assert multipliers(10, 3)["product"] == pytest.approx(30)
    assert multipliers(10, 1, efficiency=1 / 3.3, goodput=0.9)["product"] == pytest.approx(36.7, abs=0.1)


def test_1_3b_to_2_7b_with_twice_the_data_is_four_times_the_compute():
    assert reading("C5", "2048 to 2560").low == pytest.approx(3.9, abs=0.05)
    assert all(3.7 < one.low < 4 for one in CLAIMS["C5"].readings)
    assert CLAIMS["C5"].numbers["power of N, most"] < 1


def test_half_of_llama_3s_step_is_not_mathematics():
    share = [one.low for one in CLAIMS["C6"].readings if "split" not in one.case]
    assert share == pytest.approx([0.49, 0.48, 0.64, 0.29], abs=0.006)
    numbers = CLAIMS["C6"].numbers
    assert numbers["H200 to B200, Llama 3.1 8B"] == pytest.approx(1.84, abs=0.005)
    assert numbers["H200 to B200, bandwidth"] < 1.84 < numbers["H200 to B200, peak"]


def test_the_planners_own_split_finds_the_same_order():
    split = [one.low for one in CLAIMS["C6"].readings if "split" in one.case]
    assert split[3] < split[1] < split[0] < 0.6
    assert split[2] > split[1]


def test_a_verdict_follows_from_its_readings():
    inside, outside = Reading("a", 2, 3, 1, 5, "$"), Reading("b", 7, 9, 1, 5, "$")
    assert _claim("C", "", (inside,), {}, ()).verdict == "supported"
    assert _claim("C", "", (outside,), {}, ()).verdict == "refuted"
    both = _claim("C", "", (inside, outside), {}, ())
    assert (both.verdict, both.on) == ("depends", "holds for a")


def test_every_row_used_is_one_that_ships():
    shipped = {row["id"] for table in ("measured_steps", "training_runs") for row in data_rows(table)}
    for name in ("C1", "C2", "C3", "C4", "C6"):
        assert CLAIMS[name].used
        assert set(CLAIMS[name].used) <= shipped


def test_readings_are_a_table():
    rows = [row for one in CLAIMS.values() for row in one.rows()]
    assert all(row["claim"] in CLAIMS and row["unit"] for row in rows)
