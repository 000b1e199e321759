"""Accelerator-hours of whole campaigns: what a run is billed, not what its steps take.

    ideal hours  = FLOPs / (peak x utilisation)           utilisation: model FLOPs (full convention) by the dense peak
    billed hours = ideal hours x overhead                 restarts, evaluation, ramp-up, failed attempts

The overhead is what campaigns with a published speed were billed beyond it. Where no speed is published, utilisation is
that of the nearest measured steps (data/measured_steps.csv): the same generation of hardware, then precision, size of
the model, accelerators, length of a row. Intervals come from the errors of this on other campaigns
(data/training_runs.csv), each left out in turn. Llama 3's small models were billed more than twice what their steps can
have taken; nothing in a plan foresees that, and they are in the interval.

A run is circular where its speed was computed from its hours, or its hours from its speed: it proves nothing and is
left out of every figure. Hours that others inferred are marked as guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from glassformer.plan.architecture import Architecture
from glassformer.plan.failures import Between
from glassformer.plan.flops import forward, training
from glassformer.plan.hardware import Accelerator, accelerators, data_rows
from glassformer.plan.layout import Recompute
from glassformer.plan.precision import PRECISIONS, Peak, Precision
from glassformer.stats import median

NEIGHBOURS = 5
_TOKENS_PER_SECOND = {
    "llama1-65b": (380.0, "LLaMA paper, 2302.13971: tokens a second for each GPU"),
    "tinyllama-1.1b": (24_000.0, "its README: tokens a second for each GPU"),
    "bloom-176b": (2048 * 2048 / 105.2 / 384, "steps of 105.2 s"),
    "bloomberggpt-50b": (2048 * 2048 / 32.5 / 512, "2303.17564: steps of 32.5 s"),
    "palm-540b": (238_300 / 6144, "2204.02311: tokens a second on 6144 chips"),
}
"""Speeds that are printed beside the runs, for each accelerator."""
_CIRCULAR = (
    "gpt3-175b",
    "patterson",
    "lamda",
    "amazon-titan",
    "gpt4",
    "gemini",
    "grok3",
    "deepseek-v3",
    "falcon",
)
"""Their utilisation is FLOPs by hours, or their hours and FLOPs come from one estimate, or (DeepSeek-V3) hours are
stated for each trillion tokens."""
_UNSAID = {
    "A100": "A100-SXM-40GB",
    "H100": "H100-SXM-80GB",
    "V100": "V100-SXM2-32GB",
    "H800": "H800-SXM-80GB",
}
"""Where only the generation is named."""
_NOT_A_RUN = ("aggregate", "distilled")
"""Hours of several models together, or of a model that learns from another: their FLOPs are not 6 N D."""
_GUESSED = ("speculative", "inference", "Epoch", "assumption", "coarse", "planned")


@dataclass(frozen=True, slots=True)
class Campaign:
    """One published training run."""

    id: str
    model: str
    organisation: str
    date: str
    kind: Accelerator
    precision: Precision
    accelerators: int | None
    parameters: float | None
    """That a token meets."""
    tokens: float | None
    flops: float
    """Of the whole run: model FLOPs, full convention."""
    hours: float
    """Accelerator-hours as published."""
    utilisation: float | None
    """At the published speed."""
    speed: str
    """Where that is from."""
    circular: bool
    guessed: bool
    length: int
    source: str

    @property
    def ideal(self) -> float | None:
        """Hours at the published speed."""
        return _hours(self.flops, self.kind, self.precision, self.utilisation) if self.utilisation else None

    @property
    def billed_utilisation(self) -> float:
        return self.flops / (3600 * self.hours * self.kind.peak(self.precision.peak))


@dataclass(frozen=True, slots=True)
class Held:
    """A campaign beside what the others say of it."""

    campaign: Campaign
    computed: Between

    @property
    def error(self) -> float:
        return self.computed.value / self.campaign.hours - 1

    @property
    def holds(self) -> bool:
        return self.computed.low <= self.campaign.hours <= self.computed.high

    def row(self) -> dict[str, Any]:
        one = self.campaign
        return {
            "run": one.id, "given": "speed" if one.utilisation else "hardware and model",
            "computed": self.computed.value, "low": self.computed.low, "high": self.computed.high,
            "published": one.hours, "error": self.error, "holds": self.holds,
            "hours": "guessed" if one.guessed else "published",
        }  # fmt: skip


def accelerator_hours(
    flops: float,
    kind: Accelerator,
    precision: Precision,
    *,
    utilisation: float | None = None,
    parameters: float | None = None,
    accelerators: float | None = None,
    length: int = 2048,
) -> Between:
    """Billed hours of a run of so many model FLOPs, with an 80 % interval; at a known utilisation, or without."""
    return _computed(
        flops, kind, precision, utilisation, (parameters, accelerators, length), _evidence(), exclude=""
    )


def overhead() -> Between:
    """Billed hours for each ideal one, of campaigns whose speed is published."""
    ratios = sorted(_overheads(_evidence()))
    return Between(median(ratios), ratios[0], ratios[-1], 0.8)


def left_out() -> list[Held]:
    """Every campaign that is not circular, computed from the others."""
    return [Held(one, foresee(one)) for one in _evidence()]


def runs_like(
    flops: float, kind: Accelerator, accelerators: float | None = None, count: int = 3
) -> list[dict[str, Any]]:
    """The published runs nearest to a plan in FLOPs, generation of hardware and number of accelerators."""

    def distance(one: Campaign) -> float:
        apart = abs(math.log10(one.flops / flops)) + 0.5 * (_generation(one.kind) != _generation(kind))
        if accelerators and one.accelerators:
            apart += 0.5 * abs(math.log10(one.accelerators / accelerators))
        return apart

    return [
        {
            "run": one.model, "organisation": one.organisation, "date": one.date, "accelerator": one.kind.name,
            "accelerators": one.accelerators, "flops": one.flops, "accelerator_hours": one.hours,
            "utilisation_billed": one.billed_utilisation, "source": one.source,
        }
        for one in sorted(campaigns(), key=distance)[:count]
    ]  # fmt: skip


@cache
def campaigns(path: Path | None = None) -> tuple[Campaign, ...]:
    """All whose FLOPs and hours are known; of another table with the same columns, where `path` names one."""
    return tuple(one for row in data_rows("training_runs", path) if (one := _read(row)))


def foresee(one: Campaign) -> Between:
    """Hours of a campaign, from all shipped ones but itself."""
    others = [other for other in _evidence() if other.id != one.id]
    known_of = (one.parameters, one.accelerators, one.length)
    return _computed(one.flops, one.kind, one.precision, one.utilisation, known_of, others, exclude=one.model)


def typical_utilisation(
    kind: Accelerator,
    precision: Precision,
    parameters: float | None = None,
    accelerators: float | None = None,
    length: int = 2048,
    exclude: str = "",
) -> float:
    """Median of the nearest measured steps; of others' generations where none of its own was measured."""
    return _typical(_generation(kind), precision.peak, parameters, accelerators, length, _plain(exclude))


@cache
def _typical(
    generation: str,
    peak: Peak,
    parameters: float | None,
    accelerators: float | None,
    length: int,
    exclude: str,
) -> float:
    seen = [one for one in _measured() if not exclude.startswith(one.model)]
    own = [one for one in seen if one.generation == generation] or seen

    def distance(one: _Measured) -> float:
        apart = 1.0 * (one.peak != peak) + abs(math.log10(one.length / length))
        if parameters:
            apart += abs(math.log10(one.parameters / parameters))
        if accelerators:
            apart += 0.5 * abs(math.log10(one.accelerators / accelerators))
        return apart

    return median([one.utilisation for one in sorted(own, key=distance)[:NEIGHBOURS]])


@dataclass(frozen=True, slots=True)
class _Measured:
    """One measured step, as a neighbour."""

    model: str
    generation: str
    peak: Peak
    parameters: float
    accelerators: float
    length: int
    utilisation: float


@cache
def _measured() -> tuple[_Measured, ...]:
    from glassformer.plan.rows import measured_rows  # a plan needs none of them

    found = []
    for row in measured_rows():
        job = row.job
        if (
            job is None
            or not row.seconds
            or row.task != "pretrain"
            or job.precision.peak not in job.accelerator.peaks
        ):
            continue
        count, peak = float(row.fields["n_accel"]), job.precision.peak
        done = training(job.architecture, job.length, read_length=job.read_length) * job.tokens
        utilisation = done / (row.seconds * count * job.accelerator.peak(peak))
        found.append(
            _Measured(
                _plain(job.architecture.name), _generation(job.accelerator), peak, job.architecture.active_parameters,
                count, job.length, utilisation,
            )
        )  # fmt: skip
    return tuple(found)


def _evidence() -> list[Campaign]:
    return [one for one in campaigns() if not one.circular]


def _computed(
    flops: float,
    kind: Accelerator,
    precision: Precision,
    utilisation: float | None,
    known_of: tuple[float | None, float | None, int],
    others: Sequence[Campaign],
    exclude: str,
) -> Between:
    """Ideal hours times the others' overhead; the interval is what this was wrong by on the others, the middle 80 %."""
    more = median(_overheads(others))
    if utilisation:
        errors = [math.log(ratio / more) for ratio in _overheads(others)]
    else:
        errors = [
            math.log(one.hours / (_hours(one.flops, one.kind, one.precision, _guess(one)) * more))
            for one in others
        ]
    used = utilisation or typical_utilisation(kind, precision, *known_of, exclude)
    value = _hours(flops, kind, precision, used) * more
    wide = _ninth_decile([abs(one) for one in errors])
    return Between(value, value * math.exp(-wide), value * math.exp(wide), 0.8)


def _guess(one: Campaign) -> float:
    return typical_utilisation(
        one.kind, one.precision, one.parameters, one.accelerators, one.length, one.model
    )


def _overheads(given: Sequence[Campaign]) -> list[float]:
    return [one.hours / one.ideal for one in given if one.ideal]


def _ninth_decile(values: Sequence[float]) -> float:
    """The value that one more, like these, stays below with 80 %: rank 0.8 (n + 1) of n."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(0.8 * (len(ordered) + 1)) - 1)]


def _hours(flops: float, kind: Accelerator, precision: Precision, utilisation: float) -> float:
    return flops / (3600 * kind.peak(precision.peak) * utilisation)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _generation(kind: Accelerator) -> str:
    """`A100-SXM-40GB` and `A100-PCIe-80GB` compute alike."""
    name = kind.name.split("-")[0] if not kind.name.startswith("TPU") else kind.name
    return {"H800": "H100", "H200": "H100", "GH200": "H100", "GB200": "B200", "GB300": "B300"}.get(name, name)


def _read(row: Mapping[str, str]) -> Campaign | None:
    name = _UNSAID.get(row["accelerator"], row["accelerator"])
    hours = _number(row, "accel_hours")
    if hours is None and row["n_accel"] and row["wall_days"]:
        hours = 24 * float(row["n_accel"]) * float(row["wall_days"])
    flops = _flops(row)
    is_run = row["arch"] != "search" and not any(word in row["hours_kind"] for word in _NOT_A_RUN)
    if not (hours and flops and is_run and name in accelerators()):
        return None
    kind = accelerators()[name]
    precision = _precision(row["precision"], kind)
    utilisation, speed = _speed(row, flops, kind.peak(precision.peak))
    parameters = _number(row, "params_active") or _number(row, "params_total")
    count, length = _number(row, "n_accel"), _number(row, "seq_len")
    return Campaign(
        row["id"], row["model"], row["org"], row["date"], kind, precision, int(count) if count else None, parameters,
        _number(row, "tokens"), flops, hours, utilisation, speed, row["id"].startswith(_CIRCULAR),
        any(word in row["hours_kind"] for word in _GUESSED), int(length) if length else 2048, row["source"],
    )  # fmt: skip


def _precision(words: str, kind: Accelerator) -> Precision:
    """As named; 16 bits where nothing is, or where the hardware has no such products."""
    named = next((name for name in ("fp32", "fp8", "fp16", "bf16") if name in words.lower()), "bf16")
    if named == "fp32" or PRECISIONS[named].peak in kind.peaks:
        return PRECISIONS[named]
    return PRECISIONS["bf16" if "bf16" in kind.peaks else "fp16"]


def _flops(row: Mapping[str, str]) -> float | None:
    """Exact where the shape is known, otherwise 6 N D, otherwise as reported."""
    tokens = _number(row, "tokens")
    architecture = _architecture(row)
    if architecture and tokens:
        return training(architecture, int(_number(row, "seq_len") or 2048)) * tokens
    parameters = _number(row, "params_active") or _number(row, "params_total")
    if parameters and tokens:
        return 6 * parameters * tokens
    return _number(row, "train_flops_reported")


def _architecture(row: Mapping[str, str]) -> Architecture | None:
    if row["arch"] != "decoder" or not (row["layers"] and row["d_ff"]):
        return None
    whole = {
        name: int(float(row[name]))
        for name in ("layers", "d_model", "heads", "d_ff", "ffn_matrices", "vocab")
    }
    head_width = 256 if row["id"] == "palm-540b" else whole["d_model"] // whole["heads"]
    return Architecture(
        name=row["id"], layers=whole["layers"], width=whole["d_model"], heads=whole["heads"],
        kv_heads=int(float(row["kv_heads"])), head_width=head_width, ff_width=whole["d_ff"],
        ff_matrices=whole["ffn_matrices"], vocab=whole["vocab"],
    )  # fmt: skip


def _speed(row: Mapping[str, str], flops: float, peak: float) -> tuple[float | None, str]:
    """Utilisation in the full convention, and where it is printed."""
    tokens = _number(row, "tokens")
    if row["id"] in _TOKENS_PER_SECOND and tokens:
        per_second, source = _TOKENS_PER_SECOND[row["id"]]
        return flops / tokens * per_second / peak, source
    share, speed = _number(row, "mfu_pct"), _number(row, "tflops_per_accel")
    if share:
        return share / 100, "its utilisation"
    if not speed:
        return None, ""
    again, architecture = 1.0, _architecture(row)
    if "recompute" in row["flop_convention"] and architecture:
        length = int(_number(row, "seq_len") or 2048)
        again = training(architecture, length, recompute=Recompute.FULL) / (
            3 * forward(architecture, length).total
        )
    return speed * 1e12 / again / peak, "its FLOP/s"


def _number(row: Mapping[str, str], column: str) -> float | None:
    return float(row[column]) if row[column] else None
