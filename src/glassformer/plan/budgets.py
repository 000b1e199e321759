"""A budget and nothing else: the best model and tokens for it, by turns with what a step of them then takes.

FLOPs = hours x 3600 x peak x utilisation      utilisation: what the plan of the last guess reaches, from 0.35 on
hours: accelerators x time, dollars / price, or both, the lesser
"""

from __future__ import annotations

import math

from glassformer.errors import UsageError
from glassformer.plan import energy, given, money
from glassformer.plan.allocate import best_size, usual
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
    share, found, guess = 0.35, None, 0.0
    for _ in range(8):
        hours = _hours(setting, count, seconds, spend, flops, share * peak)
        guess = flops or hours * 3600 * share * peak
        if count and guess / (count * share * peak) > LONGEST * 86_400:
            raise UsageError(
                f"{guess:.3g} FLOPs take {count:,} x {setting.machine.name} "
                f"{one_value(guess / (count * share * peak) / 86_400, 'days')}.",
                expected="More accelerators, or less of a budget.",
            )  # fmt: skip
        least = _least(setting, count or 1)
        if guess < least:
            worth = one_value(least / (share * peak) / 3600 * _price(setting), "$")
            raise UsageError(
                f"The budget trains nothing: it is {guess:.2g} FLOPs on {count or 1:,} x {setting.machine.name}.",
                expected=f"At least {least:.2g} FLOPs, {worth}: the smallest model that is counted, for ten steps.",
            )
        best = best_size(
            guess, setting.law, length=setting.length or LENGTH, serve=setting.serve, unique=setting.unique
        )
        said = f"best for {guess:.3g} FLOPs by the law {best.law.name}: {best.law.source}"
        want = Asked(
            best.architecture.name, best.architecture, best.tokens, setting.length or LENGTH, batch=setting.batch,
            precision=setting.precision, own=setting.own, sources={"parameters": said, "tokens": said,
            "length": "4,096, or given"},
        )  # fmt: skip
        num = count or fewest(setting, want, (seconds / 86_400) if seconds else USUAL_DAYS, must=False)
        found = planned(setting, want, num, optimum=best, quick=True)
        took = found.quantities["accelerator_hours"].value
        reached = found.quantities["flops"].value / (took * 3600 * peak)
        if flops or abs(reached / share - 1) < _CLOSE:
            break
        share = reached
    assert found is not None
    return planned(setting, want, num, optimum=best, spend=spend)


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
    if setting.price is not None:
        return setting.price
    if setting.own:
        return energy.power(setting.machine).watts.value / 1000 * money.ELECTRICITY.value
    return money.cloud_price(setting.machine).usd.value
