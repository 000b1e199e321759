"""A run with all that happens to it, played many times: when does it end?

Two ways that must agree (tests hold them together): `play`, event by event with simpy, which reads like what happens on
a cluster; and `draw`, which draws the same sums for hundreds of runs at once with numpy, quick enough for every plan.

    a segment      tau of steps, then a stall; a failure before its end sends the run back to the last save
    tries of one   geometric, each fails with 1 - e^(-(tau + delta)/M), after a time that is exponential, cut at its end
    after each     R (and the write W that was not yet safe); a failure within starts it again

Besides: evaluations, slow accelerators that nobody has found yet, rewinds after a spike of the loss, planned stops. The
rate of failures of a run is itself drawn from what published systems show (`failures.Rate`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError
from glassformer.plan.failures import Between, Rate, middle
from glassformer.plan.goodput import Saving, goodput

if TYPE_CHECKING:
    import simpy  # loaded where runs are played: a plan draws them

Array = NDArray[np.float64]

DRAWS = 400
MOST_FAILURES = 1e15
"""More are not drawn: such a run never ends."""
LONGEST = 20.0
"""Times its work that a run is played for at most."""


@dataclass(frozen=True, slots=True)
class Course:
    """A run to be played; times in seconds."""

    work: float
    """Steps, undisturbed."""
    interval: float
    """tau: work between two saves."""
    saving: Saving
    restart: float
    """R."""
    restart_spread: float = 0.0
    """Of the logarithm of R, from run to run: how sure it is."""
    mtbf: float = np.inf
    """M, where no rate is drawn."""
    evaluation: float = 0.0
    """Of each segment, as a share of its steps; the steps wait. BLOOM: 12 min every 1000 steps, 0.7 %."""
    slow_share: float = 0.0
    """Of the time, an accelerator is slow that nobody has found."""
    slow_loss: float = 0.05
    """What it costs the whole run (BLOOM: 5 %)."""
    slow_lasts: float = 86_400.0
    """Until it is found."""
    rewinds_per_day: float = 0.0
    """Spikes of the loss, and NaN, that are answered by going back (PaLM: about 20 in 64 days)."""
    rewind: float = 0.0
    """Work done again after each, besides a restart."""
    planned_per_day: float = 0.0
    """Stops that somebody planned, after a save (Llama 3: 47 in 54 days)."""
    planned_stop: float = 0.0

    def __post_init__(self) -> None:
        if not (self.work > 0 and self.interval > 0):
            raise UsageError(
                f"A run of {self.work:g} s of steps, saved every {self.interval:g} s.",
                expected="More than 0.",
            )
        if not 0 <= self.slow_share < 1 or not 0 <= self.slow_loss < 1:
            raise UsageError("slow_share and slow_loss are shares.", expected="0 up to less than 1.")

    @property
    def segments(self) -> float:
        return self.work / self.interval

    @property
    def segment(self) -> float:
        """Wall time of one that nothing disturbs: its steps (slower where an accelerator is), evaluation, the stall."""
        return self.interval * (self.slowdown + self.evaluation) + self.saving.stall

    @property
    def slowdown(self) -> float:
        return 1 + self.slow_share * self.slow_loss / (1 - self.slow_loss)

    @property
    def stretch(self) -> float:
        """Share of the time that rewinds and planned stops take."""
        day = 86_400.0
        return (
            self.rewinds_per_day * (self.rewind + self.restart) / day
            + self.planned_per_day * self.planned_stop / day
        )

    def expected(self) -> float:
        """Mean wall time in closed form: Daly's exact one for the segments, the rest in proportion."""
        longer = self.segment - self.saving.stall
        share = (
            float(goodput(longer, self.saving, self.mtbf, self.restart))
            if np.isfinite(self.mtbf)
            else longer / self.segment
        )
        return self.segments * longer / share / (1 - min(self.stretch, 0.99))


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """What many runs came to: one number of each."""

    seconds: Array
    interruptions: Array
    """That nobody planned."""
    work: float

    @property
    def goodput(self) -> Array:
        return self.work / self.seconds

    def within(self, name: str, share: float = 0.8) -> Between:
        """Median and interval of `days`, `interruptions` or `goodput`."""
        every = {"days": self.seconds / 86_400, "interruptions": self.interruptions, "goodput": self.goodput}
        return middle(every[name], share)


def draw(
    course: Course, *, rate: Rate | None = None, nodes: float = 1, runs: int = DRAWS, seed: int = 0
) -> Ends:
    """Many runs at once. With `rate`, each has its own mean time between failures, on so many nodes."""
    chance = np.random.default_rng(seed)
    mtbf, restart = _of_each(course, rate, nodes, runs, chance)
    whole = np.full(runs, course.segments)
    failures, lost = _tries(chance, whole, np.full(runs, course.segment), mtbf)
    again, waiting = _restarts(chance, failures, restart + course.saving.write, mtbf)
    seconds = whole * course.segment + lost + waiting
    others = seconds / (1 - min(course.stretch, 0.99)) / 86_400
    rewinds = _counts(chance, course.rewinds_per_day * others)
    stops = _counts(chance, course.planned_per_day * others)
    seconds = seconds + rewinds * (course.rewind + restart) + stops * course.planned_stop
    return Ends(seconds, failures + again, course.work)


def _of_each(
    course: Course, rate: Rate | None, nodes: float, runs: int, chance: np.random.Generator
) -> tuple[Array, Array]:
    """M and R of each run."""
    mtbf = np.full(runs, course.mtbf)
    if rate is not None:
        mtbf = 86_400 * 1000 / (nodes * chance.choice(rate.draws, runs))
    return mtbf, course.restart * np.exp(course.restart_spread * chance.standard_normal(runs))


def _tries(chance: np.random.Generator, whole: Array, length: Array, mtbf: Array) -> tuple[Array, Array]:
    """Failures before so many segments have been got through, and the time that they took away."""
    through = np.exp(-length / mtbf)
    failures = np.where(through < 1, _negative_binomial(chance, whole, through), 0.0)
    return failures, _sum_of_cut(chance, failures, length, mtbf)


def _restarts(
    chance: np.random.Generator, failures: Array, length: Array, mtbf: Array
) -> tuple[Array, Array]:
    """Failures within restarts, and the time of all restarts."""
    again, lost = _tries(chance, failures, length, mtbf)
    return again, failures * length + lost


def _negative_binomial(chance: np.random.Generator, wins: Array, through: Array) -> Array:
    """Failures before the wins-th success, as a gamma-Poisson, which needs no whole number of wins."""
    odds = 1 / np.maximum(through, 1e-9) - 1
    return _counts(chance, chance.gamma(np.maximum(wins, 1e-12)) * odds)


def _counts(chance: np.random.Generator, mean: Array) -> Array:
    return chance.poisson(np.minimum(mean, MOST_FAILURES)).astype(float)


def _sum_of_cut(chance: np.random.Generator, count: Array, length: Array, mtbf: Array) -> Array:
    """Sum of so many exponential times that all fell before `length`: its mean and spread, as a gamma."""
    x = np.minimum(length / mtbf, 300.0)  # beyond, the square of e^x overflows
    mean = np.where(x > 1e-6, mtbf * (1 - x / np.expm1(np.maximum(x, 1e-9))), length / 2)
    around = np.where(
        x > 1e-3, mtbf**2 * (1 - x**2 * np.exp(x) / np.expm1(np.maximum(x, 1e-9)) ** 2), length**2 / 12
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.where(count > 0, count * mean**2 / around, 1.0)
        return np.where(count > 0, chance.gamma(shape, around / mean), 0.0)


def play(
    course: Course, *, rate: Rate | None = None, nodes: float = 1, runs: int = 20, seed: int = 0
) -> Ends:
    """The same, event by event, one run after the other. One that takes `LONGEST` times its work is given up, and
    counts as that long."""
    ended, counted = np.empty(runs), np.empty(runs)
    every = _of_each(course, rate, nodes, runs, np.random.default_rng(seed))
    for run, (mtbf, restart) in enumerate(zip(*every, strict=True)):
        own = replace(course, mtbf=float(mtbf), restart=float(restart))
        cluster = _Cluster(own, np.random.default_rng((seed, run)))
        ended[run] = cluster.run()
        counted[run] = cluster.failures
    return Ends(ended, counted, course.work)


class _Cluster:
    """One run, as processes of simpy: the training, and all that interrupts it."""

    def __init__(self, course: Course, chance: np.random.Generator) -> None:
        import simpy

        self.course, self.chance, self.interrupt = course, chance, simpy.Interrupt
        self.clock = simpy.Environment()
        self.done = self.safe = 0.0
        """Work: of the steps behind, and of those that a written save holds."""
        self.writing: tuple[float, float] | None = None
        """A save under way: its work, and when it is safe."""
        self.owed = 0.0
        """Seconds of rewinds and planned stops, which wait for the end of a segment."""
        self.slow = False
        self.failures = 0

    def run(self) -> float:
        """Seconds until the last step is saved."""
        training = self.clock.process(self.train())
        self.clock.process(self.fail(training))
        course = self.course
        for per_day, seconds in (
            (course.rewinds_per_day, course.rewind + course.restart),
            (course.planned_per_day, course.planned_stop),
        ):
            self.clock.process(self.owe(per_day, seconds))
        self.clock.process(self.slow_accelerators())
        given_up = self.clock.timeout(LONGEST * course.work)
        self.clock.run(until=training | given_up)
        return float(self.clock.now)

    def train(self) -> Generator[Any, Any, None]:
        """Segment after segment, the last of which may be shorter."""
        while self.done < self.course.work:
            try:
                paid, self.owed = self.owed, 0.0
                yield self.clock.timeout(paid)
                length = min(self.course.interval, self.course.work - self.done)
                loss = self.course.slow_loss if self.slow else 0.0
                yield self.clock.timeout(length * (1 / (1 - loss) + self.course.evaluation))
                self.done += length
                yield self.clock.timeout(self.course.saving.stall)
                self.settle()
                self.writing = (self.done, self.clock.now + self.course.saving.write)
            except self.interrupt:
                self.settle()
                self.done, self.writing = self.safe, None
                yield from self.come_back()

    def settle(self) -> None:
        """What has been written by now is safe."""
        if self.writing and self.clock.now >= self.writing[1]:
            self.safe, self.writing = self.writing[0], None

    def come_back(self) -> Generator[Any, Any, None]:
        """A restart, which begins again where another failure strikes."""
        while True:
            try:
                yield self.clock.timeout(self.course.restart)
                return
            except self.interrupt:
                continue

    def fail(self, training: simpy.Process) -> Generator[Any, Any, None]:
        while np.isfinite(self.course.mtbf):
            yield self.clock.timeout(self.chance.exponential(self.course.mtbf))
            self.failures += 1
            training.interrupt()

    def owe(self, per_day: float, seconds: float) -> Generator[Any, Any, None]:
        while per_day:
            yield self.clock.timeout(self.chance.exponential(86_400 / per_day))
            self.owed += seconds

    def slow_accelerators(self) -> Generator[Any, Any, None]:
        """Good and slow times in turn, in the stated proportion."""
        lasts, share = self.course.slow_lasts, self.course.slow_share
        while share:
            yield self.clock.timeout(self.chance.exponential(lasts * (1 - share) / share))
            self.slow = True
            yield self.clock.timeout(self.chance.exponential(lasts))
            self.slow = False
