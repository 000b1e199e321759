"""What a run does when a step was refused: look where it came from, decide, say so, and go on from there.

Deciding is train/faults.py's; this is what it takes to carry it out in a session of train/loop.py.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import RunError
from glassformer.run import checkpoints
from glassformer.train.bundle import write_bundle
from glassformer.train.culprit import first_not_finite, row_losses
from glassformer.train.faults import Fault, in_words
from glassformer.train.memory import not_finite
from glassformer.train.optimizers import state_tensors
from glassformer.train.ranks import Ranks
from glassformer.train.saving import whole_tensors
from glassformer.train.step import Diverged, micro_batches
from glassformer.train.task import Batch, Event

if TYPE_CHECKING:
    from glassformer.train.loop import Session


def recover(session: Session, fault: Fault) -> Generator[Event, None, int]:
    """Yields the fault's event and returns how many steps are done, for the run to go on from.

    Raises Diverged where it must not go on.
    """
    guard, task, run = session.guard, session.task, session.run
    batch = task.batches.batch(fault.step)
    damaged = guard.damaged()
    spike = fault.kind in ("loss_spike", "gradient_spike")
    earlier = spike and guard.config.spike == "roll_back" and _earlier_too(session)
    seen = _look(session, fault, batch, damaged)  # before anything is changed
    decision = guard.decide(
        fault, lambda step: _ids(task.batches.batch(step)), damaged=damaged, earlier_too=earlier
    )
    found = fault.found
    event: dict[str, Any] = {
        "step": fault.step + 1,
        "kind": fault.kind,
        "loss": found.loss if found else None,
        "grad_norm": found.grad_norm if found else None,
        "usual": guard.watch.usual(),
        "decision": decision.deed,
        "blamed": None if decision.blamed is None else decision.blamed + 1,
        "sample_ids": None if decision.blamed is None else guard.quarantined[decision.blamed],
        **seen,
    }
    if decision.deed == "stop" or (decision.deed == "roll_back" and not _can_go_back(session)):
        event["decision"] = "stop"
        event["bundle"] = _bundle(session, fault, batch, event)
        yield run.events.append("fault", **event, message=in_words(event))
        session.ranks.wait()  # for rank 0, which has the bundle on the disk: an error ends the others within seconds
        raise Diverged(f"{in_words(event).capitalize()}; no weight was changed.", do=_advice(event))
    if decision.deed != "roll_back":
        yield run.events.append("fault", **event, message=in_words(event))
        return fault.step
    event["step_back"] = _go_back(session)
    yield run.events.append("fault", **event, message=in_words(event))
    return int(event["step_back"])


def _look(session: Session, fault: Fault, batch: Batch, damaged: bool) -> dict[str, Any]:
    """What can be seen of where a fault came from."""
    weights, ranks, seen = session.weights, session.ranks, dict[str, Any]()
    sizes = session.recipe.train.accumulate
    if damaged:
        remembered = state_tensors(session.optimizers, weights.masters)
        seen["tensors"] = _heard(ranks, not_finite(ranks.mine({**weights.masters, **remembered})))
    elif fault.kind == "not_finite":
        gradients = {
            f"gradient of {name}": w.grad for name, w in weights.masters.items() if w.grad is not None
        }
        rows = not_finite(ranks.mine(gradients))
        seen["tensors"] = _heard(ranks, rows) if ranks.sharded else rows
    if fault.kind == "not_finite":
        mine = first_not_finite(session.model, batch, session.choice, accumulate=sizes, ranks=ranks)
        seen["place"] = next(iter(_heard(ranks, [] if mine is None else [mine])), None)
        if seen["place"] and "sample_id" in seen["place"]:
            seen["samples"] = [_located(session, {"sample_id": seen["place"]["sample_id"]})]
    elif fault.found is not None:
        rows = row_losses(session.model, batch, session.choice, ranks=ranks)
        seen["samples"] = [_located(session, row) for row in rows]
    return seen


def _heard(ranks: Ranks, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What all ranks saw, each in its own weights and rows; where there are several, with the rank."""
    if ranks.count == 1:
        return rows
    return [{**row, "rank": rank} for rank, heard in enumerate(ranks.hear(rows)) for row in heard]


def _located(session: Session, row: dict[str, Any]) -> dict[str, Any]:
    """With the documents, or the row of a file, that a sample is from, where the batches can tell."""
    locate = getattr(session.task.batches, "locate", None)
    return row if locate is None else {**row, **locate(row["sample_id"])}


def _earlier_too(session: Session) -> bool:
    """Whether the last good batch has become bad: then the weights are at fault, not this one."""
    last = session.guard.last
    if last is None:
        return False
    session.seed_dropout(last)
    batch = session.ranks.rows(session.task.batches.batch(last))
    parts = micro_batches(batch, session.recipe.train.accumulate, session.device)
    with torch.set_grad_enabled(not session.ranks.sharded):
        mine = sum(session.loss_of(**arrays).item() for arrays in parts)
    session.ranks.rest()
    (loss,) = session.ranks.total(mine)
    return session.guard.watch.is_high(loss)


def _can_go_back(session: Session) -> bool:
    folder = session.run.checkpoints
    return session.guard.memory.step is not None or session.ranks.decide(
        lambda: any(listed.kind == "checkpoint" for listed in checkpoints.list_checkpoints(folder))
    )


def _go_back(session: Session) -> int:
    """To the state in memory or, without one, the newest whole checkpoint; the number of steps done there."""
    memory = session.guard.memory
    if memory.step is not None:
        memory.restore(session.weights, session.optimizers, ranks=session.ranks)
        session.restore_counts(memory.state)
        session.guard.go_back(memory.state["faults"])
        return memory.step
    restored = session.restore()
    assert restored is not None  # `_can_go_back`, and a run with damaged ones alone raises
    if "faults" in restored.state:
        session.guard.go_back(restored.state["faults"])
    return restored.step


def _bundle(session: Session, fault: Fault, batch: Batch, event: dict[str, Any]) -> str | None:
    """The bundle's path inside the run; None where it could not be written, which must not hide the fault."""
    recipe = session.recipe
    about = {
        "step": fault.step + 1, "fault": event, "model": session.task.config.model_dump(mode="json"),
        "choice": asdict(session.choice), "clip": recipe.train.clip,
        "accumulate": recipe.train.accumulate * session.ranks.count,
        "label_smoothing": recipe.train.label_smoothing, "z_loss": recipe.train.z_loss,
        "recipe": recipe.resolved(), "made_with": session.run.manifest,
    }  # fmt: skip
    tensors = whole_tensors(session)
    if not session.ranks.is_first:
        return None
    session.seed_dropout(fault.step)
    try:
        path = write_bundle(session.run.path / "faults", fault.step + 1, batch, tensors, about)
    except RunError as error:
        session.run.events.append("warning", message=f"no bundle of step {fault.step + 1}: {error}")
        return None
    return str(path.relative_to(session.run.path))


def _ids(batch: Batch) -> list[int]:
    return [int(i) for i in batch.sample_ids]


def _advice(event: dict[str, Any]) -> str:
    bundle = event["bundle"]
    told = f"The step is kept in {bundle} (gf.reproduce_fault). " if bundle else ""
    return (
        f"{told}Lower optimizer.learning_rate, lengthen schedule.warmup, look at the samples of this batch, or change "
        "[faults]; the same command goes on from the last checkpoint."
    )
