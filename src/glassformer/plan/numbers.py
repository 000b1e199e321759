"""The numbers of a plan, each with its formula, inputs and their source: from a job with a layout to days and dollars.

steps = D / (B s)                      days = steps t / 86400 / goodput         hours = 24 days n
utilisation = F B s / (t n peak)       goodput: failures, checkpoints and restarts, drawn 400 times (`simulate`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from glassformer.plan.asked import Asked
from glassformer.plan.campaigns import overhead
from glassformer.plan.course import Outlook, outlook
from glassformer.plan.failures import Between
from glassformer.plan.flops import forward, training
from glassformer.plan.goodput import stall_table
from glassformer.plan.intervals import product, within
from glassformer.plan.layout import Job, Recompute
from glassformer.plan.memory import FORMULAS, INTERVAL, Memory
from glassformer.plan.quantity import Quantity
from glassformer.plan.steptime import StepTime

NODE = 8
"""Accelerators that fail together, where nobody says."""

HOME_WATTS = Between(65.0, 20.0, 200.0, 0.8)
"""Of one's own machine. A guess."""


@dataclass(frozen=True)
class Numbers:
    """All of them, and the tables that belong to some."""

    quantities: dict[str, Quantity]
    stalls: Sequence[dict[str, Any]]
    time: Sequence[dict[str, Any]]


def numbers(
    want: Asked, job: Job, step: StepTime, held: Memory, *, step_error: float, own_machine: bool = False,
    timed: bool = False, own_rows: int = 0, price: float | None = None, carbon: float | None = None,
) -> Numbers:  # fmt: skip
    """Every number of a run of `job` over `want.tokens`.

    `step_error`: sigma of ln of the step's time. `timed`: it is made of what was measured on this machine. `own_rows`:
    measured steps of one's own that the rates carry over.
    """
    found = {one.name: one for one in _counted(want, job)}
    found |= {one.name: one for one in _measured(want, job, step, held, found, step_error, timed, own_rows)}
    course, stalls, rows = _course(job, found, own_machine)
    found |= {one.name: one for one in course}
    found |= {one.name: one for one in _spent(job, found, own_machine, price, carbon)}
    return Numbers(found, stalls, rows)


def _counted(want: Asked, job: Job) -> Iterator[Quantity]:
    """What is arithmetic on the model: no interval."""
    a, counted = job.architecture, job.architecture.parameters
    assert want.tokens is not None  # with_tokens
    parts = [Quantity(name, value, unit="parameters", formula=_PARTS.get(name, ""))
             for name, value in asdict(counted).items() if value]  # fmt: skip
    yield Quantity("parameters", counted.total, unit="parameters", formula="the sum of all parts",
                   inputs=tuple(parts), source=want.sources.get("parameters", "given"))  # fmt: skip
    if a.active_parameters != counted.total:
        yield Quantity("active_parameters", a.active_parameters, unit="parameters",
                       formula="all but the experts that a token is not sent to")  # fmt: skip
    tokens = want.quantity("tokens", want.tokens, "tokens")
    length = want.quantity("length", job.length, "tokens")
    batch = want.quantity("batch", job.batch, "rows")
    yield from (tokens, length, batch)
    row: dict[str, Any] = {"read_length": job.read_length, "predicted": want.predicted}
    once = forward(a, job.length, convention="causal", **row)
    shares = [
        Quantity(name, value, unit="FLOP", formula=_FORWARD[name])
        for name, value in asdict(once).items()
        if value
    ]
    count = partial(training, a, job.length, trained=job.trained, **row)
    each = Quantity(
        "flops_per_token", count(convention="causal"), unit="FLOP", inputs=(*shares, length),
        formula="3 x forward pass: the backward pass multiplies each gradient by both factors",
    )  # fmt: skip
    yield Quantity("flops", each.value * tokens.value, unit="FLOP", inputs=(each, tokens),
                   formula="FLOPs of a token x D; model FLOPs, causal: attention over what a token sees")  # fmt: skip
    done = count(
        convention="causal" if job.causal_half else "full", recompute=Recompute(int(job.layout.recompute))
    )
    for name, value, said in (
        ("flops_full", count(convention="full"), "the same, with attention over all s keys (PaLM, Megatron)"),
        ("flops_six_n", count(convention="six_n"), "6 N D, without vectors that are only looked up"),
        ("flops_hardware", done, "what the hardware does: with what is computed again"),
    ):
        yield Quantity(name, value * tokens.value, unit="FLOP", formula=said, inputs=(tokens,))


def _measured(
    want: Asked,
    job: Job,
    step: StepTime,
    held: Memory,
    found: dict[str, Quantity],
    step_error: float,
    timed: bool,
    own_rows: int,
) -> Iterator[Quantity]:
    """Memory and a step's time, whose errors were measured."""
    x, n = job.accelerator, int(job.layout.accelerators)
    parts = [Quantity(f"held_{row['name']}", float(row["bytes"]), unit="bytes", formula=FORMULAS[row["name"]])
             for row in held.rows() if row["name"] != "total" and row["bytes"]]  # fmt: skip
    value = float(held.total)
    yield Quantity("bytes_per_accelerator", value, value * INTERVAL[0], value * INTERVAL[1], "bytes",
                   f"the sum of all parts, on {held.where}", tuple(parts))  # fmt: skip
    peak = Quantity(
        "peak",
        x.peak(job.precision.peak),
        unit="FLOP/s",
        source=f"{x.name}, {job.precision.peak} dense: {x.provenance(job.precision.peak)}",
    )
    reached = x.achievable.get(job.precision.peak) or x.achievable.get("bf16")
    best = Quantity("achievable", reached or 0.8, unit="share",
                    source="ml-engineering: the best measured" if reached else "nobody published it: 0.8")  # fmt: skip
    how = {} if timed else _STEP
    here = "as glassformer bench measured operations of about that size on this machine" if timed else ""
    spent = [Quantity(row["part"], row["seconds"], unit="s", formula=how.get(row["part"], ""), source=here)
             for row in step.split() if row["share"] > 1e-4]  # fmt: skip
    seconds = within(
        "step_seconds", float(step.total), step_error, "s", inputs=tuple(spent) if timed else (*spent, peak, best),
        formula="micro-batches x (products + attention + elements + loss) + update" if timed else
        "M stages + bubble + head + exposed communication + optimiser + stalls; "
        + ("calibrated on " + (f"{own_rows} rows of your own" if own_rows else "published steps of such jobs")),
    )  # fmt: skip
    yield seconds
    accelerators = Quantity("accelerators", n, unit="accelerators", source="given" if n > 1 else "one")
    yield accelerators
    yield product("tokens_per_second", [(Quantity("tokens_per_step", job.tokens, unit="tokens", formula="B s"), 1),
                                        (seconds, -1)], "tokens", formula="B s / t")  # fmt: skip
    each = found["flops"].inputs[0]
    yield product("utilisation", [(each, 1), (Quantity("tokens_per_step", job.tokens, unit="tokens", formula="B s"), 1),
                                  (seconds, -1), (accelerators, -1), (peak, -1)], "share",
                  formula="F B s / (t n peak): model FLOPs, causal, of the datasheet's peak")  # fmt: skip
    steps = Quantity("steps", math.ceil(found["tokens"].value / job.tokens), unit="steps", formula="D / (B s)",
                     inputs=(found["tokens"], found["batch"], found["length"]))  # fmt: skip
    yield steps
    yield product(
        "days_undisturbed",
        [(steps, 1), (seconds, 1)],
        "days",
        constant=1 / 86_400,
        formula="steps x t / 86400",
    )


def _course(
    job: Job, found: dict[str, Quantity], own_machine: bool
) -> tuple[list[Quantity], Sequence[dict[str, Any]], Sequence[dict[str, Any]]]:
    """Failures, checkpoints and what they leave of the time."""
    n = int(job.layout.accelerators)
    work = found["days_undisturbed"].value * 86_400
    seen = outlook(
        work, parameters=found["parameters"].value, accelerators=n, per_node=min(n, NODE), precision=job.precision,
        step_seconds=found["step_seconds"].value,
    )  # fmt: skip
    course, back, ends = seen.course, seen.recovery, seen.ends
    r = seen.rate.within(0.8)
    fails = Quantity(
        "failure_rate", r.value, r.low, r.high, "failures for each 1000 node-days", source=seen.rate.source
    )
    node = Quantity("nodes", seen.nodes, unit="nodes", formula=f"n / {NODE}", inputs=(found["accelerators"],))
    between = product(
        "mtbf_hours", [(node, -1), (fails, -1)], "h", constant=24_000, formula="24 h / (nodes r / 1000)"
    )
    size = Quantity(
        "checkpoint_bytes",
        seen.checkpoint_bytes,
        unit="bytes",
        formula="N x (weights + masters + two moments)",
    )
    stall = Quantity("stall", course.saving.stall, unit="s", inputs=(size,),
                     formula="1 s + bytes of an accelerator / 10 GB/s: the copy to the host")  # fmt: skip
    restart = Quantity(
        "restart", back.seconds, unit="s",
        formula="detect + reschedule + start + restore + warm up; data/failures.csv and 2509.16293",
        inputs=tuple(Quantity(name, value, unit="s") for name, value in asdict(back).items()),
    )  # fmt: skip
    tau = Quantity("checkpoint_interval", course.interval, unit="s", inputs=(stall, between, restart),
                   formula="sqrt(2 (M + R) delta + delta^2), and no shorter than a write (2410.18124)")  # fmt: skip
    broken, good, days = (ends.within(name) for name in ("interruptions", "goodput", "days"))
    if broken.value < 3:  # a median of few says little: the mean, and how unsure it is
        mean = seen.nodes * days.value / 1000
        broken = Between(mean * r.value, mean * r.low, mean * r.high, 0.8)
    interruptions = _between(
        "interruptions",
        broken,
        "interruptions",
        "drawn 400 times: Poisson, with r drawn as well",
        (node, fails, found["days_undisturbed"]),
    )
    others = Quantity("evaluation", course.evaluation, unit="share", source="BLOOM: 12 min every 1000 steps")
    how = (
        "steps / time, drawn 400 times with failures, saves, restarts, evaluation, planned stops and rewinds"
    )
    goodput = _between("goodput", good, "share", how, (between, tau, stall, restart, others))
    needed = product(
        "days", [(found["days_undisturbed"], 1), (goodput, -1)], "days", formula="days undisturbed / goodput"
    )
    spans = overhead()
    billed = Quantity(
        "billed",
        1.0,
        spans.low / spans.value,
        spans.high / spans.value,
        source="published campaigns: hours billed for each hour that their steps take, about their median",
    )
    if own_machine:
        billed = Quantity("billed", 1.0, source="nobody bills it")
    hours = product("accelerator_hours", [(needed, 1), (found["accelerators"], 1), (billed, 1)], "h", constant=24,
                    formula="24 x days x n x what is billed")  # fmt: skip
    stalls = [] if own_machine else _stalls(seen, work, n)
    return (
        [between, tau, interruptions, goodput, needed, hours],
        stalls,
        _where_days_go(seen, work, broken.value, days.value),
    )


def _where_days_go(seen: Outlook, work: float, failures: float, days: float) -> list[dict[str, Any]]:
    """Rows `part, days`; what is done again is what the others leave."""
    course, day = seen.course, 86_400
    parts = {
        "training": work / day, "evaluation": course.evaluation * work / day,
        "saving": course.segments * course.saving.stall / day,
        "restarts": failures * (seen.recovery.seconds + course.saving.write) / day,
        "planned stops and rewinds": course.stretch * days,
    }  # fmt: skip
    parts["work done again"] = max(0.0, days - sum(parts.values()))
    return [{"part": name, "days": value} for name, value in parts.items()]


def _stalls(seen: Outlook, work: float, accelerators: int) -> list[dict[str, Any]]:
    """What checkpoints that stall for 10 s up to 5 min would cost."""
    told = stall_table(
        seen.mtbf_hours, seen.recovery.seconds, work_days=work / 86_400, accelerators=accelerators
    )
    return [
        {
            "a checkpoint stalls for": f"{row['stall_seconds']:g} s",
            "saved every": f"{row['interval_minutes']:.3g} min", "goodput": f"{row['goodput']:.1%}",
            "days": row["days"], "accelerator hours lost": round(row["lost_accelerator_hours"]),
        }
        for row in told
    ]  # fmt: skip


def _spent(
    job: Job, found: dict[str, Quantity], own_machine: bool, price: float | None, carbon: float | None
) -> Iterator[Quantity]:
    """Energy and money."""
    from glassformer.plan import energy, money

    x, hours = job.accelerator, found["accelerator_hours"]
    watts = energy.power(x)
    if own_machine and not x.power:
        watts = energy.Power(
            HOME_WATTS, "a guess: a laptop takes 20 W, a workstation 200 W; nobody metered this one"
        )
    each = _between("watts", watts.watts, "W", "", (), watts.basis)
    pue = _between("pue", energy.PUE, "", "", (), "1.1 at hyperscalers to 1.25 (2405.21015)")
    if own_machine:
        pue = Quantity("pue", 1.0, source="at home nothing is added")
    used = product(
        "megawatt_hours",
        [(hours, 1), (each, 1), (pue, 1)],
        "MWh",
        constant=1e-6,
        formula="hours x W x PUE / 1e6",
    )
    yield used
    yield product(
        "megawatts",
        [(each, 1), (pue, 1), (found["accelerators"], 1)],
        "MW",
        constant=1e-6,
        formula="n W PUE / 1e6",
    )
    if carbon is not None:
        grid = Quantity("grid_carbon", carbon, unit="kg/kWh", source="given")
        yield product("carbon", [(used, 1), (grid, 1)], "t CO2", formula="MWh x kg/kWh")
    current = _between(
        "electricity", money.ELECTRICITY, "$/kWh", "", (), "EIA, industry in the USA, 2014 to 2025, by Epoch"
    )
    if own_machine:
        yield product(
            "dollars",
            [(used, 1), (current, 1)],
            "$",
            constant=1000,
            formula="kWh x $/kWh: the machine is yours",
        )
        return
    for term, name in (
        ("on demand", "dollars"),
        ("1 year", "dollars_one_year"),
        ("3 years", "dollars_three_years"),
    ):
        quoted = money.cloud_price(x, term)
        paid = _between(
            "price", quoted.usd, "$/h", "", (), f"{term}, in dollars of {quoted.year}: {quoted.source}"
        )
        if price is not None and name == "dollars":
            paid = Quantity("price", price, unit="$/h", source="given")
        yield product(name, [(hours, 1), (paid, 1)], "$", formula="hours x price of an hour")
    every = money.costs(x, hours.value, hours=Between(hours.value, hours.low, hours.high, 0.8))
    for cost, name in ((every.owned, "dollars_owned"), (every.project, "dollars_project")):
        parts = tuple(Quantity(part, value, unit="$") for part, value in cost.parts.items())
        yield _between(
            name, cost.usd, "$", _BASES[name], (hours, *parts), f"{cost.source}; dollars of {cost.year}"
        )


def _between(
    name: str, one: Between, unit: str, formula: str, inputs: Sequence[Quantity] = (), source: str = ""
) -> Quantity:
    return Quantity(name, one.value, one.low, one.high, unit, formula, tuple(inputs), source)


_BASES = {
    "dollars_owned": "hours x (server / (1 - 0.19) x 0.14 ln 10 / 8766 + kW PUE $/kWh): hardware's loss, and energy",
    "dollars_project": "owned x experiments / (1 - staff): with failed runs and people",
}

_PARTS = {
    "embedding": "V d", "positions": "positions x d", "attention": "L (2 d h e + 2 d k e)",
    "feedforward": "L x matrices x d f",
    "experts": "layers x experts x matrices x d f_e", "router": "layers x d x experts",
    "head": "V d, where it is not tied",
}  # fmt: skip

_FORWARD = {
    "attention_products": "2 x entries of q, k, v and output, all layers",
    "pattern": "4 s_seen h e L: q k^T and pattern v",
    "feedforward": "2 x entries, of the experts those that a token is sent to", "head": "2 V d",
}  # fmt: skip

_STEP = {
    "matmul": "FLOPs / (achievable peak x rate x what tiles and waves leave)",
    "pattern": "FLOPs of fused attention / its rate",
    "bandwidth": "bytes of norms, residuals and activations / bandwidth, and launches",
    "recompute": "what the backward pass computes again", "head": "2 V d a token, and the logits' bytes",
    "tensor": "4 all-reduces of 2 b s d bytes a layer and micro-batch, what is exposed",
    "data": "gradients scattered and weights gathered, what the backward pass does not hide",
    "pipeline": "2 b s d bytes at each boundary, what is exposed", "context": "keys and values between context ranks",
    "expert": "tokens to their experts and back", "bubble": "(p - 1) / v stages' time",
    "optimizer": "bytes of states / bandwidth",
    "stalls": "1.2 % for each doubling beyond 8 accelerators, data and host",
}  # fmt: skip
