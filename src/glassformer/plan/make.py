"""From what was given to a plan: what is left open is found.

count and no days            the days
days (or money) and tokens   the fewest accelerators that do it
a budget alone               the best model and tokens for it (`allocate`), by turns with what a step then takes
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glassformer.errors import UsageError
from glassformer.plan import given
from glassformer.plan.allocate import DEFAULT, LARGEST_RUN, BestSize, LossLaw, best_size, read_law, usual
from glassformer.plan.flops import training
from glassformer.plan.asked import LENGTH, Asked, asked, pick_precision, with_batch, with_tokens
from glassformer.plan.campaigns import runs_like
from glassformer.plan.chosen import Chosen, DoesNotFit, as_given, chosen, given_layout, ladder
from glassformer.plan.hardware import Accelerator, accelerator, data_rows
from glassformer.plan.layout import Job, Layout
from glassformer.plan.memory import INTERVAL, memory
from glassformer.plan.numbers import Numbers, numbers
from glassformer.plan.plan import Plan
from glassformer.plan.quantity import Quantity
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.steptime import step_time
from glassformer.plan.words import one_value
from glassformer.units import show_bytes

USUAL_HARDWARE = "H100-SXM-80GB"
"""Of a preset, where nobody says."""
USUAL_DAYS = 90.0
"""As long as the longest runs take."""
_MOST = 2**20
_LONGEST = 1000 * 365.25
"""Days."""
_CLOSE = 0.02
"""A size found by turns, to this share of its FLOPs."""

Given = str | int | float


@dataclass(frozen=True)
class Setting:
    """All that stays the same while a plan is looked for."""

    machine: Accelerator
    own: bool
    rates: Rates
    calibrated: bool
    law: LossLaw
    precision: str | None
    layout: str | None
    price: float | None
    carbon: float | None
    batch: int | None
    length: int | None
    unique: float | None
    serve: float


def plan(
    what: Any = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    tokens: Given | None = None,
    hardware: str | Accelerator | None = None,
    count: Given | None = None,
    days: Given | None = None,
    budget: Given | None = None,
    length: Given | None = None,
    batch: Given | None = None,
    precision: str | None = None,
    layout: str | None = None,
    law: str | Path | None = None,
    price: Given | None = None,
    grid_carbon: float | None = None,
    calibrate: str | Path | None = None,
    unique: Given | None = None,
    serve: Given | None = None,
) -> Plan:
    """What a run will cost, each number with an interval, its formula and its sources.

    `what` is a recipe (name, file, values), a preset, a config or an architecture; without it, the best model for
    `budget` (FLOPs, dollars, or days with `count`). `hardware` is a name of the table; a recipe's is this machine.
    Numbers may be texts with units: "15T", "60 days", "$5M", "1e24".
    """
    if grid_carbon is not None and not 0 <= grid_carbon <= 2:
        raise UsageError(f"grid_carbon is {grid_carbon:g} kg/kWh.", expected="0 to 2; grams are not meant.")
    num = None if count is None else given.whole(count, "count")
    if num is not None and num > _MOST:
        raise UsageError(f"count is {num:,}.", expected=f"At most {_MOST:,} accelerators.")
    seconds = None if days is None else given.duration(days, "days")
    spend = None if budget is None else given.budget(budget)
    if spend is not None and spend.kind == "seconds":
        if seconds is not None:
            raise UsageError(f"Both --days {days} and --budget {budget} are a time.", do="Give one of them.")
        seconds, spend = spend.value, None
    want = None if what is None else _resized(asked(what, overrides), tokens, length, batch, precision)
    machine, own = _machine(hardware, want)
    rates, calibrated = _rates(calibrate)
    setting = Setting(
        machine, own, rates, calibrated, read_law(law or DEFAULT), precision, layout,
        None if price is None else given.dollars(price, "price"), grid_carbon,
        None if batch is None else given.whole(batch, "batch"), None if length is None else given.whole(length, "length"),
        None if unique is None else given.tokens(unique, "unique"), 0.0 if serve is None else given.tokens(serve, "serve"),
    )  # fmt: skip
    if own and num not in (None, 1):
        raise UsageError(
            f"count is {num}, but this machine is one.", do="Name the accelerator with --hardware."
        )
    num = 1 if own else num
    if want is None:
        return _best_for(setting, num, seconds, spend)
    if want.tokens is None and want.minutes is not None:
        want = _for_minutes(setting, want, num or 1)
    want = with_tokens(want, str(law or DEFAULT))
    if num is None:
        num = _fewest(setting, want, (seconds or USUAL_DAYS * 86_400) / 86_400, must=seconds is not None)
        if seconds is None:
            note = f"{num:,} accelerators are the fewest that take at most {USUAL_DAYS:g} days, or least; --count says another."
            return _planned(setting, want, num, notes=(note,), spend=spend)
    elif seconds is not None:
        found = _planned(setting, want, num, spend=spend)
        took = found.quantities["days"]
        if took.value > seconds / 86_400:
            need = _fewest(setting, want, seconds / 86_400, must=False)
            extra = f"{one_value(took.value, 'days')} are more than the {one_value(seconds / 86_400, 'days')} given" + (
                f"; {need:,} accelerators come nearest." if not own else ".")  # fmt: skip
            return replace(found, warnings=(extra, *found.warnings))
        return found
    return _planned(setting, want, num, spend=spend)


def _machine(hardware: str | Accelerator | None, want: Asked | None) -> tuple[Accelerator, bool]:
    """The accelerator, and whether it is this machine."""
    if isinstance(hardware, Accelerator):
        return hardware, False
    if hardware is None and (want is None or want.own):
        from glassformer.plan.machine import this_machine

        return this_machine(), True
    if hardware in ("here", "this machine", "mine"):
        from glassformer.plan.machine import this_machine

        return this_machine(), True
    return accelerator(hardware or USUAL_HARDWARE), False


def _rates(calibrate: str | Path | None) -> tuple[Rates, bool]:
    if calibrate is None:
        return RATES, False
    from glassformer.plan.calibration import calibrate as fit
    from glassformer.plan.rows import measured_rows

    path = Path(calibrate)
    if not path.exists():
        raise UsageError(
            f"There is no file {path}.", expected="A table of measured steps, as data/measured_steps.csv."
        )
    return fit(measured_rows(path)), True


def _resized(
    want: Asked, tokens: Given | None, length: Given | None, batch: Given | None, precision: str | None
) -> Asked:
    """With what the user says instead."""
    changed: dict[str, Any] = {}
    if tokens is not None:
        changed |= {"tokens": given.tokens(tokens), "minutes": None}
    if batch is not None:
        changed["batch"] = given.whole(batch, "batch")
    if precision is not None:
        changed["precision"] = precision
    if length is not None:
        changed["length"] = given.whole(length, "length")
        if (
            want.context is not None
            and changed["length"] > want.context
            and want.architecture.learned_positions
        ):
            raise UsageError(
                f"length is {length}, but {want.name} has {want.context} positions.",
                expected="At most those.",
            )
        if want.batch is not None and "batch" not in changed:  # as many tokens in a step
            changed["batch"] = max(1, round(want.batch * want.length / changed["length"]))
    said = {**want.sources, **{name: "given" for name in changed if name != "minutes"}}
    return replace(want, **changed, sources=said)


def _layout(setting: Setting, want: Asked, count: int, *, quick: bool = False) -> Chosen:
    """The job with its layout."""
    assert want.batch is not None  # with_batch
    kind = pick_precision(want, setting.machine)
    job = Job(
        want.architecture, setting.machine, kind, Layout(), want.batch, want.length, want.read_length, want.optimizer,
        chunked_loss=want.own,
    )  # fmt: skip
    setting.machine.peak(kind.peak)
    if setting.layout is not None:
        return as_given(replace(job, layout=given_layout(setting.layout, count, job)), setting.rates)
    if setting.own:
        mine = min(want.micro_batch or want.batch, want.batch)
        return as_given(replace(job, layout=Layout(micro_batch=mine)), setting.rates)
    try:
        return chosen(job, count, setting.rates, quick=quick)
    except DoesNotFit as error:
        least = next((n for n in ladder(count + 1) if _fits(job, n)), None)
        raise DoesNotFit(
            error.what, expected=f"At least {least:,} of them." if least else "Another accelerator: no number of these does.",
            do=error.do,
        ) from None  # fmt: skip


def _fits(job: Job, count: int) -> bool:
    try:
        chosen(job, count, quick=True)
    except UsageError:
        return False
    return True


def _planned(
    setting: Setting, want: Asked, count: int, *, notes: tuple[str, ...] = (), spend: given.Budget | None = None,
    optimum: BestSize | None = None, quick: bool = False,
) -> Plan:  # fmt: skip
    """The plan for so many accelerators. `quick`: without what only the reader wants."""
    want = with_batch(with_tokens(want), count)
    found = _layout(setting, want, count, quick=quick)
    job = found.job
    step, held = step_time(job, setting.rates), memory(job)
    made = numbers(want, job, step, held, own_machine=setting.own, calibrated=setting.calibrated, price=setting.price,
                   carbon=setting.carbon)  # fmt: skip
    title = f"{want.name} on {_on(setting, count)}"
    first = Plan(title, job, made.quantities, step, held, own_machine=setting.own)
    if quick:
        return first
    quantities = made.quantities
    best = optimum or _optimum(setting, want, quantities["flops"].value)
    loss, loss_at = _loss(setting, quantities)
    if loss is not None:
        quantities = {**quantities, "loss": loss}
    warnings = [*_warnings(setting, want, job, quantities, held, found)]
    if spend is not None:
        warnings = [*_over(spend, quantities), *warnings]
    return replace(
        first, quantities=quantities, layouts=found.rows, unfit=found.unfit, warnings=tuple(warnings),
        nearest=_nearest(quantities["flops"].value, setting.machine, count), optimum=best, loss_at=loss_at, stalls=made.stalls, time=made.time,
        looked_at=found.looked_at, fit=found.fit, notes=(*notes, *_NOTES),
    )  # fmt: skip


def _on(setting: Setting, count: int) -> str:
    return f"this machine ({setting.machine.name})" if setting.own else f"{count:,} x {setting.machine.name}"


def _fewest(setting: Setting, want: Asked, days: float, *, must: bool = True) -> int:
    """The fewest accelerators that take at most so many days; where none do and nothing `must`, those that take least."""
    if setting.own:
        return 1
    flops = 6.0 * want.architecture.active_parameters * (want.tokens or 0.0)
    kind = pick_precision(want, setting.machine)
    ideal = flops / (setting.machine.peak(kind.peak) * 86_400 * days)
    best, why = (math.inf, 0), ""
    for count in [n for n in ladder() if n >= ideal] or ladder()[-8:]:
        try:
            took = _planned(setting, want, count, quick=True).quantities["days"].value
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


def _for_minutes(setting: Setting, want: Asked, count: int) -> Asked:
    """A recipe that trains for so many minutes: as many tokens as the steps of that time have."""
    once = replace(want, tokens=1.0)
    found = _layout(setting, with_batch(once, count), count, quick=True)
    seconds = float(step_time(found.job, setting.rates).total)
    steps = max(1, round((want.minutes or 0) * 60 / seconds))
    said = f"{want.sources['tokens']}: {want.minutes:g} minutes of steps of {one_value(seconds, 's')}"
    return replace(want, tokens=float(steps * found.job.tokens), sources={**want.sources, "tokens": said})


def _best_for(setting: Setting, count: int | None, seconds: float | None, spend: given.Budget | None) -> Plan:
    """The best model for a budget, whose FLOPs follow from what a step of it takes."""
    if spend is None and seconds is None:
        raise UsageError(
            "Nothing says what to plan.", expected="A recipe, a preset, or a budget.",
            do="For example: glassformer plan llama-3.1-405b --hardware h100-sxm --count 16384, or glassformer plan "
            "--budget 1e24 --hardware h100-sxm --count 1024, or glassformer plan demo",
        )  # fmt: skip
    if spend is None and count is None:
        raise UsageError(
            "A time alone buys nothing.", expected="Also --count, or a budget in money or FLOPs."
        )
    flops = spend.value if spend and spend.kind == "flops" else 0.0
    peak = max(setting.machine.peaks.get(name, 0.0) for name in ("bf16", "fp16", "fp32"))
    share, found, guess = 0.35, None, 0.0
    for _ in range(8):
        hours = _hours(setting, count, seconds, spend, flops, share * peak)
        guess = flops or hours * 3600 * share * peak
        if count and guess / (count * share * peak) > _LONGEST * 86_400:
            raise UsageError(
                f"{guess:.3g} FLOPs take {count:,} x {setting.machine.name} "
                f"{one_value(guess / (count * share * peak) / 86_400, 'days')}.", expected="More accelerators, or less of a budget.",
            )  # fmt: skip
        least = _least(setting, count or 1)
        if guess < least:
            raise UsageError(
                f"The budget trains nothing: it is {guess:.2g} FLOPs on {count or 1:,} x {setting.machine.name}.",
                expected=f"At least {least:.2g} FLOPs, {one_value(least / (share * peak) / 3600 * _price(setting), '$')}: the "
                "smallest model that is counted, for ten steps.",
            )  # fmt: skip
        best = best_size(
            guess, setting.law, length=setting.length or LENGTH, serve=setting.serve, unique=setting.unique
        )
        said = f"best for {guess:.3g} FLOPs by the law {best.law.name}: {best.law.source}"
        want = Asked(
            best.architecture.name, best.architecture, best.tokens, setting.length or LENGTH, batch=setting.batch,
            precision=setting.precision, own=setting.own, sources={"parameters": said, "tokens": said, "length": "4,096, or given"},
        )  # fmt: skip
        num = count or _fewest(setting, want, (seconds / 86_400) if seconds else USUAL_DAYS, must=False)
        found = _planned(setting, want, num, optimum=best, quick=True)
        took = found.quantities["accelerator_hours"].value
        reached = found.quantities["flops"].value / (took * 3600 * peak)
        if flops or abs(reached / share - 1) < _CLOSE:
            break
        share = reached
    assert found is not None
    return _planned(setting, want, num, optimum=best, spend=spend)


def _least(setting: Setting, count: int) -> float:
    """FLOPs of ten steps of the smallest model, a row for each accelerator."""
    length = setting.length or LENGTH
    return 10 * min(count, 1024) * length * training(usual(1e4, length), length, convention="causal")


def _hours(
    setting: Setting,
    count: int | None,
    seconds: float | None,
    spend: given.Budget | None,
    flops: float,
    speed: float,
) -> float:
    """Accelerator hours that the budget buys: the least of what time, money and FLOPs allow."""
    allowed = [math.inf]
    if seconds is not None and count is not None:
        allowed.append(count * seconds / 3600)
    if spend is not None and spend.kind == "dollars":
        allowed.append(spend.value / _price(setting))
    if flops:
        allowed.append(flops / speed / 3600)
    return min(allowed)


def _price(setting: Setting) -> float:
    """Dollars an hour."""
    from glassformer.plan import energy, money

    if setting.price is not None:
        return setting.price
    if setting.own:
        return energy.power(setting.machine).watts.value / 1000 * money.ELECTRICITY.value
    return money.cloud_price(setting.machine).usd.value


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
    loss = Quantity(
        "loss",
        last.loss,
        low,
        high,
        last.unit or "",
        "E + A / N^alpha + B / D^beta",
        (n, d),
        setting.law.source,
    )
    return loss, tuple(rows)


def _over(spend: given.Budget, quantities: Mapping[str, Quantity]) -> Iterator[str]:
    """Whether a budget is enough."""
    name = "dollars" if spend.kind == "dollars" else "flops"
    took, unit = quantities[name], "$" if spend.kind == "dollars" else "FLOP"
    if took.value > 1.05 * spend.value:
        yield (
            f"The budget of {one_value(spend.value, unit)} covers {spend.value / took.value:.0%} of it: "
            f"{one_value(took.value, unit)} are needed at least."
        )
    elif took.high > spend.value:
        yield f"The budget of {one_value(spend.value, unit)} is within the interval, whose upper end is {one_value(took.high, unit)}."


def _warnings(
    setting: Setting, want: Asked, job: Job, quantities: Mapping[str, Quantity], held: Any, found: Chosen
) -> Iterator[str]:
    """What makes these numbers less than sure."""
    flops, used, has = quantities["flops"].value, float(held.total), job.accelerator.memory
    if flops > LARGEST_RUN:
        largest = max(_published(), key=lambda row: row["flops"])
        yield (
            f"{flops:.2g} FLOPs are {flops / largest['flops']:,.3g} times the largest run that is known "
            f"({largest['model']}, {largest['flops']:.3g}, an estimate): far beyond evidence, so intervals are too narrow."
        )
    if used > has:
        yield found.unfit
    elif used * INTERVAL[1] > has:
        yield (
            f"It may not fit: {show_bytes(used)} of {show_bytes(has)}, and one run in ten needs more than "
            f"{show_bytes(used * INTERVAL[1])}."
        )
    count = int(job.layout.accelerators)
    good = quantities["goodput"]
    if good.value < 0.5:
        yield (
            f"Failures take {1 - good.value:.0%} of the time: at the rates of today's systems one comes every "
            f"{one_value(quantities['mtbf_hours'].value / 24, 'days')}. Fewer accelerators, or quicker restarts."
        )
    if count > 100_000:
        yield f"No run on more than 100,000 accelerators is published; {count:,} are beyond all measured rows."
    if not setting.own:
        if job.accelerator.bandwidth <= 0 or not job.accelerator.achievable:
            yield f"Nobody has published what products reach on {job.accelerator.name}: 80 % of its datasheet is taken."
        used_here = {job.precision.peak, "memory", "bandwidth", "power"} | (
            {"scale_up", "scale_out"} if count > 1 else set()
        )
        if unread := sorted(used_here & job.accelerator.unverified):
            yield f"No source was read for the {' and '.join(one.replace('_', '-') for one in unread)} of {job.accelerator.name}."
    days = quantities["days"].value
    if days > 365:
        yield f"{one_value(days, 'days')}: longer than a generation of hardware lasts, and than any published run."
    if want.minutes is not None:
        yield "The recipe says minutes: the tokens follow from the forecast speed."
    if setting.law.is_own:
        yield from setting.law.forecaster.forecast(
            N=quantities["parameters"].value, D=quantities["tokens"].value
        ).warnings  # type: ignore[union-attr]


def _published() -> list[dict[str, Any]]:
    """Published runs with their FLOPs: as reported, or 6 N D."""
    found = []
    for row in data_rows("training_runs"):
        size = row["params_active"] or row["params_total"]
        flops = float(row["train_flops_reported"] or 0) or (
            6 * float(size) * float(row["tokens"]) if size and row["tokens"] else 0.0
        )
        if flops and row["n_accel"] + row["accel_hours"]:
            found.append({**row, "flops": flops})
    return found


def _nearest(flops: float, machine: Accelerator, count: int) -> list[dict[str, Any]]:
    """The published runs nearest to it, where any is within a factor of a hundred."""
    return [
        {
            "run": row["run"], "date": row["date"], "compute": one_value(row["flops"], "FLOP"),
            "on": f"{int(row['accelerators']):,} x {row['accelerator']}" if row["accelerators"] else row["accelerator"],
            "hours": one_value(row["accelerator_hours"], "h"), "of peak, billed": f"{row['utilisation_billed']:.1%}",
            "source": row["source"].split(";")[0],
        }
        for row in runs_like(flops, machine, count)
        if abs(math.log10(row["flops"] / flops)) < 2
    ]  # fmt: skip


_NOTES = (
    "Intervals hold the middle 80 %. Each quantity is taken for log-normal: of a product the variances of the logarithms "
    "add, each times its power squared; of a sum each part counts by its share.",
    "A step's interval is the error on measured rows that the rates were not fitted to; memory's likewise. Failures, "
    "saves and restarts are drawn 400 times, the failure rate among what published systems show. Prices span their quotes.",
    "Not in it: what data cost, runs that are thrown away (but in the whole project's money), evaluation, and waiting for "
    "machines.",
)
