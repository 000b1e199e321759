"""Before the first step: the run folder, its data, how the machine is used, how long it takes.

Everything decided here is written into the run, and a resumed run reads it back instead of deciding again.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from glassformer.errors import RunError
from glassformer.files import free_bytes
from glassformer.model import count
from glassformer.run import checkpoints, reserve
from glassformer.run.events import Events
from glassformer.run.folder import Run
from glassformer.run.manifest import describe
from glassformer.train.compiler import cannot_compile
from glassformer.train.config import EngineConfig, TrainConfig
from glassformer.train.engine import (
    Candidate,
    Choice,
    Trial,
    choose,
    measure,
    pick_device,
    prepare_loss,
)
from glassformer.train.optimizers import build_optimizers
from glassformer.train.out_of_memory import says_no_memory
from glassformer.train.recipe import AnyRecipe, LabelRecipe, MaskRecipe, PairRecipe, TableRecipe
from glassformer.train.step import Loss, Update, update
from glassformer.train.task import Batch, Progress, Task
from glassformer.train.weights import Weights
from glassformer.units import show_bytes


def open_task(recipe: AnyRecipe, base: Path, progress: Progress) -> Task:
    """What the recipe learns, its data read (from the cache where it is there)."""
    match recipe:
        case PairRecipe():
            from glassformer.train.translation import TranslationTask

            return TranslationTask(recipe, base, progress)
        case MaskRecipe():
            from glassformer.train.masking import MaskTask

            return MaskTask(recipe, base, progress)
        case LabelRecipe():
            from glassformer.train.labelling import LabelTask

            return LabelTask(recipe, base, progress)
        case TableRecipe():
            from glassformer.train.tables import TableTask

            return TableTask(recipe, base, progress)
        case _:
            from glassformer.train.language import LanguageTask

            return LanguageTask(recipe, base, progress)


def open_run(task: Task, path: Path, *, fresh: bool, accept_data: bool) -> Run:
    """The run folder: made, or found there with the same recipe, text and tokenizer."""
    recipe, digests = task.recipe, dict(task.digests)
    if fresh or not (path / "recipe.toml").exists():
        run = Run.create(path, recipe.resolved(), describe(**digests), fresh=fresh)
        task.keep(run.path)
        return run
    run = Run.open(path)
    checkpoints.check_fits(_what_matters(run.recipe), _what_matters(recipe.resolved()))
    changed = [name for name, digest in digests.items() if run.manifest.get(name) != digest]
    if "tokenizer" in changed or (changed and not accept_data):
        raise RunError(
            f"The {' and the '.join(changed)} of {path} changed since it began.",
            expected=f"Expected {', '.join(f'{name} {str(run.manifest.get(name))[:12]}' for name in changed)}, "
            f"found {', '.join(digests[name][:12] for name in changed)}.",
            do="Put back the files as they were, go on with the new ones by --accept-data (recorded in the run; a "
            "changed tokenizer cannot be accepted), or begin anew with --fresh.",
        )
    if changed:
        run.events.append("warning", message=f"goes on with changed data, {digests['data'][:12]}, as asked")
    task.keep(path)  # it may have been killed when it was just made
    return run


def choose_engine(task: Task, events: Events, num_ranks: int = 1) -> tuple[Choice, float]:
    """How the machine is used, and the seconds a step takes: as recorded, or else measured now, of one rank's part."""
    recipe, trial = task.recipe, make_trial(task)
    asked = recipe.engine.model_dump()
    engine = recipe.engine
    if recipe.parallel.tensor > 1 or (recipe.parallel.shard != 1 and num_ranks > 1):
        engine = engine.model_copy(update={"compile": "off"})
    recorded = events.last("engine")
    if recorded is not None:
        choice = Choice(**recorded["choice"])
        before = EngineConfig(**recorded["asked"]).model_dump()
        if not choice.compiled:  # then the same numbers come of whatever share of activations is kept
            before["activation_memory"] = asked["activation_memory"]
            choice = replace(choice, activation_memory=engine.activation_memory)
        changed = _gone(choice) if before == asked else "other engine settings were asked for"
        if changed is None:
            return choice, recorded["step_seconds"]
        message = f"no longer uses {choice.name} on {choice.device}: {changed}; losses may differ in their last digits"
        events.append("warning", message=message)
    seconds = (recipe.train.minutes or 0.0) * 60
    size = recipe.train.batch // recipe.train.accumulate // num_ranks
    found = choose(
        engine, trial, model=task.config, batch=size, num_steps=_steps(task), seconds=seconds
    )  # fmt: skip
    best = found[0]
    if best.step_seconds is None and recipe.train.minutes:
        best, rows = measure(best.choice, trial, size, size), size
        while best.error and says_no_memory(best.error):
            if recipe.faults.out_of_memory != "halve" or rows == 1:
                raise MemoryError(best.error)
            rows //= 2
            best = measure(best.choice, trial, rows, size)
        if best.error:
            raise RunError(f"The first step failed: {best.error}.", do="Try other settings of [engine].")
    step_seconds = (best.step_seconds or 0.0) * recipe.train.accumulate
    tokens = task.batches.tokens_per_batch // recipe.train.accumulate // num_ranks
    rows = [candidate.row() | {"tokens_per_second": _speed(candidate, tokens)} for candidate in found]
    chosen = found[0].row()["choice"]
    events.append("engine", asked=asked, choice=chosen, step_seconds=step_seconds, candidates=rows)
    return best.choice, step_seconds


def _gone(choice: Choice) -> str | None:
    """Why a recorded choice cannot be used again on this machine."""
    if choice.device.startswith("cuda") and not torch.cuda.is_available():
        return "torch sees no GPU"
    return cannot_compile(choice.device) if choice.compiled else None


def make_trial(task: Task) -> Trial:
    """A model and optimiser of the recipe's own, to be timed and thrown away."""

    def trial(choice: Choice, rows: int, parts: int = 1) -> Callable[[], Update]:
        model = task.build(choice.device)
        weights = Weights(model, choice.precision)
        optimizers = build_optimizers(task.recipe.optimizer, weights.masters)
        loss = loss_of(model, choice, task.recipe)
        part, device = _Part(task.batches.batch(0), rows), torch.device(choice.device)
        clip = task.recipe.train.clip

        return lambda: update(
            loss, weights, optimizers, part, rate=1e-3, clip=clip, accumulate=parts, device=device
        )

    return trial


class _Part:
    """The first rows of a batch."""

    def __init__(self, batch: Batch, rows: int) -> None:
        self.sample_ids, self.num_targets = batch.sample_ids[:rows], batch.num_targets
        self._arrays = {name: None if a is None else a[:rows] for name, a in batch.arrays().items()}

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        return self._arrays


def loss_of(model: nn.Module, choice: Choice, recipe: AnyRecipe) -> Loss:
    """The recipe's loss for training, as the choice computes it."""
    return prepare_loss(
        model, choice, label_smoothing=recipe.train.label_smoothing, z_loss=recipe.train.z_loss
    )


def plain_loss_of(trained: Loss, model: nn.Module, choice: Choice, recipe: AnyRecipe) -> Loss:
    """Cross-entropy alone, which is what is told of text held out: the loss that is trained, unless that is smoothed
    or has a z-loss; then one computed eagerly, which needs no second compilation."""
    if recipe.train.label_smoothing == recipe.train.z_loss == 0:
        return trained
    kept = 1.0 if choice.compiled else choice.activation_memory  # blocks that are compiled stay as they are
    return prepare_loss(model, replace(choice, compiled=False, activation_memory=kept))


def num_steps(task: Task, step_seconds: float) -> int:
    """The run's length in updates."""
    steps, minutes = _steps(task), task.recipe.train.minutes or 0.0
    return steps if steps is not None else max(1, round(minutes * 60 / step_seconds))


def check_space(run: Run, task: Task) -> None:
    """Two checkpoints and the finished model must fit on the disk before the first step is spent, one when the run goes
    on; from then on the space is held (`run/reserve.py`)."""
    asked = task.recipe.optimizer.kind
    kind: count.Optimizer = "momentum" if asked == "sgd" else asked
    weights = 4 * sum(map(prod, task.shapes.values()))
    one = weights + count.optimizer_bytes(task.shapes, kind) + reserve.overhead(3 * len(task.shapes), 3)
    hold = 2 * one + weights + reserve.overhead(len(task.shapes), 4) + reserve.FOR_THE_LOG
    folder = run.checkpoints
    goes_on = any(listed.kind == "checkpoint" for listed in checkpoints.list_checkpoints(folder))
    free, need = free_bytes(folder) + reserve.held(folder), one if goes_on else hold
    enough = free >= need
    why: str | None = os.strerror(errno.ENOSPC)
    if enough:
        try:
            why = reserve.hold(folder, hold)
        except (
            OSError
        ) as error:  # less than the system said, for a quota; or enough to go on, but not for two
            reserve.take_again(folder)
            enough, why = goes_on, str(error.strerror)
    if not enough:
        what = "a checkpoint needs" if goes_on else "two checkpoints and the finished model need"
        raise RunError(
            f"{run.path} has {show_bytes(free)} free ({why}); {what} {show_bytes(need)}.",
            do="Free some space, or choose another disk with --run.",
        )
    if why is not None:
        message = (
            f"only {show_bytes(reserve.held(folder))} of the {show_bytes(hold)} for two checkpoints and the model are "
            f"held ({why}); a disk that others fill costs checkpoints until there is space again"
        )
        run.events.append("warning", message=message)


def plan_run(recipe: AnyRecipe, base: Path, ranks: int | None = None) -> dict[str, Any]:
    """What a run would be, for --dry-run: the data is read and tokenised into the cache, nothing else is written. With
    `ranks`, also what one of so many would hold and send (`train/parallel/rehearsal.py`); then a language recipe with
    `model.vocab` needs no data, and the device need not be here."""
    if ranks is not None:
        from glassformer.train.parallel.rehearsal import plan_rehearsed

        return plan_rehearsed(recipe, base, ranks, facts_of)
    return facts_of(open_task(recipe, base, lambda message: None), pick_device(recipe.engine.device))


def facts_of(task: Task, device: str) -> dict[str, Any]:
    """What a run of this task would be."""
    recipe, steps = task.recipe, _steps(task)
    tokens = None if steps is None else steps * task.batches.tokens_per_batch
    return {
        "recipe": recipe.name,
        "task": recipe.task,
        "device": device,
        "parameters": sum(map(prod, task.shapes.values())),
        **task.sizes,
        "training_tokens": task.training_tokens,
        "validation_tokens": task.validation_tokens,
        "steps": steps,
        "minutes": recipe.train.minutes,
        "tokens": tokens,
        "epochs": None if steps is None else steps * recipe.train.batch / task.batches.num_samples,
        "flops": None if tokens is None else tokens * task.flops_per_token,
        "waste": task.batches.waste,
        "warnings": [*task.warnings, *task.batches.warnings],
    }


def _steps(task: Task) -> int | None:
    """None when the recipe gives minutes."""
    train: TrainConfig = task.recipe.train
    batches = task.batches
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / batches.tokens_per_batch)
    if train.epochs is not None:
        return math.ceil(train.epochs * batches.num_samples / train.batch)
    return None


def _speed(candidate: Candidate, tokens: int) -> float | None:
    return tokens / candidate.step_seconds if candidate.step_seconds else None


def _what_matters(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a run: not what is said about it, nor how often it looks at itself, nor how the work
    is divided, nor what is to be done about faults, which may change after one."""
    train = recipe["train"]
    watching = {
        "accumulate",
        "checkpoint_every",
        "keep",
        "save_beside",
        "validate_every",
        "validation_tokens",
        "log_every",
    }
    watching |= {name for name in train if name.startswith("sample_")}
    kept_out = ("about", "name", "train", "engine", "faults", "parallel")
    kept = {key: value for key, value in recipe.items() if key not in kept_out}
    return {**kept, "train": {key: value for key, value in train.items() if key not in watching}}
