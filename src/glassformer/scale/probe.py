"""How fast rungs train here, found by training: short runs of two or three sizes, thrown away afterwards.

A probe is a rung like any other, so that everything counts that a rung will take: its start, opening the text, the
checks between the steps, measuring and writing the model. What is no step and no measurement is `overhead`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from glassformer.errors import RunError, UsageError
from glassformer.model.config import ModelConfig
from glassformer.run.folder import Run
from glassformer.scale.design import FORWARD, Design, Rules, Rung, Speed, Text, design, one_rung
from glassformer.scale.rungs import Job, Trainer, rung_recipe
from glassformer.stats import median
from glassformer.train.interrupt import Interrupt

_STEPS = 12
_SECONDS = 5.0
"""A probe's steps take about this long, or three steps."""
_MOST = 3
_LARGER = 1.5
"""What is this much larger than the largest that was timed is timed as well."""


def measured_design(
    model: ModelConfig, text: Text, recipe: Mapping[str, Any], base: Path, trainer: Trainer, *,
    settings: Mapping[str, Any], left: Callable[[], float], rules: Rules, workers: int, progress: Callable[[str], None],
    interrupt: Interrupt,
) -> tuple[Design, Speed, dict[str, Any]]:  # fmt: skip
    """(the design for the seconds that are left, what was measured for it, the engine's settings for all rungs).

    The smallest size is timed, then the largest that a design for such a machine asks for, and once more.
    """
    timed: dict[float, float] = {}
    overheads: list[float] = []
    rung = one_rung(model, rules.smallest, rules.ratios[1], text, Speed(((1.0, 1e-12),), 0.0))
    found: Design | None = None
    problem: UsageError | None = None
    for _ in range(_MOST):
        flops = float(rung.flops_per_token * rung.batch * rung.context)
        expected = Speed(tuple(sorted(timed.items())), 0.0).step_seconds(flops) if timed else 0.0
        progress(f"timing {rung.parameters:,} parameters")
        seconds, overhead, choice = _time(rung, expected, text, recipe, base, trainer, settings, interrupt)
        timed[flops] = seconds
        overheads.append(overhead)
        speed = Speed(tuple(sorted(timed.items())), max(overheads))
        try:
            found, problem = design(model, text, speed, left(), rules=rules, workers=workers), None
        except UsageError as error:
            found, problem = None, error
        rung = found.held_back if found else one_rung(model, 4 * rules.smallest, rules.ratios[0], text, speed)
        if rung.flops_per_token * rung.batch * rung.context < _LARGER * max(timed):
            break
    if problem is not None:
        raise problem
    assert found is not None
    return found, speed, {**settings, "attention": choice["attention"]}  # all rungs are computed in one way


def _time(
    rung: Rung, expected: float, text: Text, recipe: Mapping[str, Any], base: Path, trainer: Trainer,
    settings: Mapping[str, Any], interrupt: Interrupt,
) -> tuple[float, float, dict[str, Any]]:  # fmt: skip
    """(seconds of a step, seconds of all that is none, how the machine was used) of a short run."""
    steps = max(3, min(_STEPS, round(_SECONDS / expected))) if expected else _STEPS
    short = replace(rung, name="probe", steps=steps, seconds=1.0)
    values = rung_recipe(recipe, short, 1.0, settings)
    values["train"] = {**values["train"], "log_every": 1, "checkpoint_every": steps + 1}
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="glassformer-probe-") as folder:
        job = Job("probe", values, base, Path(folder) / "run")
        began = time.perf_counter()
        trainer.run([job], lambda job, why: failed.append(why) if why else None, interrupt)
        wall = time.perf_counter() - began
        if failed:
            raise RunError(f"A short run to time this machine failed: {failed[0]}")
        run = Run.open(job.run)
        seconds = [0.0, *(float(row["seconds"]) for row in run.rows())]
        choice = dict((run.events.last("engine") or {})["choice"])
    step = median([later - earlier for earlier, later in pairwise(seconds)][1:])
    measuring = FORWARD * step * text.validation_tokens / (rung.batch * rung.context)
    return step, max(0.0, wall - seconds[-1] - measuring), choice
