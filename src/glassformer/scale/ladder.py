"""A ladder: small models of one's own text, a law through all but the largest, and how well that forecasts it.

    found = gf.ladder("recipe.toml", budget="2h")
    found.error, found.inside

1. The text is read and tokenised once; all rungs share it, its tokenizer, the context and what is held out.
2. A probe times this machine, and `design.py` lays out the rungs; `ladders/NAME/ladder.json` keeps that.
3. Two rungs are trained with half, the same and twice the rule's learning rate (further where the best is at the
   edge); of the factors that are about as good as the best on both, the middle one is taken for all.
4. All others are trained. What fails or learns nothing is told and left out.
5. The law is fitted to all but the largest rung, forecasts it, and is compared with what it came to.

The same command goes on where it stopped: the design stays as it is, rungs that are done are not trained again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from glassformer.errors import RunLocked, Stopped, UsageError
from glassformer.files import write_json
from glassformer.scale.design import FACTORS, Design, Rules, Rung, Speed, Text
from glassformer.scale.held_out import Noise, held_out_noise
from glassformer.scale.ladder_result import Ladder, conclude
from glassformer.scale.probe import measured_design
from glassformer.scale.rungs import Job, Local, Trainer, is_done, loss_of, rung_recipe
from glassformer.train.engine import pick_device
from glassformer.train.interrupt import Interrupt
from glassformer.train.language import LanguageTask
from glassformer.train.recipe import Recipe, load_recipe
from glassformer.units import parse_seconds, show_count, show_seconds

On = Literal["local", "ray"]
OPTIMIZERS = ("adam", "adamw", "muon")
"""For which there is a rule of the learning rate; muon's matrices keep the recipe's own, times the factor."""
_AS_GOOD = 0.015
"""Factors whose loss is within so much of the best are as good: a rung's own noise, and what its size shifts."""
_FURTHER = 2
"""So often the tried rates go on beyond the edge."""
_LEARNED_NOTHING = "it learned nothing: its loss is not below that of guessing"

Progress = Callable[[str], None]


def ladder(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None = None,
    *,
    budget: str | float = "2h",
    name: str | None = None,
    folder: str | Path = "ladders",
    overrides: Mapping[str, Any] | None = None,
    on: On | Trainer = "local",
    workers: int = 1,
    threads: int | None = None,
    rules: Rules | None = None,
    progress: Progress = lambda message: None,
) -> Ladder:
    """Train a ladder to its end, or go on with it, and say how well it forecasts its largest rung.

    `what` is a recipe, as for `train`; `on` is where its rungs are trained. Raises Stopped when asked to stop by a
    signal, with everything saved.
    """
    with Interrupt().listening() as interrupt:
        course = Course(
            what, budget, name, Path(folder), overrides, on, workers, threads, rules, progress, interrupt
        )
        with course.locked():
            return course.run()


def plan_ladder(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None = None,
    *,
    budget: str | float = "2h",
    overrides: Mapping[str, Any] | None = None,
    on: On | Trainer = "local",
    workers: int = 1,
    threads: int | None = None,
    rules: Rules | None = None,
    progress: Progress = lambda message: None,
) -> Design:
    """The rungs that a ladder would have: the text is tokenised into the cache, the machine is timed, no more."""
    with (
        Interrupt().listening() as interrupt,
        tempfile.TemporaryDirectory(prefix="glassformer-plan-") as folder,
    ):
        course = Course(
            what, budget, None, Path(folder), overrides, on, workers, threads, rules, progress, interrupt
        )
        return course.plan()[0]


class Course:
    """One ladder on its way."""

    def __init__(
        self, what: Any, budget: str | float, name: str | None, folder: Path, overrides: Mapping[str, Any] | None,
        on: On | Trainer, workers: int, threads: int | None, rules: Rules | None, progress: Progress,
        interrupt: Interrupt,
    ) -> None:  # fmt: skip
        self.began = time.monotonic()
        self.recipe, self.base = _language(what, overrides)
        self.values = self.recipe.resolved()
        self.budget = parse_seconds(budget)
        self.folder = folder / (name or self.recipe.name)
        self.workers, self.rules = workers, rules or Rules()
        self.progress, self.interrupt = progress, interrupt
        local = Local(workers, threads, self.folder / "logs")
        self.trainer: Trainer = local if on == "local" else _ray(local) if isinstance(on, str) else on
        self.failed: dict[str, str] = {}

    def run(self) -> Ladder:
        """All of it, as far as it is not done."""
        state = self._state() or self._begin()
        design, settings = Design.of(state["design"]), state["engine"]
        self._check_text(state)
        before = state["seconds"]
        try:
            factor, tried = self._rate(design, settings)
            others = [rung for rung in design.rungs if not rung.spot]
            if self.workers > 1:
                others.sort(key=lambda rung: -rung.seconds)  # the longest has the others beside it
            self._train([(rung, factor, self.folder / "runs" / rung.name) for rung in others], settings)
            if self.interrupt.reason is not None:
                raise Stopped(f"Stopped: {self.interrupt.reason}.", do="The same command goes on.")
            usable = {}
            for rung in design.rungs:
                run = self._path(rung, factor)
                if loss_of(run, self.vocab) < math.inf:
                    usable[rung.name] = run
                else:
                    self.failed[rung.name] = self.failed.pop(run.name, _LEARNED_NOTHING)
            noise = self._noise(design, usable)
            found = conclude(
                design, usable, factor=factor, tried=tried, failed=self.failed, noise=noise, folder=self.folder,
                seconds=before + time.monotonic() - self.began,
            )  # fmt: skip
            state["result"] = found.to_dict()
        finally:
            write_json(
                self.folder / "ladder.json", {**state, "seconds": before + time.monotonic() - self.began}
            )
        return found

    def plan(self) -> tuple[Design, Speed, dict[str, Any]]:
        """The text is prepared, the machine is timed, the rungs are laid out."""
        task = self._task()
        text = Text(task.training_tokens, task.validation_tokens)
        if not text.validation_tokens:
            raise UsageError(
                "Nothing is held out.", do="Give data.validation a share of the text, such as 0.05."
            )

        def left() -> float:
            return self.budget - (time.monotonic() - self.began)

        asked = self.recipe.engine
        quick = "fp32" if pick_device(asked.device) == "cpu" else "autocast"
        settings = {
            **asked.model_dump(mode="json"),
            "precision": quick if asked.precision == "auto" else asked.precision,
            "compile": "on" if asked.compile == "on" else "off",
        }
        return measured_design(
            task.config, text, self.values, self.base, self.trainer, settings=settings, left=left, rules=self.rules,
            workers=self.workers, progress=self.progress, interrupt=self.interrupt,
        )  # fmt: skip

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "ladder.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"{self.folder} is in use by another process.", do="Wait for it, or give another --name."
            ) from None
        else:
            yield
        finally:
            os.close(handle)

    def _begin(self) -> dict[str, Any]:
        design, speed, settings = self.plan()
        task = self._task()
        state = {
            "schema": "glassformer.ladder", "version": 1, "recipe": _what_stays(self.values), "budget": self.budget,
            "digests": dict(task.digests), "speed": {"steps": speed.steps, "overhead": speed.overhead},
            "engine": settings, "design": design.to_dict(), "seconds": 0.0, "result": None,
        }  # fmt: skip
        write_json(self.folder / "ladder.json", state)
        return state

    def _state(self) -> dict[str, Any] | None:
        """The ladder that is there, if it is this one."""
        path = self.folder / "ladder.json"
        if not path.exists():
            return None
        state: dict[str, Any] = json.loads(path.read_bytes())
        changed = [
            what
            for what, differs in (
                ("another recipe", state["recipe"] != _what_stays(self.values)),
                (f"a budget of {show_seconds(state['budget'])}", state["budget"] != self.budget),
            )
            if differs
        ]
        if changed:
            raise UsageError(
                f"{self.folder} was designed for {' and for '.join(changed)}.",
                expected="The design of a ladder stays as it is once it has begun.",
                do="Go on with the command it was begun with, or give another --name.",
            )
        return state

    def _check_text(self, state: Mapping[str, Any]) -> None:
        task = self._task()
        changed = [name for name, digest in state["digests"].items() if task.digests[name] != digest]
        if changed:
            raise UsageError(
                f"The {' and the '.join(changed)} changed since {self.folder} began.",
                expected="All rungs learn from the same.", do="Put back what was there, or give another --name.",
            )  # fmt: skip
        self.vocab = task.config.vocab_size

    def _task(self) -> LanguageTask:
        if not hasattr(self, "_opened"):
            self._opened = LanguageTask(self.recipe, self.base, self.progress)
        return self._opened

    def _rate(
        self, design: Design, settings: Mapping[str, Any]
    ) -> tuple[float, dict[str, dict[float, float]]]:
        """(the factor of the rule's rate that is safe by the spots, rung -> factor -> loss)."""
        factors = list(FACTORS)
        for further in range(_FURTHER + 1):
            jobs = [(rung, factor, self._path(rung, factor)) for factor in factors for rung in design.spots]
            self._train(jobs, settings)
            tried = {
                rung.name: {
                    factor: loss_of(self._path(rung, factor), self.vocab) for factor in sorted(factors)
                }
                for rung in design.spots
            }
            best = best_factor(tried)
            if min(factors) < best < max(factors) or further == _FURTHER:
                break
            factors.append(2 * best if best == max(factors) else best / 2)
        return safe_factor(tried), tried

    def _path(self, rung: Rung, factor: float) -> Path:
        return self.folder / "runs" / (f"{rung.name}-x{factor:g}" if rung.spot else rung.name)

    def _train(self, wanted: Sequence[tuple[Rung, float, Path]], settings: Mapping[str, Any]) -> None:
        jobs = []
        rungs = {}
        for rung, factor, run in wanted:
            if not is_done(run):
                jobs.append(Job(run.name, rung_recipe(self.values, rung, factor, settings), self.base, run))
                rungs[run.name] = rung
        count, ended, began = len(jobs), 0, time.monotonic()

        def told(job: Job, why: str | None) -> None:
            nonlocal ended
            ended += 1
            if why is None:
                loss = f"loss {loss_of(job.run, self.vocab):.4g}"
            else:
                self.failed[job.name] = why
                loss = f"failed: {why}"
            rung = rungs[job.name]
            size = f"{show_count(rung.parameters)} parameters, {show_count(rung.tokens)} tokens"
            spent = show_seconds(time.monotonic() - began)
            self.progress(f"{ended} of {count}, after {spent}: {job.name} ({size}): {loss}")

        if jobs:
            predicted = show_seconds(sum(rung.seconds for rung in rungs.values()) / self.workers)
            self.progress(f"training {count} runs, about {predicted}: {', '.join(rungs)}")
            self.trainer.run(jobs, told, self.interrupt)

    def _noise(self, design: Design, usable: Mapping[str, Path]) -> Noise | None:
        """Of the smallest and the largest fitted model, on what is held out."""
        fitted = [usable[rung.name] for rung in design.fitted if rung.name in usable]
        top = [usable[rung.name] for rung in (design.held_back,) if rung.name in usable]
        return held_out_noise(self._task(), fitted[0], fitted[-1], *top) if len(fitted) > 1 else None


def best_factor(tried: Mapping[str, Mapping[float, float]]) -> float:
    """The factor with the lowest mean logarithm of the loss over all rungs; the one nearest to 1 where all failed."""
    means = _mean_logs(tried)
    return min(sorted(means, key=lambda factor: abs(math.log(factor))), key=means.__getitem__)


def safe_factor(tried: Mapping[str, Mapping[float, float]]) -> float:
    """The middle one of the factors that are as good as the best: a rate too high for some rung costs it far more than
    one too low, and next to the highest that is still good such a rate is near."""
    means = _mean_logs(tried)
    good = sorted(factor for factor, mean in means.items() if mean <= means[best_factor(tried)] + _AS_GOOD)
    return good[(len(good) - 1) // 2] if good else best_factor(tried)


def _mean_logs(tried: Mapping[str, Mapping[float, float]]) -> dict[float, float]:
    """Factor -> mean logarithm of the loss."""
    factors = next(iter(tried.values()))
    return {f: sum(math.log(losses[f]) for losses in tried.values()) / len(tried) for f in factors}


def _language(what: Any, overrides: Mapping[str, Any] | None) -> tuple[Recipe, Path]:
    recipe, base = load_recipe(what, overrides)
    if not isinstance(recipe, Recipe):
        raise UsageError(f"A ladder is of language models; this recipe is for task {recipe.task!r}.")
    if recipe.optimizer.kind not in OPTIMIZERS:
        raise UsageError(
            f"There is no rule for the learning rate of {recipe.optimizer.kind}.",
            expected=f"One of {', '.join(OPTIMIZERS)}.", do="Give --optimizer.kind adamw.",
        )  # fmt: skip
    return recipe, base


def _what_stays(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what the ladder decides itself."""
    return {
        key: value for key, value in recipe.items() if key not in ("name", "about", "schedule", "parallel")
    }


def _ray(local: Local) -> Trainer:
    from glassformer.scale.cluster import OnRay

    return OnRay(local)
