"""Power of nodes, against the meters."""

import numpy as np
import pytest

from glassformer.errors import UsageError
from glassformer.plan.energy import carbon_tonnes, epoch_rule, left_out, megawatt_hours, power, readings
from glassformer.plan.failures import Between
from glassformer.plan.hardware import accelerator

H100 = accelerator("h100-sxm-80gb")


def test_the_anchors_are_those_of_mlperf():
    watts = [round(one.watts) for one in readings() if one.accelerator == H100.name]
    assert sorted(watts) == [636, 855, 856, 895]


def test_metered_runs_are_predicted_within_a_tenth_from_the_others():
    held = left_out()
    error = np.median([abs(one.error) for one in held])
    assert error < 0.10
    assert error < np.median([abs(one.tdp / one.reading.watts - 1) for one in held])
    assert error < np.median([abs(one.epoch / one.reading.watts - 1) for one in held])


def test_a_node_that_waits_draws_less_than_one_that_computes():
    assert power(H100, 0.72).watts.value == pytest.approx(636, rel=0.12)
    assert power(H100, 1.0).watts.value == pytest.approx(895, rel=0.06)
    assert power(H100, 0.0).watts.value < 300


def test_tdp_alone_is_a_fifth_too_low_and_epochs_rule_an_eighth_too_high_for_gpt_3():
    assert H100.power / 856 - 1 == pytest.approx(-0.18, abs=0.005)
    assert epoch_rule(H100) / 856 - 1 == pytest.approx(0.12, abs=0.005)


def test_an_accelerator_that_nobody_metered_is_scaled_by_its_tdp_and_less_sure():
    known, taken_over = power(H100).watts, power(accelerator("b200")).watts
    assert taken_over.value / 1000 == pytest.approx(known.value / 700, rel=0.05)
    assert taken_over.high / taken_over.low > known.high / known.low


def test_energy_is_power_by_time_by_pue():
    one = megawatt_hours(H100, 1e6, pue=Between(1.2, 1.1, 1.3))
    assert one.value == pytest.approx(power(H100).watts.value * 1.2)
    assert one.low < one.value < one.high


def test_palm_drew_what_its_report_says():
    tpu = accelerator("tpu-v4")
    assert megawatt_hours(tpu, 8_404_992, pue=Between(1.08, 1.07, 1.09)).value == pytest.approx(
        3436, rel=0.12
    )


def test_carbon_is_by_the_grid_that_the_user_names():
    assert carbon_tonnes(Between(1000, 900, 1100), 0.057).value == pytest.approx(57)
    with pytest.raises(UsageError, match="grams are not meant"):
        carbon_tonnes(Between(1000, 900, 1100), 400)


def test_more_than_all_of_the_time_is_refused():
    with pytest.raises(UsageError, match="share from 0 to 1"):
        power(H100, 1.5)
