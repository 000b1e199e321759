"""What a run will cost, before spending: FLOPs, memory, time, layout, failures, energy, money, each number with an interval
of 80 %, its formula, its inputs and their source.

    plan("llama-3.1-405b", hardware="h100-sxm", count=16_384)     how long, how much
    plan("llama-3.1-405b", hardware="h100-sxm", days=60)          how many accelerators
    plan(budget="1e24", hardware="h100-sxm", count=1024)          the best model for a budget, and all of the above
    plan("demo")                                                  a recipe, on this machine

    steps = D / (B s)       days = steps step / goodput / 86400       hours = 24 days accelerators

How intervals are carried from number to number says `intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError, nearest
from glassformer.plan.allocate import LARGEST_RUN, Optimum
from glassformer.plan.flops import training
from glassformer.plan.intervals import product
from glassformer.plan.layout import Job
from glassformer.plan.quantity import Quantity
from glassformer.plan.words import shown, shown_interval

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
    optimum: Optimum | None = field(default=None, repr=False)
    loss_at: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    """Validation loss to be expected after so many tokens, by a law of one's own runs."""
    notes: Sequence[str] = ()

    def __getattr__(self, name: str) -> Quantity:
        quantities = self.__dict__.get("quantities", {})
        if name in quantities:
            return quantities[name]  # type: ignore[no-any-return]
        raise AttributeError(f"A plan has no {name!r}.")

    @cached_property
    def layout(self) -> dict[str, int]:
        """How the run is divided."""
        lay = self.job.layout
        names = ("data", "tensor", "pipeline", "interleave", "context", "expert", "sharding", "micro_batch", "recompute")
        return {name: int(getattr(lay, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file or another program."""
        divided = {"value": self.layout, "low": None, "high": None, "unit": "", "source": "the quickest that fits"}
        return {
            "title": self.title, **{name: one.to_dict() for name, one in self.quantities.items()}, "layout": divided,
            "tokens_per_step": self.job.tokens, "step_split": self.split(), "memory": self.memory_rows(),
            "layouts": [dict(row) for row in self.layouts], "nearest": [dict(row) for row in self.nearest],
            "loss_at": [dict(row) for row in self.loss_at], "warnings": list(self.warnings),
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The numbers as a table: name, value, interval, and where it is from."""
        return [
            {"number": name, "value": shown(one), "80 % between": shown_interval(one), "from": one.formula or one.source}
            for name, one in self.quantities.items()
        ]  # fmt: skip

    def explain(self, name: str) -> list[tuple[int, Quantity]]:
        """One number down to what it was computed from: (depth, quantity)."""
        if name not in self.quantities:
            raise UsageError(f"There is no number {name!r} in a plan;", expected=nearest(name, self.quantities))
        return list(self.quantities[name].walk())

    def split(self) -> list[dict[str, Any]]:
        """What a step is spent on: part, seconds, share; largest first."""
        return sorted((row for row in self.step.split() if row["share"] > 0.0005), key=lambda row: -row["seconds"])

    def memory_rows(self) -> list[dict[str, Any]]:
        """What the fullest accelerator holds: part, bytes, share of what it has."""
        return self.memory.rows()

    def _repr_html_(self) -> str:
        from glassformer.plan.page import card

        return card(self)
