"""Whether a run goes as it was planned: its step time and loss against a plan that was written before it.

    glassformer plan recipe.toml --json > plan.json
    glassformer train recipe.toml --plan plan.json

The plan is kept in the run's folder as `plan.json`. Of it are read `step_seconds` (low, high), `tokens_per_step` and,
where it is there, `loss_at`: what validation loss is to be expected after how many tokens, each with low and high;
between two of them the logarithm of the tokens decides. What is measured and lies outside is told once, by an event
`drift`, and once more when it is inside again.

A step's time is the median of the last five measurements, so that one slow moment is no drift.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import UsageError
from glassformer.files import write_json
from glassformer.run.folder import Run
from glassformer.stats import median

PLAN = "plan.json"
_LOOKS = 5
_OTHER = 0.02
"""A plan whose model is larger or smaller by more than this share is of another model."""


def read_plan(path: Path) -> dict[str, Any]:
    """A plan as `glassformer plan --json` writes it; UsageError for anything else."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a plan: {error}.", do=_MAKE) from None
    if (
        not isinstance(plan, dict)
        or plan.get("schema") != "glassformer.run_plan"
        or "step_seconds" not in plan
    ):
        raise UsageError(
            f"{path} is not a plan.", expected="What `glassformer plan --json` writes.", do=_MAKE
        )
    return plan


_MAKE = "Write one: glassformer plan recipe.toml --json > plan.json"


def keep_plan(plan: Path, run: Run, *, parameters: int) -> None:
    """Put the plan into the run's folder. Refused where it is of another model."""
    read = read_plan(plan)
    planned = float(read["parameters"]["value"])
    if abs(planned / parameters - 1) > _OTHER:
        raise UsageError(
            f"{plan} is of a model with {planned:,.0f} parameters; this one has {parameters:,}.", do=_MAKE
        )
    write_json(run.path / PLAN, read)


class Drift:
    """Listens to a run's events and says what leaves the plan."""

    def __init__(self, plan: Mapping[str, Any], tokens_per_step: int) -> None:
        self._plan, self._tokens_per_step = plan, tokens_per_step
        self._seconds: deque[float] = deque(maxlen=_LOOKS)
        self._outside: dict[str, bool] = {}

    @classmethod
    def of(cls, run: Run, tokens_per_step: int) -> Drift | None:
        """For a run in whose folder a plan is; what an earlier process told already is not told again."""
        path = run.path / PLAN
        if not path.exists():
            return None
        made = cls(read_plan(path), tokens_per_step)
        for event in run.events.read():
            if event["event"] == "drift":
                made._outside[event["what"]] = not event["inside"]
        return made

    def look(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The fields of `drift` events that this event gives rise to."""
        if event["event"] == "step" and event.get("tokens_per_second"):
            self._seconds.append(self._tokens_per_step / event["tokens_per_second"])
            if len(self._seconds) == _LOOKS:
                planned = self._step_seconds()
                yield from self._judge("step_seconds", event["step"], median(list(self._seconds)), planned)
        elif (
            event["event"] == "validation"
            and self._plan.get("loss_at")
            and not isinstance(event["loss"], str)
        ):
            expected = _at(self._plan["loss_at"], event["step"] * self._tokens_per_step)
            yield from self._judge("loss", event["step"], event["loss"], expected)

    def _step_seconds(self) -> dict[str, float]:
        """Of a step of this run, whose batch need not be the planned one."""
        one = self._plan["step_seconds"]
        share = self._tokens_per_step / self._plan.get("tokens_per_step", self._tokens_per_step)
        return {name: one[name] * share for name in ("value", "low", "high")}

    def _judge(
        self, what: str, step: int, value: float, planned: Mapping[str, float]
    ) -> Iterator[dict[str, Any]]:
        outside = not planned["low"] <= value <= planned["high"]
        if outside == self._outside.get(what, False):
            return
        self._outside[what] = outside
        unit = " s" if what == "step_seconds" else ""
        name = "a step takes" if what == "step_seconds" else "the validation loss is"
        bounds = f"{planned['low']:.4g} to {planned['high']:.4g}{unit}"
        message = f"{name} {value:.4g}{unit}; planned were {planned['value']:.4g}, {bounds}" + (
            "" if outside else ": back in the plan")  # fmt: skip
        yield {"what": what, "step": step, "value": value, "planned": planned["value"], "low": planned["low"],
               "high": planned["high"], "inside": not outside, "message": message}  # fmt: skip


def _at(rows: list[Mapping[str, float]], tokens: float) -> dict[str, float]:
    """value, low and high after so many tokens; the first and last row hold beyond them."""
    rows = sorted(rows, key=lambda row: row["tokens"])
    after = next((i for i, row in enumerate(rows) if row["tokens"] >= tokens), len(rows) - 1)
    one, two = rows[max(0, after - 1)], rows[after]
    width = math.log(two["tokens"] / one["tokens"])
    share = min(1.0, max(0.0, math.log(tokens / one["tokens"]) / width)) if width > 0 else 1.0
    return {name: one[name] ** (1 - share) * two[name] ** share for name in ("value", "low", "high")}
