"""How good the time model is on groups of rows that its fit has not seen, and what a few rows of one's own do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from glassformer.errors import UsageError
from glassformer.plan.calibration import calibrate, calibrated_misses, fit, misses, timed
from glassformer.plan.flops import training
from glassformer.plan.known import NOTHING, learn
from glassformer.plan.own import Own, carried, features
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.rows import Row, measured_rows
from glassformer.plan.spread import half_width
from glassformer.plan.steptime import step_time


@cache
def rows() -> tuple[Row, ...]:
    return tuple(timed(measured_rows()))


@cache
def folds(many: int = 5) -> tuple[tuple[Rates, tuple[str, ...]], ...]:
    """Rates fitted without some groups, and those groups."""
    groups = tuple(dict.fromkeys(row.group for row in rows()))
    parts = [groups[place::many] for place in range(many)]
    return tuple((fit([row for row in rows() if row.group not in part], RATES), part) for part in parts)


def unseen() -> dict[str, np.ndarray]:
    return {
        group: misses([row for row in rows() if row.group == group], rates)
        for rates, part in folds()
        for group in part
    }


def errors(missed: np.ndarray) -> np.ndarray:
    return np.abs(np.exp(missed) - 1)


def test_unseen_groups_are_forecast_within_a_tenth_at_the_median() -> None:
    found = unseen()
    assert len(found) >= 58
    assert np.median([np.median(errors(missed)) for missed in found.values()]) < 0.10
    assert np.quantile(errors(np.concatenate(list(found.values()))), 0.9) < 0.23


def test_unseen_groups_are_forecast_better_than_by_two_fifths_of_the_peak() -> None:
    def rule(row: Row) -> float:
        assert row.job is not None and row.seconds
        job = row.job
        flops = (
            training(job.architecture, job.length, read_length=job.read_length, trained=job.trained)
            * job.tokens
        )
        return abs(
            flops
            / (0.4 * job.accelerator.peak(job.precision.peak))
            / float(row.fields["n_accel"])
            / row.seconds
            - 1
        )

    groups = dict.fromkeys(row.group for row in rows())
    ruled = np.median([np.median([rule(row) for row in rows() if row.group == group]) for group in groups])
    ours = np.median([np.median(errors(missed)) for missed in unseen().values()])
    assert ours < ruled / 2


def test_three_rows_of_its_own_bring_a_group_nearer() -> None:
    before, after = [], []
    for rates, part in folds():
        for group in part:
            own = [row for row in rows() if row.group == group]
            if len(own) > 3:
                before.append(np.median(errors(misses(own, rates))))
                after.append(np.median(errors(calibrated_misses(own, rates))))
    assert np.median(after) < 0.06
    assert np.median(after) < np.median(before)


def test_intervals_of_80_percent_hold_70_to_90_percent_of_unseen_rows() -> None:
    held = []
    for rates, part in folds():
        own = [row for row in rows() if row.group in part]
        held += [
            abs(miss) <= half_width(row.job, RATES)
            for miss, row in zip(misses(own, rates), own, strict=True)
            if row.job
        ]
    assert 0.7 <= np.mean(held) <= 0.9


def test_a_row_that_was_measured_is_forecast_as_measured() -> None:
    own = [row for row in rows() if row.source == "bloom_prequel"][:3]
    found = calibrate(own)
    assert np.all(np.abs(misses(own, found)) < np.abs(misses(own, RATES)) + 1e-9)
    assert np.max(errors(misses(own, found))) < 0.03
    job = own[0].job
    assert job is not None
    assert half_width(job, found) < half_width(job, RATES)


def test_a_jobs_miss_is_the_conditional_mean_of_two_normal_numbers() -> None:
    row = rows()[0]
    assert row.job is not None
    place = tuple(float(one) for one in features(row.job))
    missed, left = carried(row.job, [Own(place, row.job.accelerator.name, 0.1)])
    known = 0.08**2 + 0.3**2
    assert float(missed) == pytest.approx(0.1 * known / (known + 0.04**2))
    assert float(left) < 0.3
    assert carried(row.job, ()) == (0.0, 1.0)


def test_a_whole_step_scales_with_what_own_rows_say() -> None:
    row = rows()[0]
    assert row.job is not None
    place = tuple(float(one) for one in features(row.job))
    slower = Rates(own=(Own(place, row.job.accelerator.name, 0.2),))
    ratio = float(step_time(row.job, slower).total) / float(step_time(row.job, Rates()).total)
    assert np.log(ratio) == pytest.approx(float(carried(row.job, slower.own)[0]))


def test_what_is_missed_on_a_kind_of_job_carries_over_to_jobs_like_it_and_to_no_others() -> None:
    job = rows()[0].job
    assert job is not None
    missed = [0.2, 0.2, 0.2]
    one = learn([job] * 3, ["a"] * 3, missed)
    several = learn([job] * 3, ["a", "b", "c"], missed)
    assert (
        0.05 < float(one.miss(job)) < float(several.miss(job)) < 0.2
    )  # one group may share a reason of its own
    other_layout = replace(job, layout=replace(job.layout, data=1, tensor=job.layout.accelerators))
    assert float(several.miss(other_layout)) == pytest.approx(float(several.miss(job)))
    assert abs(float(several.miss(replace(job, length=64 * job.length)))) < 0.1 * float(several.miss(job))
    assert NOTHING.miss(job) == 0


def test_a_miss_is_that_of_each_layouts_number_of_accelerators() -> None:
    job = rows()[0].job
    assert job is not None
    counts = np.array([8, 64, 8])
    many = replace(job, layout=replace(job.layout, data=counts, tensor=1, pipeline=1, context=1))
    alone = [float(RATES.known.miss(replace(many, layout=replace(many.layout, data=int(n))))) for n in counts]
    assert np.asarray(RATES.known.miss(many)) == pytest.approx(alone) and alone[0] != alone[1]


def test_what_ships_of_the_measured_rows_brings_unseen_groups_nearer() -> None:
    without = {
        group: misses([row for row in rows() if row.group == group], replace(rates, known=NOTHING))
        for rates, part in folds()
        for group in part
    }
    before, after = (
        np.concatenate([errors(missed) for missed in found.values()]) for found in (without, unseen())
    )
    assert np.mean(after) < 0.95 * np.mean(before)


def test_no_rows_calibrate_nothing() -> None:
    with pytest.raises(UsageError, match="no row to calibrate"):
        calibrate([])


def test_the_shipped_rates_are_those_of_the_shipped_rows() -> None:
    found = fit(rows(), RATES)
    ratios = [getattr(found, name) / getattr(RATES, name) for name in ("products", "pattern", "scale_up")]
    assert np.max(np.abs(np.log(ratios))) < 0.05
    jobs = [row.job for row in rows() if row.job]
    apart = [float(found.known.miss(job)) - float(RATES.known.miss(job)) for job in jobs]
    assert np.max(np.abs(apart)) < 0.02
    assert np.max(np.abs([float(RATES.known.miss(job)) for job in jobs])) > 0.05
