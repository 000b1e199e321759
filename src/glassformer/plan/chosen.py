"""The layout of a run: the quickest that fits, or the one that the user gives; with what the next ones lose.

chosen(job, count)                      among all layouts (`search`); `job`'s own is ignored
chosen(job, count, quick=True)          among the usual ones, while a count or a size is looked for
given_layout("tensor=8,pipeline=16", count, job)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from glassformer.errors import UsageError, nearest
from glassformer.plan.layout import Job, Layout, Recompute
from glassformer.plan.memory import memory
from glassformer.plan.rates import RATES, Rates
from glassformer.plan.search import ROOM, search
from glassformer.units import show_bytes

_SHOWN = 4
"""Other layouts that are told."""
_SHORT = {"data": "dp", "tensor": "tp", "pipeline": "pp", "interleave": "vp", "context": "cp", "expert": "ep",
          "sharding": "zero", "micro_batch": "mb"}  # fmt: skip


class DoesNotFit(UsageError):
    """No layout of so many accelerators has the memory."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A job with the layout that was found for it."""

    job: Job
    rows: list[dict[str, Any]]
    """It and the runners-up: layout, step, memory, what is lost and where."""
    looked_at: int
    fit: int
    unfit: str = ""


def chosen(job: Job, count: int, rates: Rates = RATES, *, quick: bool = False) -> Chosen:
    """The quickest layout of `count` accelerators that fits; UsageError where none does."""
    if quick:
        return Chosen(replace(job, layout=_usual(job, count, rates)), [], 1, 1)
    found = search(job, count, rates=rates)
    if not len(found.seconds):
        _usual(job, count, rates)  # says why
        why = ", ".join(f"{n:,} {reason}" for reason, n in found.impossible.items())
        raise UsageError(
            f"None of {found.tried:,} layouts can be: {why}.", do="Give another --count or --batch."
        )
    first = replace(job, layout=found.best)
    rows = [_row(first, float(found.seconds[0]), "chosen")]
    for one in found.runners_up(_SHOWN):
        slower = f"+{one['seconds'] / found.seconds[0] - 1:.1%}"
        other = _row(replace(job, layout=one["layout"]), one["seconds"], slower)
        rows.append({**other, "loses on": one["where"]})
    return Chosen(
        first, rows, found.tried, len(found.seconds), _tempting(job, count, rates, float(found.seconds[0]))
    )


def _usual(job: Job, count: int, rates: Rates) -> Layout:
    """The best of the usual layouts."""
    found = search(job, count, rates=rates, room=math.inf, usual=True)
    if not len(found.seconds):
        raise UsageError(
            f"No layout divides {job.batch:,} rows of {job.architecture.name} among {count:,} accelerators.",
            expected=f"A number such as {_friendly(count)}, or a batch that the replicas can share.",
            do="Give another --count or --batch.",
        )  # fmt: skip
    fits = found.bytes <= ROOM * job.accelerator.memory
    if not fits.any():
        least = int(np.argmin(found.bytes))
        raise DoesNotFit(
            f"{job.architecture.name} does not fit on {count:,} x {job.accelerator.name}: the leanest layout "
            f"({in_words(found.at(least))}) needs {show_bytes(found.bytes[least])} of "
            f"{show_bytes(job.accelerator.memory)}.",
            do="Take more accelerators, or ones with more memory, or shorter rows.",
        )  # fmt: skip
    return found.at(int(np.argmax(fits)))


def _tempting(job: Job, count: int, rates: Rates, best: float) -> str:
    """Of the usual layouts that would be quicker and do not fit, the one that misses least."""
    found = search(job, count, rates=rates, room=math.inf, usual=True)
    misses = (found.bytes > ROOM * job.accelerator.memory) & (found.seconds < best)
    if not misses.any():
        return ""
    place = int(np.argmin(np.where(misses, found.bytes, np.inf)))
    return (
        f"{in_words(found.at(place))} would be {1 - found.seconds[place] / best:.1%} quicker, but needs "
        f"{show_bytes(found.bytes[place])} of the {show_bytes(job.accelerator.memory)}."
    )


def as_given(job: Job, took: float) -> Chosen:
    """The job with its own layout, whose step takes so long, as a choice."""
    needs = float(memory(job).total)
    unfit = ""
    if needs > job.accelerator.memory:
        has = show_bytes(job.accelerator.memory)
        unfit = f"This layout needs {show_bytes(needs)} of the {has} that there are: it does not fit."
    return Chosen(job, [_row(job, took, "given")], 1, int(not unfit), unfit)


def given_layout(text: str, count: int, job: Job) -> Layout:
    """`data=128,tensor=8,pipeline=16`; what is left out is 1, but data, which is the rest."""
    names = {field.name for field in fields(Layout)}
    values: dict[str, int] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, sign, value = part.partition("=")
        name = {short: long for long, short in _SHORT.items()}.get(name, name)
        if name not in names:
            raise UsageError(f"A layout has no {name!r};", expected=nearest(name, names))
        words = {one.name.lower(): int(one) for one in Recompute}
        if not sign or not (value.isdigit() or (name == "recompute" and value in words)):
            raise UsageError(
                f"{part!r} is no part of a layout.", expected=f"{name}=NUMBER, such as {name}=8."
            )
        values[name] = words[value] if value in words else int(value)
    others = [values.get(name, 1) for name in ("tensor", "pipeline", "context")]
    divided = int(np.prod(others))
    for name in ("tensor", "pipeline", "context", "interleave", "expert", "micro_batch", "data"):
        if values.get(name, 1) < 1:
            raise UsageError(f"{name}={values[name]} in the layout.", expected="At least 1.")
    if count % divided or values.get("data", count // divided) * divided != count:
        asked = f"data={values['data']}, " if "data" in values else ""
        raise UsageError(
            f"{asked}tensor x pipeline x context = {divided} do not make {count:,} accelerators.",
            expected=f"data x {divided} = {count:,}." if count % divided == 0 else f"A divisor of {count:,}.",
        )  # fmt: skip
    layout = Layout(**{"data": count // divided, "sharding": 1, **values})
    check(replace(job, layout=layout))
    return layout


def check(job: Job) -> None:
    """Whether the layout divides what it has to."""
    a, lay = job.architecture, job.layout
    problems = []
    if a.kind != "network" and a.heads % int(lay.tensor):
        problems.append(f"{a.heads} heads do not divide among tensor={lay.tensor}")
    if int(lay.pipeline) * int(lay.interleave) > a.all_layers:
        problems.append(
            f"{a.all_layers} layers are fewer than pipeline x interleave = {int(lay.pipeline) * int(lay.interleave)}"
        )
    if job.length % int(lay.context):
        problems.append(f"rows of {job.length} tokens do not divide among context={lay.context}")
    if job.batch % (int(lay.data) * int(lay.micro_batch)):
        problems.append(
            f"a batch of {job.batch:,} rows does not divide into data={lay.data} x micro_batch={lay.micro_batch}"
        )
    if int(lay.expert) > 1 and (not a.experts or a.experts % int(lay.expert)):
        problems.append(f"{a.experts} experts do not divide among expert={lay.expert}")
    if not 0 <= int(lay.sharding) <= 3:
        problems.append(f"sharding={lay.sharding} is no stage of ZeRO (0 to 3)")
    if problems:
        raise UsageError(
            f"The layout is impossible: {'; '.join(problems)}.", do="Change --layout, --batch or --length."
        )


def in_words(layout: Layout) -> str:
    """`dp 128, tp 8, pp 16`; what is 1 is left out."""
    said = [f"{short} {getattr(layout, name)}" for name, short in _SHORT.items()
            if int(getattr(layout, name)) > (0 if name == "sharding" else 1) or name == "data"]  # fmt: skip
    again = {Recompute.SELECTIVE: "recompute attention", Recompute.FULL: "recompute all"}.get(
        Recompute(int(layout.recompute))
    )
    return ", ".join([*said, *([again] if again else [])])


def _row(job: Job, took: float, name: str) -> dict[str, Any]:
    needs = float(memory(job).total)
    return {
        "which": name,
        "layout": in_words(job.layout),
        "step": f"{took:.3g} s",
        "memory": show_bytes(needs),
    }


def ladder(least: int = 1) -> list[int]:
    """Counts that divide well: 1, 2, 3, 4, 6, 8, 12, 16, ... up to 16 million."""
    return sorted(n for n in {2**k for k in range(25)} | {3 * 2**k for k in range(23)} if n >= least)


def _friendly(count: int) -> str:
    below = max((n for n in ladder() if n < count), default=1)
    above = next((n for n in ladder(count + 1)), below)
    return f"{below:,} or {above:,}"
