"""Going on from a checkpoint, whatever number of ranks saved it, and however the weights were divided then.

whole tensors on the disk       rank 0 verifies and reads them, and deals them out
parts on the disk, many ranks   each rank verifies a share of the files, and reads what it needs into its own part
parts on the disk, one rank     it puts them together
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from glassformer.run import checkpoints
from glassformer.run.checkpoints import Checkpoint
from glassformer.train.optimizers import restore_state
from glassformer.train.ranks import Named

if TYPE_CHECKING:
    from glassformer.train.loop import Session


def restore(session: Session) -> Checkpoint | None:
    """Weights, optimiser and counts are those of the newest whole checkpoint, on all ranks; None where none was ever
    saved. The tensors stay with them: what is returned has none."""
    ranks, folder = session.ranks, session.run.checkpoints
    parts = ranks.count > 1 and ranks.decide(
        lambda: any(checkpoints.is_divided(path) for _, path in checkpoints.saved_steps(folder))
    )
    kept, tensors = _in_parts(session) if parts else _whole(session)
    if kept is None:
        return None
    checkpoints.check_fits(kept.state["model"], session.task.config.model_dump(mode="json"))
    masters = session.weights.masters
    if parts and checkpoints.is_divided(kept.path):
        from glassformer.run import shards

        held = shards.read(kept.path, masters, session.saver.group)
        tensors = {stem: ranks.as_held(named) for stem, named in held.items()}
    else:
        tensors = {stem: ranks.spread(tensors.get(stem, {}), masters) for stem in ("model", "optimizer")}
    session.weights.load(tensors["model"])
    restore_state(session.optimizers, masters, tensors.get("optimizer", {}))
    session.restore_counts(kept.state)
    return kept


def _whole(session: Session) -> tuple[Checkpoint | None, dict[str, Named]]:
    """Rank 0 reads; (the checkpoint without its tensors, the tensors on rank 0)."""
    found = checkpoints.load_newest(session.run.checkpoints) if session.ranks.is_first else None
    kept = session.ranks.decide(lambda: None if found is None else replace(found, tensors={}))
    return kept, dict(found.tensors) if found else {}


def _in_parts(session: Session) -> tuple[Checkpoint | None, dict[str, Named]]:
    """All ranks verify. The newest that is whole may still be one that was written by a single rank."""
    from glassformer.run import together

    ranks, saver = session.ranks, session.saver
    found = together.find_newest(session.run.checkpoints, saver.group)
    if found is None:
        return None, {}
    state = ranks.decide(lambda: checkpoints.read_state(found.path))
    kept = Checkpoint(found.step, found.path, {}, state, found.findings, found.lost_steps)
    if ranks.is_first and not checkpoints.is_divided(found.path):
        return kept, dict(checkpoints.load(found.path).tensors)
    return kept, {}
