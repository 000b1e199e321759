"""What a run will cost, before spending: FLOPs, memory, time, layout, failures, energy, money, each number with an
interval of 80 %, its formula, its inputs and their source.

    plan("llama-3.1-405b", hardware="h100-sxm", count=16_384)     how long, how much
    plan("llama-3.1-405b", hardware="h100-sxm", days=60)          how many accelerators
    plan(budget="1e24", hardware="h100-sxm", count=1024)          the best model for a budget, and all of the above
    plan("demo")                                                  a recipe, on this machine

    steps = D / (B s)       days = steps step / goodput / 86400       hours = 24 days accelerators

How intervals are carried from number to number says `intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError, nearest
from glassformer.plan.allocate import BestSize
from glassformer.plan.layout import CHOICES, Job
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import bare, number, one_value, shown, shown_interval
from glassformer.units import show_bytes

if TYPE_CHECKING:
    from glassformer.plan.memory import Memory
    from glassformer.plan.steptime import StepTime

MAIN = (
    "flops", "parameters", "bytes_per_accelerator", "step_seconds", "days", "accelerator_hours", "dollars",
    "megawatt_hours", "interruptions", "goodput",
)  # fmt: skip
"""The ten numbers, beside the layout."""


@dataclass(frozen=True)
class Plan:
    """A run, planned."""

    title: str
    job: Job
    quantities: Mapping[str, Quantity]
    """Every number by name: the ten of `MAIN` and others."""
    step: StepTime = field(repr=False)
    memory: Memory = field(repr=False)
    layouts: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """The chosen layout, and what the next ones lose."""
    unfit: str = ""
    """What does not fit, in a sentence."""
    warnings: Sequence[str] = ()
    nearest: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Published runs of about as many FLOPs."""
    optimum: BestSize | None = field(default=None, repr=False)
    loss_at: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    """Validation loss to be expected after so many tokens, by a law of one's own runs."""
    notes: Sequence[str] = ()
    stalls: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """What checkpoints of 10 s up to 5 min would cost."""
    time: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Where the days go: training, saving, work done again, restarts."""
    looked_at: int = 1
    fit: int = 1
    """Layouts."""
    own_machine: bool = False

    def __getattr__(self, name: str) -> Quantity:
        quantities = self.__dict__.get("quantities", {})
        if name in quantities:
            return quantities[name]  # type: ignore[no-any-return]
        raise AttributeError(f"A plan has no {name!r}.")

    @cached_property
    def layout(self) -> dict[str, int]:
        """How the run is divided."""
        lay = self.job.layout
        return {name: int(getattr(lay, name)) for name in CHOICES}

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file or another program."""
        divided = {
            "value": self.layout,
            "low": None,
            "high": None,
            "unit": "",
            "source": "the quickest that fits",
        }
        return {
            "title": self.title, **{name: one.to_dict() for name, one in self.quantities.items()}, "layout": divided,
            "tokens_per_step": self.job.tokens, "step_split": self.split(), "memory": self.memory_rows(),
            "layouts": [dict(row) for row in self.layouts], "nearest": [dict(row) for row in self.nearest],
            "loss_at": [dict(row) for row in self.loss_at], "warnings": list(self.warnings),
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The numbers as a table: name, value, interval, and where it is from."""
        return [
            {"number": name, "value": shown(one), "80 % between": shown_interval(one),
            "from": one.formula or one.source}
            for name, one in self.quantities.items()
        ]  # fmt: skip

    def explain(self, name: str) -> list[tuple[int, Quantity]]:
        """One number down to what it was computed from: (depth, quantity)."""
        if name not in self.quantities:
            raise UsageError(
                f"There is no number {name!r} in a plan;", expected=nearest(name, self.quantities)
            )
        return list(self.quantities[name].walk())

    def split(self) -> list[dict[str, Any]]:
        """What a step is spent on: part, seconds, share; largest first."""
        return sorted(
            (row for row in self.step.split() if row["share"] > 0.0005), key=lambda row: -row["seconds"]
        )

    def memory_rows(self) -> list[dict[str, Any]]:
        """What the fullest accelerator holds: part, bytes, share of what it has."""
        rows = (
            {"part": row["name"], "bytes": float(row["bytes"])}
            for row in self.memory.rows()
            if row["name"] != "total"
        )
        return sorted((row for row in rows if row["bytes"] > 0), key=lambda row: -row["bytes"])

    def _repr_html_(self) -> str:
        from glassformer.plan.page import card

        return card(self)

    def sentence(self) -> str:
        """The answer in one sentence."""
        days, dollars = self.quantities["days"], self.quantities["dollars"]
        hours = self.quantities["accelerator_hours"]
        count = int(self.job.layout.accelerators)
        who = (
            f"{count:,} accelerators"
            if count > 1
            else "one accelerator"
            if not self.own_machine
            else "this machine"
        )
        return (
            f"{_with_interval(days)} on {who}"
            + (f", {bare(one_value(hours.value, 'tokens'))} accelerator hours" if count > 1 else "")
            + f": {_with_interval(dollars)} {'of electricity' if self.own_machine else 'rented'}, "
            f"{_with_interval(self.quantities['megawatt_hours'])}."
        )

    def memory_sentence(self) -> str:
        """What the fullest accelerator holds, in words."""
        used, has = self.quantities["bytes_per_accelerator"], self.job.accelerator.memory
        return f"{shown(used)} of {show_bytes(has)}, on {self.memory.where}."

    def spare(self) -> float:
        """Bytes that are left."""
        return max(0.0, self.job.accelerator.memory - self.quantities["bytes_per_accelerator"].value)

    def layout_sentence(self) -> str:
        """The layout in words."""
        rows = f"{self.layout['micro_batch']} row{'s' * (self.layout['micro_batch'] > 1)} at a time"
        if int(self.job.layout.accelerators) == 1:
            who = "This machine" if self.own_machine else f"One {self.job.accelerator.name}"
            return f"{who} computes all, {rows}."
        named = {"data": "replicas", "tensor": "tensor ranks", "pipeline": "stages", "interleave": "parts to a stage",
                 "context": "context ranks", "expert": "expert ranks"}  # fmt: skip
        said = [f"{self.layout[name]:,} {word}" for name, word in named.items() if self.layout[name] > 1]
        return f"{' x '.join(said)}, {rows}: {self.looked_at:,} layouts were looked at, {self.fit:,} of them fit."

    def failure_sentence(self) -> str:
        """Failures and what they cost, in words."""
        broken, good = self.quantities["interruptions"], self.quantities["goodput"]
        between = self.quantities["mtbf_hours"]
        return (
            f"{_with_interval(broken)}, one every {one_value(between.value / 24, 'days')}; "
            f"with a checkpoint every {shown(self.quantities['checkpoint_interval'])}, {_with_interval(good)} of the "
            "time counts as training."
        )

    def money_sentence(self) -> str:
        """Three bases."""
        if self.own_machine:
            return "The machine is yours: only its electricity is counted."
        return "Three bases answer three questions: rented by the hour, owned, and a whole project with its people."

    def size_sentence(self) -> str:
        """How far from the best use of its compute."""
        best = self.optimum
        if best is None:
            return ""
        own = float(best.law.loss(self.quantities["parameters"].value, self.quantities["tokens"].value))
        more = own / float(best.law.loss(float(best.parameters), best.tokens)) - 1
        low, high = best.parameters_interval
        said = (
            f"By the law {best.law.name}, {one_value(best.flops, 'FLOP')} are best spent on "
            f"{number(best.parameters)} parameters ({number(low)} to {number(high)}) and "
            f"{one_value(best.tokens, 'tokens')}. {best.sentence()}"
        )
        if more > 5e-5:
            ratio = self.quantities["parameters"].value / best.parameters
            use = "cheaper" if ratio < 1 else "dearer"
            said += (
                f" This model on these tokens has {more:.2%} more loss than the best, and is {use} to use."
            )
        return said

    def named(self, group: str) -> list[str]:
        """Names of the numbers about money, or of all that stand nowhere else."""
        money = [
            name for name in self.quantities if name.startswith("dollars") or name in ("megawatts", "carbon")
        ]
        if group == "money":
            return money
        return [name for name in self.quantities if name not in MAIN and name not in money]


def _with_interval(one: Quantity) -> str:
    interval = shown_interval(one)
    return f"{shown(one)} ({interval})" if interval else shown(one)
