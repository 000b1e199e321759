"""The loop: a generator of events. Terminal, page, report and tests are listeners; none of them changes a number.

    for event in training(recipe, base=..., run=...):
        print(event)

A run that is there already goes on from its newest whole checkpoint. Every batch, every rate and every random
number is a function of the step, so the losses that follow are the same to the bit as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from glassformer.errors import Stopped
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.seeds import derive
from glassformer.train import brake, measuring, start
from glassformer.train.beginning import find_unfinished, next_run_folder, recipe_for, start_from
from glassformer.train.bench import forget_peak
from glassformer.train.copies import Copies
from glassformer.train.drift import Drift, keep_plan
from glassformer.train.engine import pick_device, threads_of
from glassformer.train.faults import Fault, Guard
from glassformer.train.interrupt import Interrupt
from glassformer.train.launch import on_all_cores
from glassformer.train.meter import Meter, joules
from glassformer.train.optimizers import build_optimizers
from glassformer.train.out_of_memory import explained
from glassformer.train.parallel.joining import joined
from glassformer.train.parts import Parts
from glassformer.train.ranks import Ranks
from glassformer.train.recipe import AnyRecipe
from glassformer.train.recover import recover
from glassformer.train.repeatable import repeatable
from glassformer.train.restoring import restore
from glassformer.train.saving import Saver
from glassformer.train.schedules import factor
from glassformer.train.silent import Replay
from glassformer.train.step import Update, micro_batches, update
from glassformer.train.task import Batch, Event, Task
from glassformer.train.world import check_division


def train(
    what: str | Path | Sequence[str | Path] | Mapping[str, Any] | None = None,
    *,
    task: str | None = None,
    run: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> Run:
    """Train, to the end, and return the run.

    `what` is a recipe's name or file, a text file or folder or several, a recipe's values, or None for the demo;
    `task` is what to learn from texts of one's own: `language` (when left out), `mask` or `translate`.
    `overrides` changes values by dotted names, `{"model.width": 64}`. `options` are those of `training`.
    """
    init_from = None if options.get("init_from") is None else Path(options["init_from"])
    recipe, base = recipe_for(what, overrides or {}, task=task, init_from=init_from)
    path = Path(run) if run else find_unfinished(recipe) or next_run_folder(recipe.name)
    for event in training(recipe, base=base, run=path, **{**options, "init_from": init_from}):
        on_event(event)
    return Run.open(path)


def training(
    recipe: AnyRecipe,
    *,
    base: Path,
    run: Path,
    fresh: bool = False,
    init_from: Path | None = None,
    accept_data: bool = False,
    accept_crashes: bool = False,
    stop_after: float | None = None,
    plan: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Iterator[Event]:
    """Train `recipe` in the folder `run`, beginning or going on; yields every event as it is written there. `plan` is
    what `glassformer plan --json` wrote: the run tells where it leaves it (`train/drift.py`).

    Raises Stopped when asked to stop by a signal or after `stop_after` seconds, with everything saved.
    """
    with (
        joined(recipe.parallel, pick_device(recipe.engine.device), progress, run) as ranks,
        Interrupt(stop_after).listening() as interrupt,
    ):
        check_division(recipe, ranks.count)
        tell = interrupt.before_the_first_step(progress if ranks.is_first else lambda message: None)
        with on_all_cores():
            task = ranks.in_turn(lambda: start.open_task(recipe, base, tell))
            if ranks.is_first:
                folder = start.open_run(task, run, fresh=fresh, accept_data=accept_data)
            else:
                folder = Run.unwritten(run, recipe.resolved())
        lock = folder.lock() if ranks.is_first else contextlib.nullcontext()
        with lock, explained(task, ranks.data_count) as begun:
            if ranks.is_first:
                if plan is not None:
                    keep_plan(plan, folder, parameters=sum(map(prod, task.shapes.values())))
                yield from brake.hold(folder, recipe.faults, accept_crashes)
            session = Session(task, folder, tell, ranks)
            begun.append(session)
            drift = Drift.of(folder, task.batches.tokens_per_batch) if ranks.is_first else None
            with threads_of(session.choice), session.saver:
                for event in session.events(interrupt, init_from):
                    if ranks.is_first:
                        yield event
                    for fields in drift.look(event) if drift else ():
                        yield session.log("drift", **fields)


class Session:
    """One process's part of a run: everything that training needs, set up once."""

    def __init__(self, task: Task, run: Run, progress: Callable[[str], None], ranks: Ranks) -> None:
        self.task, self.recipe, self.run, self.ranks = task, task.recipe, run, ranks
        self.parts = Parts(self)
        progress("choosing how to use this machine")
        self.begun = ranks.decide(lambda: run.events.last("start"))
        self.steady = partial(repeatable, self.recipe.engine.deterministic)
        with self.steady():
            self.choice, step_seconds = ranks.decide(
                lambda: start.choose_engine(task, run.events, ranks.data_count)
            )
        progress(f"using {self.choice.name}")
        self.device = torch.device(self.choice.device)
        self.model = ranks.build(task, self.device)
        self.weights = ranks.prepare(self.model, self.choice.precision)
        self.optimizers = build_optimizers(self.recipe.optimizer, self.weights.masters, ranks.orthogonal)
        self.guard = Guard(
            self.recipe.faults, self.recipe.optimizer, self.weights, self.optimizers, ranks=ranks
        )
        self.loss_of = start.loss_of(self.model, self.choice, self.recipe)
        self.plain_loss_of = start.plain_loss_of(self.loss_of, self.model, self.choice, self.recipe)
        self.num_steps: int = self.begun["steps"] if self.begun else start.num_steps(task, step_seconds)
        self.meter = Meter(task.flops_per_token, measuring.ceiling(self))
        self.replay, self.copies = Replay(self), Copies(self)
        self.saver = Saver(self)
        self.consumed = hashlib.sha256().hexdigest()
        """Digest of every sample seen, in order: two runs that agree here saw the same text."""

    def events(self, interrupt: Interrupt, init_from: Path | None) -> Iterator[Event]:
        """The whole run, from where it stands."""
        train = self.recipe.train
        if self.ranks.is_first:
            start.check_space(self.run, self.task)
        done = yield from self._begin_or_resume(init_from)
        if done < self.num_steps:
            with self.steady():
                self._warm_up()
                yield from self.replay.begin()
                yield from self.copies.begin()
        energy = joules()
        forget_peak(self.choice.device)
        yield from self.parts.told()
        while done < self.num_steps:
            step, batch = done, self.task.batches.batch(done)
            rate = factor(self.recipe.schedule, step, self.num_steps) * self.guard.rate(step)
            try:
                with self.steady():
                    found = None if step in self.guard.quarantined else self._step(step, batch, rate)
            except Fault as fault:
                with self.steady():
                    done = yield from recover(self, fault)
                continue
            done = step + 1
            last = done == self.num_steps
            yield from self.parts.told()
            yield from self._noted()
            for name, fields in self.ranks.noted(done, train.log_every):
                yield self.log(name, **fields)
            if found and (last or step == 0 or done % train.log_every == 0):
                yield self.log(
                    "step", step=done, loss=found.loss, grad_norm=found.grad_norm,
                    learning_rate=rate * self.recipe.optimizer.learning_rate,
                    tokens=self.meter.tokens, seconds=self.meter.seconds, **self.meter.recent(),
                )  # fmt: skip
            if done % train.validate_every == 0 and not last:
                yield from measuring.validate(self, done, whole=False)
            if done % train.sample_every == 0 and not last:
                yield from measuring.sample(self, done)
            asked = self._count(batch, interrupt.reason, learned=found is not None)
            reason = None if last else asked
            if not (last or reason or self.saver.due(done)):
                yield from self.saver.look(done)
            else:
                if unfit := self._unfit(done):
                    done = yield from recover(self, unfit)
                    continue
                yield from self._noted()
                yield from self.saver.save(done, must=last or reason is not None)
            if reason:
                yield self.log("stopped", reason=reason, **self.summary())
                self.ranks.wait()  # for rank 0, which has it on the disk
                raise Stopped(f"Stopped after step {done} of {self.num_steps}: {reason}.",
                              do="Everything is saved; the same command goes on.")  # fmt: skip
        yield from measuring.finish(self, done, energy)

    def _step(self, step: int, batch: Batch, rate: float) -> Update:
        """One update. Raises Fault, with nothing changed, where the guard refuses it."""
        began, train = time.perf_counter(), self.recipe.train
        self.replay.before(step, batch)
        self.seed_dropout(step)
        with self.ranks.step(step):
            found = update(
                self.loss_of, self.weights, self.optimizers, batch,
                rate=rate, clip=train.clip, device=self.device,
                fit=lambda compute: self.parts.fit(compute, step),
                check=lambda found: self._check(step, found), first=self.replay.note, ranks=self.ranks,
            )  # fmt: skip
        self.meter.add(self.task.batches.tokens_per_batch, time.perf_counter() - began)
        self.guard.look(step, self.model, batch, self.choice)
        return found

    def _check(self, step: int, found: Update) -> None:
        self.replay.compare(step)
        self.copies.check(step)
        self.guard.check(step, found, self.state)

    def _unfit(self, done: int) -> Fault | None:
        """Why the weights must not be saved."""
        if self.guard.damaged():
            return Fault(done - 1, "not_finite", None)
        return Fault(done - 1, "copies_differ", None) if self.copies.differ(done) else None

    def _noted(self) -> Iterator[Event]:
        for name, fields in self.guard.noted():
            yield self.log(name, **fields)

    def seed_dropout(self, step: int, rank: int | None = None) -> None:
        """Ranks with other rows draw other noise; `rank`: as that data rank."""
        rank = self.ranks.data_rank if rank is None else rank
        if self.task.config.dropout:
            torch.manual_seed(derive(self.recipe.train.seed, "dropout", step, *((rank,) if rank else ())))

    def _count(self, batch: Batch, reason: str | None, *, learned: bool) -> str | None:
        """Into the digest, what all ranks learned from; returns why to stop, if any of them was asked to."""
        sample_ids, asked = self.ranks.step_taken(batch.sample_ids[: None if learned else 0], reason)
        if learned:
            self.consumed = hashlib.sha256(bytes.fromhex(self.consumed) + sample_ids.tobytes()).hexdigest()
        return asked

    def _begin_or_resume(self, init_from: Path | None) -> Generator[Event, None, int]:
        """Yields what happened and returns the number of steps that are done."""
        restored = self.restore()
        if self.begun is None:
            yield self.run.events.last("engine") or {}  # written by choose_engine
            yield self.log("text_report", report=dict(self.task.report))
            yield self.log(
                "start", recipe=self.recipe.name, steps=self.num_steps, device=str(self.device),
                task=self.recipe.task, parameters=sum(map(prod, self.task.shapes.values())),
                tokens_per_step=self.task.batches.tokens_per_batch, flops_per_token=self.task.flops_per_token,
                gemm_ceiling_flops_per_second=self.meter.ceiling, waste=self.task.batches.waste,
                unit=self.recipe.unit, loss_unit=self.recipe.loss_unit,
            )  # fmt: skip
            for message in (*self.task.warnings, *self.task.batches.warnings):
                yield self.log("warning", message=message)
        if restored is None:
            if init_from is not None:
                masters, message = self.weights.masters, ""
                whole = self.ranks.gather(masters)
                if self.ranks.is_first:
                    whole, message = start_from(whole, init_from)
                self.weights.load(self.ranks.spread(whole, masters))
                yield self.log("warning", message=message)
            if self.begun is not None:
                yield self.log("resumed", step=0, lost_steps=0, findings=[])
            return 0
        self.meter.seconds = restored.state["seconds"]
        if "faults" in restored.state:
            self.guard.load(restored.state["faults"])
        findings = [str(finding) for finding in restored.findings]
        yield self.log("resumed", step=restored.step, lost_steps=restored.lost_steps, findings=findings)
        return restored.step

    def restore(self) -> checkpoints.Checkpoint | None:
        """From the newest whole checkpoint (`train/restoring.py`)."""
        return restore(self)

    def restore_counts(self, state: Mapping[str, Any]) -> None:
        self.consumed, self.meter.tokens = state["consumed"], state["tokens"]
        self.replay.verified = state.get("verified", 0)

    def state(self) -> dict[str, Any]:
        """What goes with the tensors."""
        counts = {"consumed": self.consumed, "tokens": self.meter.tokens, "seconds": self.meter.seconds}
        return {**counts, "verified": self.replay.verified, "faults": self.guard.state()}

    def summary(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.run.summary().items() if key not in ("run", "status")}
        return {
            **kept,
            **self.run.judged(),
            **self.meter.overall(),
            "tokens": self.meter.tokens,
            "seconds": self.meter.seconds,
            "flops": self.meter.tokens * self.task.flops_per_token,
            "consumed": self.consumed,
        }

    def _warm_up(self) -> None:
        """Compile, and touch all memory, before the clock runs: one gradient that no weight sees."""
        batch = self.ranks.rows(self.task.batches.batch(0))

        def first(parts: int) -> torch.Tensor:
            self.weights.zero_gradients()
            loss = self.loss_of(**next(micro_batches(batch, parts, self.device)))
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            return loss.detach()

        with on_all_cores():
            self.parts.fit(first, 0)
        self.weights.collect()
        self.weights.zero_gradients()

    def log(self, name: str, **fields: Any) -> Event:
        return self.run.events.append(name, **fields)
