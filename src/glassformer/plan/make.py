"""From what was given to a plan: what is left open is found.

count and no days            the days
days (or money) and tokens   the fewest accelerators that do it
a budget alone               the best model and tokens for it (`budgets`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glassformer.errors import UsageError
from glassformer.plan import given
from glassformer.plan.allocate import DEFAULT, read_law
from glassformer.plan.asked import Asked, asked, with_tokens
from glassformer.plan.budgets import USUAL_DAYS, best_for
from glassformer.plan.hardware import Accelerator, accelerator
from glassformer.plan.machine import Profile, read_profile, this_machine
from glassformer.plan.plan import Plan
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.settled import Setting, fewest, for_minutes, planned
from glassformer.plan.words import one_value

USUAL_HARDWARE = "H100-SXM-80GB"
"""Where nobody says, but for recipes, which run here."""
_MOST = 2**20

Given = str | int | float


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
    machine, profile = _machine(hardware, want)
    rates = _rates(calibrate)
    setting = Setting(
        machine, profile, rates, read_law(law or DEFAULT), precision, layout,
        None if price is None else given.dollars(price, "price"), grid_carbon,
        None if batch is None else given.whole(batch, "batch"),
        None if length is None else given.whole(length, "length"),
        None if unique is None else given.tokens(unique, "unique"),
        0.0 if serve is None else given.tokens(serve, "serve"),
    )  # fmt: skip
    if profile and num not in (None, 1):
        raise UsageError(
            f"count is {num}, but this machine is one.", do="Name the accelerator with --hardware."
        )
    num = 1 if profile else num
    if want is None:
        return best_for(setting, num, seconds, spend)
    if want.tokens is None and want.minutes is not None:
        want = for_minutes(setting, want, num or 1)
    want = with_tokens(want, str(law or DEFAULT))
    if num is None:
        num = fewest(setting, want, (seconds or USUAL_DAYS * 86_400) / 86_400, must=seconds is not None)
        if seconds is None:
            note = f"{num:,} accelerators are the fewest that take at most {USUAL_DAYS:g} days; --count says another."
            return planned(setting, want, num, notes=(note,), spend=spend)
    elif seconds is not None:
        found = planned(setting, want, num, spend=spend)
        took = found.quantities["days"]
        if took.value > seconds / 86_400:
            need = fewest(setting, want, seconds / 86_400, must=False)
            extra = f"{one_value(took.value, 'days')} are more than the {one_value(seconds / 86_400, 'days')} given" + (
                f"; {need:,} accelerators come nearest." if not profile else ".")  # fmt: skip
            return replace(found, warnings=(extra, *found.warnings))
        return found
    return planned(setting, want, num, spend=spend)


def _machine(hardware: str | Accelerator | None, want: Asked | None) -> tuple[Accelerator, Profile | None]:
    """The accelerator, and the profile of this machine where it is this one."""
    if isinstance(hardware, Accelerator):
        return hardware, None
    if hardware == "here" or (hardware is None and want is not None and want.own):
        profile = read_profile()
        vendor = "CPU" if profile["device"] == "cpu" else ""
        # links, which one machine never uses, must not be 0
        return replace(this_machine(profile), vendor=vendor, scale_up=1e9, scale_out=1e9), profile
    return accelerator(hardware or USUAL_HARDWARE), None


def _rates(calibrate: str | Path | None) -> Rates:
    """Those that ship, with the misses of one's own measured rows where there are any."""
    if calibrate is None:
        return RATES
    from glassformer.plan.calibration import calibrate as fit
    from glassformer.plan.rows import measured_rows

    path = Path(calibrate)
    if not path.exists():
        raise UsageError(
            f"There is no file {path}.", expected="A table of measured steps, as data/measured_steps.csv."
        )
    return fit(measured_rows(path))


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
