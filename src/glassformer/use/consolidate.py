"""From a checkpoint to a model folder: `config.json`, `model.safetensors`, `tokenizer.json`.

A checkpoint is for training: it has the optimiser too, and where weights were divided over ranks it has a file of each.
The folder made here is what `save_model` writes at the end of a run, from any of its checkpoints; the weights are the
same to the bit. Every file is checked against its digest on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import CheckpointError, RunError, UsageError
from glassformer.run.checkpoints import list_checkpoints
from glassformer.run.folder import Run
from glassformer.use.load import check_replaceable, is_network, load, save_model
from glassformer.use.predict import load_network, save_network


@dataclass(frozen=True, slots=True)
class Consolidated:
    """What came of it."""

    path: Path
    """The model folder."""
    step: int
    """Whose weights it has."""
    num_bytes: int
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that are damaged, and what is wrong with them."""


def consolidate(run: Run | str | Path, out: str | Path, *, step: int | None = None) -> Consolidated:
    """One model folder `out` from the checkpoint of a run at `step`; left out, its newest whole one.

    Raises RunError where there is none of that step, CheckpointError where it is damaged, UsageError where `out` is
    something else than a model folder.
    """
    run, out = run if isinstance(run, Run) else Run.open(Path(run)), Path(out)
    check_replaceable(out)
    if out.resolve().is_relative_to(run.checkpoints.resolve()):
        raise UsageError(f"{out} is among the checkpoints of the run.", do="Give a folder elsewhere.")
    steps = [one.step for one in list_checkpoints(run.checkpoints) if one.kind == "checkpoint"]
    if not steps:
        raise RunError(f"{run.path} has no checkpoint.", do="Train until the first, or give another run.")
    if step is not None and step not in steps:
        raise RunError(
            f"{run.path} has no checkpoint of step {step}.",
            expected=f"It has those of {', '.join(map(str, steps))}.",
            do="Leave --step out for the newest, or keep more: train.keep.",
        )
    problems: list[str] = []
    for number in [step] if step is not None else reversed(steps):
        try:
            _write(run, run.checkpoints / f"step-{number:08d}", out)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        size = sum(file.stat().st_size for file in out.iterdir())
        return Consolidated(out, number, size, tuple(problems))
    raise CheckpointError("\n".join(problems), do="\nPut back a copy of it, or give another step.")


def _write(run: Run, checkpoint: Path, out: Path) -> None:
    if is_network(run.path):
        predictor = load_network(checkpoint)
        save_network(out, predictor.network, predictor.columns)
        return
    loaded = load(checkpoint)
    save_model(out, loaded.model, loaded.tokenizer, classes=loaded.classes)
