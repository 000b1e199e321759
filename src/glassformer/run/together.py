"""A checkpoint that all ranks save together, because each holds a part of the weights.

    rank 0     makes .step-00000600.partial-4711/ and tells its name
    all        write their parts there, and tell size and digests of what they wrote        (run/shards.py)
    rank 0     writes state.json, then the manifest with all digests, and renames the folder into place
    all        read back a share of the files each; only when all are whole, rank 0 removes older checkpoints

Whatever fails, on whichever rank, all learn of it, and nothing is published. The folder lies on a file system that all
ranks share. On the disk it differs from a checkpoint of one rank by the names of its files alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError, RunError
from glassformer.run import checkpoints, reserve, shards
from glassformer.run.checkpoints import Found
from glassformer.run.sealed import About, Finding, inspect, nothing_left_of, partial_of, seal
from glassformer.run.shards import Group, Stems
from glassformer.run.tensors import Record


def save(
    folder: Path,
    step: int,
    tensors: Stems,
    copied: Stems,
    state: Mapping[str, Any],
    group: Group,
    *,
    keep: int = 2,
) -> Path:
    """Save `step`, called by all ranks of `group`, and keep the `keep` newest as `checkpoints.save` does.

    `tensors` say how they are divided, `copied` are this rank's parts on the CPU. Raises on all ranks alike.
    """
    path = group.tell(lambda: checkpoints.cleaned(folder) / f"step-{step:08d}")
    partial = group.tell(lambda: partial_of(path))
    about = checkpoints.about(step)
    need = sum(group.hear(reserve.bytes_to_save(copied)))
    with reserve.given_up(path.parent, need) if group.rank == 0 else nullcontext():
        with nothing_left_of(partial, path):
            group.tell(lambda: partial.mkdir(parents=True))
            files = shards.write(partial, path, tensors, copied, group)
            group.tell(lambda: _publish(partial, path, files, state, about))
        if spare := group.tell(lambda: checkpoints.spare_ones(path.parent, step, keep)):
            found = _look(path, about, group)
            group.tell(lambda: checkpoints.remove_ones(spare, found))
    return path


def find_newest(folder: Path, group: Group) -> Found | None:
    """The newest whole checkpoint, as `checkpoints.load_newest` finds it; each rank reads a share of the files."""
    steps = group.tell(lambda: checkpoints.saved_steps(folder))
    blind = [r for r, sees in enumerate(group.hear(all(path.is_dir() for _, path in steps))) if not sees]
    if blind:
        raise CheckpointError(
            f"Rank {blind[0]} does not see the checkpoints in {steps[-1][1].parent}.",
            expected="Weights that were divided over ranks are read by all of them, each its part.",
            do="Give a --run on a file system that all machines share.",
        )
    return checkpoints.find_newest(
        folder, steps, lambda path, about: _look(path, about, group), set_aside=group.rank == 0
    )


def _look(path: Path, about: About, group: Group) -> list[Finding]:
    """What is wrong with a checkpoint, on all ranks; what several of them see is told once."""
    heard = group.hear(inspect(path, about, (group.rank, group.count)))
    return list(dict.fromkeys(item for found in heard for item in found))


def _publish(
    partial: Path, path: Path, files: Mapping[str, Record], state: Mapping[str, Any], about: About
) -> None:
    for attempt in range(10):
        missing = [name for name in files if not (partial / name).exists()]
        if not missing:
            break
        time.sleep(0.1 * attempt)  # a network file system may show a new name late
    else:
        raise RunError(
            f"{path.name} was not saved: other ranks have written {', '.join(missing)}, which rank 0 does not see.",
            expected="Weights that are divided over ranks are saved by all of them, into one folder.",
            do="Give a --run on a file system that all machines share.",
        )
    seal(partial, path, files, {checkpoints.STATE: json.dumps(state).encode()}, about)
