"""The loop: a generator of events. Terminal, page, report and tests are listeners; none of them changes a number.

    for event in training(recipe, base=..., run=...):
        print(event)

A run that is there already goes on from its newest whole checkpoint. Every batch, every rate and every random
number is a function of the step, so the losses that follow are the same to the bit as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from glassformer.errors import RunError, Stopped, TokenizerError
from glassformer.look.heads import attention_rows
from glassformer.model import count
from glassformer.model.stacks import build
from glassformer.run import checkpoints
from glassformer.run.folder import Run
from glassformer.run.report import write_report
from glassformer.seeds import derive
from glassformer.stats import bits_per_byte
from glassformer.text.batches import NO_LOSS, validation_batches
from glassformer.text.shards import Prepared
from glassformer.train import start
from glassformer.train.config import Recipe, load_recipe
from glassformer.train.interrupt import Interrupt
from glassformer.train.launch import on_all_cores
from glassformer.train.meter import Meter, joules, matmul_ceiling
from glassformer.train.optimizers import build_optimizers, restore_state, state_tensors
from glassformer.train.schedules import factor
from glassformer.train.step import micro_batches, update
from glassformer.train.weights import Weights
from glassformer.use.generate import generate
from glassformer.use.load import Loaded, save_model

Event = dict[str, Any]


def train(
    what: str | Path | Mapping[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> Run:
    """Train, to the end, and return the run.

    `what` is a recipe's name or file, a text file or folder, a recipe's values, or None for the demo;
    `overrides` changes values by dotted names, `{"model.width": 64}`. `options` are those of `training`.
    """
    recipe, base = load_recipe(what, overrides)
    path = Path(run) if run else find_unfinished(recipe) or next_run_folder(recipe.name)
    for event in training(recipe, base=base, run=path, **options):
        on_event(event)
    return Run.open(path)


def training(
    recipe: Recipe,
    *,
    base: Path,
    run: Path,
    fresh: bool = False,
    init_from: Path | None = None,
    accept_data: bool = False,
    stop_after: float | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Iterator[Event]:
    """Train `recipe` in the folder `run`, beginning or going on; yields every event as it is written there.

    Raises Stopped when asked to stop by a signal or after `stop_after` seconds, with everything saved.
    """
    with Interrupt(stop_after).listening() as interrupt:
        tell = interrupt.before_the_first_step(progress)
        with on_all_cores():
            prepared = start.prepare_text(recipe, base, tell)
            folder = start.open_run(recipe, prepared, run, fresh=fresh, accept_data=accept_data)
        with folder.lock():
            yield from Session(recipe, prepared, folder, tell).events(interrupt, init_from)


def find_unfinished(recipe: Recipe, root: Path = Path("runs")) -> Path | None:
    """The newest run of just this recipe that has not come to its end: the same command again goes on."""
    runs = [run for run in Run.list(root) if run.recipe == recipe.resolved()] if root.is_dir() else []
    open_runs = [
        run.path
        for run in runs
        if run.summary()["status"] in ("new", "stopped", "killed") and not run.in_use()
    ]
    return max(open_runs, key=_number, default=None)


def next_run_folder(name: str, root: Path = Path("runs")) -> Path:
    """`runs/<name>-<n>`, the first n that is free."""
    return next(path for n in itertools.count(1) if not (path := root / f"{name}-{n}").exists())


class Session:
    """One process's part of a run: everything that training needs, set up once."""

    def __init__(self, recipe: Recipe, prepared: Prepared, run: Run, progress: Callable[[str], None]) -> None:
        self.recipe, self.prepared, self.run = recipe, prepared, run
        self.config = start.model_config(recipe, prepared)
        self.batches = start.make_batches(recipe, self.config, prepared)
        progress("choosing how to use this machine")
        self.begun = run.events.last("start")
        self.choice, step_seconds = start.choose_engine(recipe, self.config, self.batches, run.events)
        progress(f"using {self.choice.name}")
        self.device = torch.device(self.choice.device)
        self.model = build(self.config, seed=recipe.train.seed, device=self.device)
        self.weights = Weights(self.model, self.choice.precision)
        self.optimizers = build_optimizers(recipe.optimizer, self.weights.masters)
        self.loss_of = start.loss_of(self.model, self.choice, recipe)
        self.num_steps: int = (
            self.begun["steps"] if self.begun else start.num_steps(recipe, self.batches, step_seconds)
        )
        self.flops_per_token = count.flops_per_token(self.config, "matmul")
        self.meter = Meter(self.flops_per_token, self._ceiling())
        self.consumed = hashlib.sha256().hexdigest()
        """Digest of every sample seen, in order: two runs that agree here saw the same text."""

    def events(self, interrupt: Interrupt, init_from: Path | None) -> Iterator[Event]:
        """The whole run, from where it stands."""
        train = self.recipe.train
        start.check_space(self.run, self.config, self.recipe)
        done = yield from self._begin_or_resume(init_from)
        if done < self.num_steps:
            self._warm_up()
        energy = joules()
        for step in range(done, self.num_steps):
            began = time.perf_counter()
            batch = self.batches.batch(step)
            if self.config.dropout:
                torch.manual_seed(derive(train.seed, "dropout", step))
            rate = factor(self.recipe.schedule, step, self.num_steps)
            found = update(
                self.loss_of, self.weights, self.optimizers, batch,
                rate=rate, clip=train.clip, accumulate=train.accumulate, device=self.device,
            )  # fmt: skip
            self.consumed = hashlib.sha256(
                bytes.fromhex(self.consumed) + batch.sample_ids.tobytes()
            ).hexdigest()
            self.meter.add(self.batches.tokens_per_batch, time.perf_counter() - began)
            done = step + 1
            last = done == self.num_steps
            if last or step == 0 or done % train.log_every == 0:
                yield self._log(
                    "step", step=done, loss=found.loss, grad_norm=found.grad_norm,
                    learning_rate=rate * self.recipe.optimizer.learning_rate,
                    tokens=self.meter.tokens, seconds=self.meter.seconds, **self.meter.recent(),
                )  # fmt: skip
            if last or done % train.validate_every == 0:
                yield from self._validate(done, whole=last)
            if last or done % train.sample_every == 0:
                yield from self._sample(done)
            reason = None if last else interrupt.reason
            if last or reason or done % train.checkpoint_every == 0:
                yield self._save(done, must=last or reason is not None)
            if reason:
                yield self._log("stopped", reason=reason, **self._summary())
                raise Stopped(f"Stopped after step {done} of {self.num_steps}: {reason}.",
                              do="Everything is saved; the same command goes on.")  # fmt: skip
        yield from self._finish(energy)

    def _begin_or_resume(self, init_from: Path | None) -> Generator[Event, None, int]:
        """Yields what happened and returns the number of steps that are done."""
        found = checkpoints.load_newest(self.run.checkpoints)
        if self.begun is None:
            engine = self.run.events.last("engine")
            assert engine is not None  # written by choose_engine
            yield engine
            yield self._log("text_report", report=self.prepared.report)
            yield self._log(
                "start", recipe=self.recipe.name, steps=self.num_steps, device=str(self.device),
                parameters=count.parameters(self.config).total, tokens_per_step=self.batches.tokens_per_batch,
                flops_per_token=self.flops_per_token, gemm_ceiling_flops_per_second=self.meter.ceiling,
                waste=self.batches.waste,
            )  # fmt: skip
            for message in (*self.prepared.warnings, *self.batches.warnings):
                yield self._log("warning", message=message)
        if found is None:
            if init_from is not None:
                yield self._log("warning", message=start.start_from(self.weights, init_from))
            if self.begun is not None:
                yield self._log("resumed", step=0, lost_steps=0, findings=[])
            return 0
        checkpoints.check_fits(found.state["model"], self.config.model_dump(mode="json"))
        self.weights.load(found.tensors["model"])
        restore_state(self.optimizers, self.weights.masters, found.tensors["optimizer"])
        self.consumed = found.state["consumed"]
        self.meter = Meter(
            self.flops_per_token,
            self.meter.ceiling,
            tokens=found.state["tokens"],
            seconds=found.state["seconds"],
        )
        yield self._log(
            "resumed", step=found.step, lost_steps=found.lost_steps, findings=[str(f) for f in found.findings]
        )
        return found.step

    def _validate(self, step: int, *, whole: bool) -> Iterator[Event]:
        """Mean loss on the text held out, each token predicted once. With the training step's own code and
        gradients on, so that nothing is compiled a second time; no gradient is taken."""
        rows = self.recipe.train.batch // self.recipe.train.accumulate
        limit = None if whole else self.recipe.train.validation_tokens
        token_bytes = self.prepared.tokenizer.token_bytes
        nats, num_targets, num_bytes = 0.0, 0, 0
        with self._without_dropout():
            for batch in validation_batches(
                self.prepared.validation, batch=rows, context=self.config.context,
                mask_documents=self.recipe.data.mask_documents,
            ):  # fmt: skip
                for ids, targets, segments, targets_here in micro_batches(batch, 1, self.device):
                    loss = self.loss_of(ids, targets, segments=segments, num_targets=targets_here)
                    nats += loss.item() * int(targets_here)
                    num_targets += int(targets_here)
                num_bytes += int(token_bytes[batch.targets[batch.targets != NO_LOSS]].sum())
                if limit is not None and num_targets >= limit:
                    break
        self.meter.saw_ceiling(self._ceiling())
        if num_targets:
            yield self._log(
                "validation", step=step, loss=nats / num_targets, bits_per_byte=bits_per_byte(nats, num_bytes),
                tokens=num_targets, bytes=num_bytes, whole=whole,
            )  # fmt: skip

    def _sample(self, step: int) -> Iterator[Event]:
        train = self.recipe.train
        for prompt in train.sample_prompts if train.sample_tokens else ():
            try:
                with self._without_dropout():
                    text = generate(
                        self._loaded(), prompt, max_tokens=train.sample_tokens, seed=train.seed
                    ).text
            except TokenizerError as error:  # a prompt that this text's characters cannot spell
                yield self._log("warning", message=f"no sample of {prompt!r}: {error}")
            else:
                yield self._log("sample", step=step, prompt=prompt, text=text)

    def _save(self, step: int, *, must: bool) -> Event:
        """A checkpoint. One that fails between is a warning: training goes on, and the older ones are there."""
        began = time.perf_counter()
        tensors = {
            "model": {name: master.detach() for name, master in self.weights.masters.items()},
            "optimizer": state_tensors(self.optimizers, self.weights.masters),
        }
        state = {
            "model": self.config.model_dump(mode="json"),
            "consumed": self.consumed,
            "tokens": self.meter.tokens,
            "seconds": self.meter.seconds,
        }
        try:
            path = checkpoints.save(
                self.run.checkpoints, step, _on_cpu(tensors), state, keep=self.recipe.train.keep
            )
        except RunError as error:
            if must:
                raise
            return self._log("warning", message=f"no checkpoint at step {step}: {error}")
        size = sum(file.stat().st_size for file in path.iterdir())
        return self._log(
            "checkpoint", step=step, path=path.name, bytes=size, seconds=time.perf_counter() - began
        )

    def _finish(self, energy: float | None) -> Iterator[Event]:
        self.weights.settle()
        self.model.eval()
        loaded = self._loaded()
        save_model(self.run.model, self.model, self.prepared.tokenizer)
        text = self._a_validation_text()
        if text and self.config.layers:
            yield self._log("attention", **attention_rows(self.model, loaded.tokenizer, text))
        now = joules()
        used = {} if energy is None or now is None else {"joules": now - energy}
        summary = self._summary()
        yield self._log("cost", **{key: summary[key] for key in ("flops", "seconds", "tokens")}, **used)
        yield self._log("done", **summary)
        write_report(self.run)

    def _summary(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.run.summary().items() if key not in ("run", "status")}
        return {
            **kept,
            **self.meter.overall(),
            "tokens": self.meter.tokens,
            "seconds": self.meter.seconds,
            "flops": self.meter.tokens * self.flops_per_token,
            "consumed": self.consumed,
        }

    def _ceiling(self) -> float:
        """What the bare products reach at this moment."""
        rows = self.batches.tokens_per_batch // self.recipe.train.accumulate
        return matmul_ceiling(self.config, rows, self.choice.precision, self.choice.device)

    def _loaded(self) -> Loaded:
        return Loaded(self.model, self.prepared.tokenizer, self.config, self.run.path)

    def _a_validation_text(self, num_tokens: int = 32) -> str:
        store = self.prepared.validation if self.prepared.validation.num_tokens else self.prepared.train
        return self.prepared.tokenizer.decode(store.ids[:num_tokens].tolist())

    @contextlib.contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Compiled code belongs to one mode, so the mode is left alone where it changes nothing."""
        self.model.train(not self.config.dropout)
        try:
            yield
        finally:
            self.model.train()

    def _warm_up(self) -> None:
        """Compile, and touch all memory, before the clock runs: one gradient that no weight sees."""
        parts = micro_batches(self.batches.batch(0), self.recipe.train.accumulate, self.device)
        ids, targets, segments, num_targets = next(parts)
        with on_all_cores():
            loss = self.loss_of(ids, targets, segments=segments, num_targets=num_targets)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.weights.collect()
        self.weights.zero_gradients()

    def _log(self, name: str, **fields: Any) -> Event:
        return self.run.events.append(name, **fields)


def _on_cpu(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    return {stem: {name: value.cpu() for name, value in group.items()} for stem, group in tensors.items()}


def _number(path: Path) -> int:
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0
