"""Runs played event by event, drawn at once, and in closed form: the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from glassformer.errors import UsageError
from glassformer.plan.failures import rate_known, rate_of_next
from glassformer.plan.goodput import Saving, best_interval, lost_share
from glassformer.plan.simulate import LONGEST, Course, draw, play

DAY = 86_400.0
TEN_SECONDS = Saving(10)


def course(*, days=20.0, saving=TEN_SECONDS, restart=600.0, mtbf=11_135.0, **others):
    interval = best_interval(saving, mtbf, restart)
    return Course(days * DAY, interval, saving, restart, mtbf=mtbf, **others)


@pytest.mark.parametrize(
    ("saving", "mtbf", "restart"),
    [
        (Saving(10), 11_135, 600),
        (Saving(60), 11_135, 600),
        (Saving(40), 604_800, 1200),
        (Saving(5, 120), 11_135, 600),
    ],
)
def test_first_order_exact_form_events_and_draws_agree_within_two_percent(saving, mtbf, restart):
    run = course(saving=saving, mtbf=mtbf, restart=restart)
    first = 1 - lost_share(run.interval, saving, mtbf, restart)
    assert first > 0.8  # where the first order holds
    played, drawn = play(run, runs=8).seconds.mean(), draw(run, runs=2000).seconds.mean()
    for seconds in (played, drawn, run.expected()):
        assert run.work / seconds == pytest.approx(first, rel=0.02)
    assert drawn == pytest.approx(run.expected(), rel=0.002)


def test_beyond_the_first_order_events_and_draws_still_agree():
    run = course(mtbf=1200, days=3)
    assert lost_share(run.interval, run.saving, 1200, 600) > 0.5
    played, drawn = play(run, runs=12), draw(run, runs=2000)
    assert played.seconds.mean() == pytest.approx(drawn.seconds.mean(), rel=0.02)
    assert played.interruptions.mean() == pytest.approx(drawn.interruptions.mean(), rel=0.03)


def test_everything_that_happens_to_a_run_is_in_both():
    run = course(
        evaluation=0.007,
        slow_share=0.3,
        rewinds_per_day=1.0,
        rewind=1200.0,
        planned_per_day=1.0,
        planned_stop=900.0,
    )
    plain = draw(course(), runs=2000).seconds.mean()
    played, drawn = play(run, runs=10).seconds.mean(), draw(run, runs=2000).seconds.mean()
    assert played == pytest.approx(drawn, rel=0.01)
    assert drawn > 1.04 * plain


def test_played_and_drawn_runs_are_equally_spread():
    run = course(days=2)
    played, drawn = play(run, runs=150), draw(run, runs=2000)
    assert stats.ks_2samp(played.seconds, drawn.seconds).pvalue > 0.001


def test_a_run_that_nothing_disturbs_takes_its_steps_and_its_saves():
    run = Course(work=1000, interval=100, saving=Saving(1), restart=60)
    assert play(run, runs=1).seconds[0] == pytest.approx(1010)
    assert draw(run, runs=1).seconds[0] == pytest.approx(1010)
    assert run.expected() == pytest.approx(1010)


def test_a_failure_sends_the_run_back_to_what_was_safe():
    """Mean time lost for each failure, with a write beside the steps: half an interval, the write and the restart."""
    run = Course(40 * DAY, 2000, Saving(0.0, 500), 300, mtbf=50_000)
    played = play(run, runs=40)
    each = (played.seconds - run.work).sum() / played.interruptions.sum()
    assert each == pytest.approx(2000 / 2 + 500 + 300, rel=0.1)


def test_unsure_rates_make_the_end_unsure():
    run = Course(49 * DAY, 480, Saving(10), 600)
    sure = draw(run, rate=rate_known(419, 110_592), nodes=2048).within("days")
    unsure = draw(run, rate=rate_of_next(), nodes=2048).within("days")
    assert unsure.high - unsure.low > 5 * (sure.high - sure.low)
    assert sure.value == pytest.approx(49 / 0.908, rel=0.01)


def test_unsure_restarts_make_the_end_unsure():
    run = course()
    sure, unsure = draw(run), draw(replace(run, restart_spread=0.5))
    assert unsure.seconds.std() > 2 * sure.seconds.std()
    played = play(replace(run, work=2 * DAY, restart_spread=0.5), runs=100)
    drawn = draw(replace(run, work=2 * DAY, restart_spread=0.5), runs=2000)
    assert stats.ks_2samp(played.seconds, drawn.seconds).pvalue > 0.001


def test_a_run_that_never_ends_is_given_up():
    hopeless = Course(DAY, 600, Saving(10), 600, mtbf=100)
    assert play(hopeless, runs=1).seconds[0] == LONGEST * DAY


def test_the_same_seed_draws_the_same_runs():
    run = course()
    assert np.array_equal(draw(run, seed=3).seconds, draw(run, seed=3).seconds)
    assert play(run, runs=1, seed=3).seconds[0] == play(run, runs=1, seed=3).seconds[0]


def test_runs_without_work_are_refused():
    with pytest.raises(UsageError, match="More than 0"):
        Course(0, 100, Saving(1), 60)
    with pytest.raises(UsageError, match="shares"):
        Course(10, 100, Saving(1), 60, slow_share=1.5)
