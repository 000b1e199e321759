"""One plan, once everything is settled but what `Setting` holds: the layout, the numbers, the fewest accelerators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from glassformer.errors import UsageError
from glassformer.plan import given
from glassformer.plan.allocate import BestSize, LossLaw, best_size
from glassformer.plan.asked import Asked, pick_precision, with_batch, with_tokens
from glassformer.plan.chosen import Chosen, DoesNotFit, as_given, chosen, given_layout, ladder
from glassformer.plan.doubts import NOTES, doubts, nearest, over
from glassformer.plan.hardware import Accelerator
from glassformer.plan.intervals import Z
from glassformer.plan.layout import Job, Layout
from glassformer.plan.machine import Profile
from glassformer.plan.memory import memory
from glassformer.plan.numbers import numbers
from glassformer.plan.plan import Plan
from glassformer.plan.precision import Precision, precision
from glassformer.plan.quantity import Quantity
from glassformer.plan.rates import Rates
from glassformer.plan.software import GLASSFORMER, Software
from glassformer.plan.spread import half_width
from glassformer.plan.steptime import StepTime, step_time
from glassformer.plan.words import one_value

PROFILED_STEP_ERROR = 0.1
"""sigma of ln of a step's time, where it is made of operations that were measured on this machine."""
UNKNOWN_STEP_ERROR = 1.0
"""The same where no step like it was measured: a plain network on a processor."""


@dataclass(frozen=True)
class Setting:
    """All that stays the same while a plan is looked for."""

    machine: Accelerator
    profile: Profile | None
    """Of this machine, where the run is to be on it."""
    rates: Rates
    law: LossLaw
    precision: str | None
    layout: str | None
    price: float | None
    carbon: float | None
    batch: int | None
    length: int | None
    unique: float | None
    serve: float

    @property
    def own(self) -> bool:
        return self.profile is not None

    @property
    def timed(self) -> Profile | None:
        """The profile where it has the time of each operation: that of a processor."""
        return self.profile if self.profile is not None and self.profile["device"] == "cpu" else None


def planned(
    setting: Setting, want: Asked, count: int, *, notes: tuple[str, ...] = (), spend: given.Budget | None = None,
    optimum: BestSize | None = None, quick: bool = False,
) -> Plan:  # fmt: skip
    """The plan for so many accelerators. `quick`: without what only the reader wants."""
    want = with_batch(with_tokens(want), count)
    found = layout_of(setting, want, count, quick=quick)
    job = found.job
    step, held = _step(setting, want, job), memory(job)
    made = numbers(want, job, step, held, own_machine=setting.own, step_error=_step_error(setting, job),
                   own_rows=len(setting.rates.own), price=setting.price, carbon=setting.carbon,
                   timed=setting.timed is not None and job.architecture.kind != "network")  # fmt: skip
    title = f"{want.name} on {_on(setting, count)}"
    first = Plan(title, job, made.quantities, step, held, own_machine=setting.own)
    if quick:
        return first
    quantities = made.quantities
    best = optimum or _optimum(setting, want, quantities["flops"].value)
    loss, loss_at = _loss(setting, quantities)
    if loss is not None:
        quantities = {**quantities, "loss": loss}
    warnings = [*doubts(job, quantities, own_machine=setting.own, unfit=found.unfit)]
    if spend is not None:
        warnings = [*over(spend, quantities), *warnings]
    if want.minutes is not None:
        warnings.append("The recipe says minutes: the tokens follow from the forecast speed.")
    if setting.law.forecaster is not None:
        n, d = quantities["parameters"].value, quantities["tokens"].value
        warnings += setting.law.forecaster.forecast(N=n, D=d).warnings
    return replace(
        first, quantities=quantities, layouts=found.rows, unfit=found.unfit, warnings=tuple(warnings),
        nearest=nearest(quantities["flops"].value, setting.machine, count), optimum=best, loss_at=loss_at,
        stalls=made.stalls, time=made.time, looked_at=found.looked_at, fit=found.fit, notes=(*notes, *NOTES),
    )  # fmt: skip


def layout_of(setting: Setting, want: Asked, count: int, *, quick: bool = False) -> Chosen:
    """The job with its layout."""
    assert want.batch is not None  # with_batch
    kind = own_precision(setting.timed, want) if setting.timed else pick_precision(want, setting.machine)
    job = Job(
        want.architecture, setting.machine, kind, Layout(), want.batch, want.length, want.read_length, want.optimizer,
        chunked_loss=want.own, software=GLASSFORMER if want.own else Software(),
    )  # fmt: skip
    setting.machine.peak(kind.peak)
    if setting.layout is not None:
        job = replace(job, layout=given_layout(setting.layout, count, job))
        return as_given(job, float(_step(setting, want, job).total))
    if setting.own:
        job = _in_micro_batches(
            job, min(want.micro_batch or want.batch, want.batch), want.micro_batch is None
        )
        return as_given(job, float(_step(setting, want, job).total))
    try:
        return chosen(job, count, setting.rates, quick=quick)
    except DoesNotFit as error:
        least = next((n for n in ladder(count + 1) if _fits(job, n)), None)
        enough = f"At least {least:,} of them." if least else "Another accelerator: no number of these does."
        raise DoesNotFit(error.what, expected=enough, do=error.do) from None


def _in_micro_batches(job: Job, rows: int, may_halve: bool) -> Job:
    """The job in micro-batches of so many rows; fewer, where half of the memory does not hold them."""
    made = replace(job, layout=Layout(micro_batch=rows))
    if may_halve and rows > 1 and memory(made).total > job.accelerator.memory / 2:
        return _in_micro_batches(job, rows // 2, may_halve)
    return made


def own_precision(profile: Profile, want: Asked) -> Precision:
    """What the trainer would choose on this machine: the quickest, unless the recipe says."""
    assert want.batch is not None  # with_batch
    if want.precision is not None or want.architecture.kind == "network":
        return precision(want.precision or "fp32")
    from glassformer.plan.cpu import step_time as cpu_step_time  # it reads settings, which load pydantic

    rows = want.micro_batch or want.batch
    found = cpu_step_time(want.architecture, profile, batch=rows, length=want.length)
    return precision(found.precision)


def _step(setting: Setting, want: Asked, job: Job) -> StepTime:
    """A step's time: by the rates, or, of this machine, by what was measured of each operation on it."""
    if setting.timed is None:
        return step_time(job, setting.rates)
    if job.architecture.kind == "network":  # on a processor nothing stalls, but much is not arithmetic
        return replace(step_time(job, setting.rates), stalls=0.0)
    from glassformer.plan.cpu import WORTH_COMPILING
    from glassformer.plan.cpu import step_time as cpu_step_time

    rows = int(job.layout.micro_batch)
    named: Any = job.precision.name
    timed = partial(
        cpu_step_time, job.architecture, setting.timed, batch=rows, length=job.length, precision=named
    )
    n, one = job.batch / rows, timed()
    steps = (want.tokens or 0.0) / job.tokens
    seconds = steps * n * one.total if want.minutes is None else 60 * want.minutes
    worth = want.compile == "on" or (want.compile == "auto" and seconds >= WORTH_COMPILING)
    if worth and setting.timed.get("compiles"):
        one = timed(compiled=True)
    nothing = dict.fromkeys(
        ("recompute", "tensor", "data", "pipeline", "context", "expert", "bubble", "stalls"), 0.0
    )
    return StepTime(matmul=n * one.products, pattern=n * one.attention, bandwidth=n * one.elements, head=n * one.loss,
                    optimizer=one.update, **nothing)  # fmt: skip


def _step_error(setting: Setting, job: Job) -> float:
    """sigma of ln of a step's time."""
    if setting.timed is None:
        return half_width(job, setting.rates) / Z
    return UNKNOWN_STEP_ERROR if job.architecture.kind == "network" else PROFILED_STEP_ERROR


def _fits(job: Job, count: int) -> bool:
    try:
        chosen(job, count, quick=True)
    except UsageError:
        return False
    return True


def _on(setting: Setting, count: int) -> str:
    return f"this machine ({setting.machine.name})" if setting.own else f"{count:,} x {setting.machine.name}"


def fewest(setting: Setting, want: Asked, days: float, *, must: bool = True) -> int:
    """The fewest accelerators that take at most so many days; where none do and nothing `must`, those that take
    least."""
    if setting.own:
        return 1
    flops = 6.0 * want.architecture.active_parameters * (want.tokens or 0.0)
    kind = pick_precision(want, setting.machine)
    ideal = flops / (setting.machine.peak(kind.peak) * 86_400 * days)
    best, why = (math.inf, 0), ""
    for count in [n for n in ladder() if n >= ideal] or ladder()[-8:]:
        try:
            took = planned(setting, want, count, quick=True).quantities["days"].value
        except UsageError as error:
            why = str(error)
            continue
        if took <= days:
            return count
        if took > 1.5 * best[0]:
            break  # more of them only wait for each other
        best = min(best, (took, count))
    if best[1] and not must:
        return best[1]
    said = f"{best[1]:,} take {one_value(best[0], 'days')}, and more are no quicker." if best[1] else why
    raise UsageError(
        f"No number of {setting.machine.name} trains {want.name} in {one_value(days, 'days')}.", expected=said,
        do="Give more --days, fewer --tokens or another --hardware.",
    )  # fmt: skip


def for_minutes(setting: Setting, want: Asked, count: int) -> Asked:
    """A recipe that trains for so many minutes: as many tokens as the steps of that time have."""
    once = replace(want, tokens=1.0)
    found = layout_of(setting, with_batch(once, count), count, quick=True)
    seconds = float(_step(setting, once, found.job).total)
    steps = max(1, round((want.minutes or 0) * 60 / seconds))
    said = f"{want.sources['tokens']}: {want.minutes:g} minutes of steps of {one_value(seconds, 's')}"
    return replace(want, tokens=float(steps * found.job.tokens), sources={**want.sources, "tokens": said})


def _optimum(setting: Setting, want: Asked, flops: float) -> BestSize | None:
    """What the same compute is best spent on; None where the law says nothing of such models."""
    if want.architecture.kind != "decoder" or (flops < 1e15 and not setting.law.is_own):
        return None
    return best_size(flops, setting.law, length=want.length, serve=setting.serve, unique=setting.unique)


def _loss(
    setting: Setting, quantities: Mapping[str, Quantity]
) -> tuple[Quantity | None, tuple[dict[str, float], ...]]:
    """By a law of one's own runs alone: the loss of a published one is that of another text."""
    maker = setting.law.forecaster
    if maker is None:
        return None, ()
    n, d = quantities["parameters"], quantities["tokens"]
    rows = []
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        low, high = maker.forecast(N=n.value, D=share * d.value).intervals[0.8]
        rows.append({"tokens": share * d.value, "value": math.sqrt(low * high), "low": low, "high": high})
    last = maker.forecast(N=n.value, D=d.value)
    low, high = last.intervals[0.8]
    form = "E + A / N^alpha + B / D^beta"
    return Quantity("loss", last.loss, low, high, last.unit or "", form, (n, d), setting.law.source), tuple(
        rows
    )
