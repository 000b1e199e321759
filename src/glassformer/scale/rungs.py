"""One rung as a run like any other: its recipe, its folder, and how it is trained on this machine.

Every rung is a process of its own (`python -m glassformer.scale.rungs`), which reads its order as one line of JSON and
trains; so nothing that befalls a rung befalls the ladder. What the processes end with:

    0    done         the run's folder tells the rest
    75   stopped      by a signal, with everything saved
    -9   killed       the rung goes on from its checkpoint, at most three times
    else failed       the reason is what it wrote last on stderr

A process whose ladder is gone (its stdin ends) stops as if it had been told to.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from glassformer.errors import GlassformerError, RunLocked, Stopped
from glassformer.run.folder import Run
from glassformer.scale.design import WARMUP, Rung
from glassformer.train.interrupt import Interrupt
from glassformer.train.launch import cores, on_all_cores, prepare_process

KILLED_AT_MOST = 3
_BETWEEN_CHECKPOINTS = 30.0
_POLL = 0.05
_LOCK_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """A run that is to be brought to its end."""

    name: str
    recipe: Mapping[str, Any]
    base: Path
    """Where the recipe's relative paths start."""
    run: Path

    def order(self) -> dict[str, Any]:
        return {"recipe": dict(self.recipe), "base": str(self.base), "run": str(self.run.absolute())}


Told = Callable[[Job, str | None], None]
"""Called once for each job that has ended: None, or why it failed."""


class Trainer(Protocol):
    """Who trains."""

    def run(self, jobs: Sequence[Job], told: Told, interrupt: Interrupt) -> None:
        """Bring all to their ends. Raises Stopped when asked to stop, with everything saved."""


def rung_recipe(
    recipe: Mapping[str, Any], rung: Rung, factor: float, engine: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe of a rung: the ladder's, with the rung's sizes, length and rate, decayed to the end."""
    kept = ("width", "layers", "heads", "kv_heads", "head_size", "feedforward", "encoder_layers")
    model = {key: value for key, value in recipe["model"].items() if key not in kept}
    if (wide := recipe["model"].get("feedforward")) is not None:
        model["feedforward"] = round(wide / recipe["model"]["width"] * rung.width)
    own = ("steps", "tokens", "epochs", "minutes", "average", "keep", "accumulate")
    train = {key: value for key, value in recipe["train"].items() if key not in own}
    optimizer = dict(recipe["optimizer"])
    if optimizer["kind"] == "muon":
        optimizer["matrix_learning_rate"] *= factor
    often = max(1, round(_BETWEEN_CHECKPOINTS * rung.steps / rung.seconds))
    never = rung.steps + 1
    return {
        **recipe, "name": rung.name, "about": {},
        "model": {**model, "width": rung.width, "layers": rung.layers, "heads": rung.heads},
        "train": {
            **train, "steps": rung.steps, "batch": rung.batch, "keep": 1,
            "checkpoint_every": min(often, max(1, rung.steps // 4)),
            "validate_every": never, "sample_every": never, "sample_tokens": 0,
        },
        "optimizer": {**optimizer, "learning_rate": rung.learning_rate * factor},
        "schedule": {"kind": "linear", "warmup": WARMUP, "final": 0.0},
        "engine": dict(engine), "parallel": {},
    }  # fmt: skip


def is_done(run: Path) -> bool:
    """Whether the run has come to its end."""
    return (run / "recipe.toml").exists() and Run.open(run).summary()["status"] == "done"


def loss_of(run: Path, vocab: int) -> float:
    """The loss held out of a run that is done; infinite where it learned nothing, or worse."""
    loss = Run.open(run).summary()["val_loss"] if is_done(run) else None
    return math.inf if loss is None or not loss < math.log(vocab) else float(loss)


@dataclass(frozen=True)
class Local:
    """Processes on this machine, so many at a time."""

    workers: int = 1
    threads: int | None = None
    """Of each; left out, the cores divided among the workers."""
    logs: Path = Path()

    def environment(self) -> dict[str, str]:
        """Workers side by side must not be bound to the same cores."""
        own = {"OMP_NUM_THREADS": str(self.threads or max(1, cores() // self.workers))}
        return {**os.environ, **own, **({"OMP_PROC_BIND": "false"} if self.workers > 1 else {})}

    def run(self, jobs: Sequence[Job], told: Told, interrupt: Interrupt) -> None:
        waiting, killed = list(jobs), dict.fromkeys((job.name for job in jobs), 0)
        running: dict[str, tuple[Job, subprocess.Popen[str], IO[str]]] = {}
        self.logs.mkdir(parents=True, exist_ok=True)
        asked = False
        try:
            while running or (waiting and interrupt.reason is None):
                while waiting and len(running) < self.workers and interrupt.reason is None:
                    job = waiting.pop(0)
                    running[job.name] = job, *self._begin(job)
                if interrupt.reason is not None and not asked:
                    asked = True
                    _tell_to_stop(process for _, process, _ in running.values())
                time.sleep(_POLL)
                for name in [name for name, (_, process, _) in running.items() if process.poll() is not None]:
                    job, process, log = running.pop(name)
                    log.close()
                    if process.returncode == -signal.SIGKILL and killed[name] < KILLED_AT_MOST:
                        killed[name] += 1
                        waiting.insert(0, job)
                    elif process.returncode != Stopped.exit_code:
                        told(job, _why(process.returncode, self.logs / f"{name}.log"))
                    elif interrupt.reason is None:
                        raise Stopped(f"{name} was stopped by somebody else.", do="The same command goes on.")
        finally:
            _tell_to_stop(process for _, process, _ in running.values())
            for _, process, log in running.values():
                process.wait()
                log.close()
        if interrupt.reason is not None:
            raise Stopped(
                f"Stopped: {interrupt.reason}.", do="Everything is saved; the same command goes on."
            )

    def _begin(self, job: Job) -> tuple[subprocess.Popen[str], IO[str]]:
        log = (self.logs / f"{job.name}.log").open("w", encoding="utf-8")
        with on_all_cores():
            process = subprocess.Popen(
                [sys.executable, "-m", "glassformer.scale.rungs"], env=self.environment(), text=True,
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and its log says why
            process.stdin.write(json.dumps(job.order()) + "\n")
            process.stdin.flush()
        return process, log


def _tell_to_stop(processes: Iterable[subprocess.Popen[str]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)


def _why(exit_code: int, log: Path) -> str | None:
    if exit_code == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"it ended with {exit_code} and said nothing"


def train_rung(order: Mapping[str, Any]) -> None:
    """Bring one run to its end, in this process. One that still has the lock, for it stops too, is waited for."""
    from glassformer.train.loop import training
    from glassformer.train.recipe import load_recipe

    recipe = load_recipe(order["recipe"]).recipe
    for _ in range(_LOCK_SECONDS):
        with contextlib.suppress(RunLocked):
            for _ in training(recipe, base=Path(order["base"]), run=Path(order["run"])):
                pass
            return
        time.sleep(1)
    raise RunLocked(f"{order['run']} is in use by another process.", do="Stop that, and begin again.")


def _main() -> int:
    order = json.loads(sys.stdin.readline())
    prepare_process()

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        train_rung(order)
    except GlassformerError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
