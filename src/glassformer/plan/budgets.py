"""A budget and nothing else: the best model and tokens for it, by turns with what a step of them then takes.

FLOPs = hours x 3600 x peak x utilisation      utilisation: what the plan of the last guess reaches, from 0.35 on
hours: accelerators x time, dollars / price, or both, the lesser
"""

from __future__ import annotations

import math

from glassformer.errors import UsageError
from glassformer.plan import energy, given, money
from glassformer.plan.allocate import BestSize, best_size, usual
from glassformer.plan.asked import LENGTH, Asked
from glassformer.plan.flops import training
from glassformer.plan.plan import Plan
from glassformer.plan.settled import Setting, fewest, planned
from glassformer.plan.words import one_value

USUAL_DAYS = 90.0
"""As long as the longest runs take."""
LONGEST = 1000 * 365.25
"""Days, beyond which a budget is refused."""
_CLOSE = 0.02
"""The utilisation that was guessed is right to this share."""


def best_for(setting: Setting, count: int | None, seconds: float | None, spend: given.Budget | None) -> Plan:
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
    days = seconds / 86_400 if seconds else USUAL_DAYS
    share = 0.35
    for _ in range(8):
        guess = flops or 3600 * share * peak * _hours(setting, count, seconds, spend)
        _check(setting, guess, count, share * peak)
        best = best_size(
            guess, setting.law, length=_length(setting), serve=setting.serve, unique=setting.unique
        )
        want = _asked(setting, best)
        num = count or fewest(setting, want, days, must=False)
        found = planned(setting, want, num, optimum=best, quick=True).quantities
        reached = found["flops"].value / (found["accelerator_hours"].value * 3600 * peak)
        if flops or abs(reached / share - 1) < _CLOSE:
            break
        share = reached
    return planned(setting, want, num, optimum=best, spend=spend)


def _asked(setting: Setting, best: BestSize) -> Asked:
    said = f"best for {best.flops:.3g} FLOPs by the law {best.law.name}: {best.law.source}"
    sources = {"parameters": said, "tokens": said}
    sources |= {name: "given" for name in ("length", "batch") if getattr(setting, name)}
    sources.setdefault("length", f"{LENGTH:,}, where nobody says")
    return Asked(
        best.architecture.name, best.architecture, best.tokens, _length(setting), batch=setting.batch,
        precision=setting.precision, own=setting.own, sources=sources,
    )  # fmt: skip


def _check(setting: Setting, flops: float, count: int | None, speed: float) -> None:
    """Refuse what trains nothing, and what takes a thousand years."""
    days = flops / speed / (count or 1) / 86_400
    if count and days > LONGEST:
        raise UsageError(
            f"{flops:.3g} FLOPs take {count:,} x {setting.machine.name} {one_value(days, 'days')}.",
            expected="More accelerators, or less of a budget.",
        )
    least = (
        10
        * min(count or 1, 1024)
        * _length(setting)
        * training(usual(1e4), _length(setting), convention="causal")
    )
    if flops < least:
        worth = one_value(least / speed / 3600 * _price(setting), "$")
        raise UsageError(
            f"The budget trains nothing: it is {flops:.2g} FLOPs on {count or 1:,} x {setting.machine.name}.",
            expected=f"At least {least:.2g} FLOPs, {worth}: the smallest model that is counted, for ten steps of a row "
            "for each accelerator.",
        )


def _length(setting: Setting) -> int:
    return setting.length or LENGTH


def _hours(
    setting: Setting, count: int | None, seconds: float | None, spend: given.Budget | None
) -> float:  # fmt: skip
    """Accelerator hours that the budget buys: the lesser of what time and money allow."""
    allowed = [math.inf]
    if seconds is not None and count is not None:
        allowed.append(count * seconds / 3600)
    if spend is not None and spend.kind == "dollars":
        allowed.append(spend.value / _price(setting))
    return min(allowed)


def _price(setting: Setting) -> float:
    """Dollars an hour."""
    if setting.price is not None:
        return setting.price
    if setting.own:
        return energy.power(setting.machine).watts.value / 1000 * money.ELECTRICITY.value
    return money.cloud_price(setting.machine).usd.value
