"""A rehearsal: one step of any mesh, on one machine, in seconds, with shapes and no numbers.

The model is built and divided by the code that a real rank runs, and one step is taken: forward, backward, gradients
summed, the optimiser's update. What that holds in memory (`ledger.py`) and sends to others (`exchanges.py`) is what a
rank would hold and send. The first rank is rehearsed; where parts are uneven, the last one is set up as well.

Computation is eager, in the precision and with the attention of the recipe. What is `auto` there is measured on the
real machine; here it is what holds most: float32, and torch's own attention. torch.compile holds less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glassformer.errors import TextError, UsageError
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.shapes import shapes
from glassformer.model.stacks import build
from glassformer.train.engine import Choice
from glassformer.train.parallel.ledger import KINDS
from glassformer.train.parallel.pretence import pretended
from glassformer.train.parallel.stage import Stage, Subject
from glassformer.train.ranks import Named
from glassformer.train.recipe import AnyRecipe, Recipe, load_recipe
from glassformer.train.start import open_task
from glassformer.train.task import Task
from glassformer.train.world import check_division
from glassformer.units import show_bytes


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One rank's memory and exchanges, of one step."""

    ranks: int
    rank: int
    """Which one this is."""
    mesh: Mapping[str, int]
    """How many copies of the weights there are, over how many ranks each is divided, and each layer."""
    rows: int
    """That this rank learns from at once: a micro-batch."""
    precision: str
    attention: str | None
    peak_bytes: int
    peak_at: str
    """The worst moment: forward, backward, exchange (of gradients) or update."""
    largest: str
    """What holds most then."""
    memory: Sequence[Mapping[str, Any]]
    """A row for each class of `ledger.py`: `bytes` at the worst moment, `most_bytes` at any."""
    activation_bytes: int
    """What the forward pass keeps for the backward one."""
    beginning_bytes: int
    """The most that is held before the first step, while the model is built and divided."""
    host: Mapping[str, int]
    """Bytes beside those: `remembered`, the state to roll back to; `checkpoint`, the copy that is written beside the
    work, and of divided weights the file that is made of it."""
    exchanges: Sequence[Mapping[str, Any]]
    """Of a whole step, a row for each kind and dimension of the mesh; bytes are one rank's."""
    sent_bytes: int
    uneven: Mapping[str, Any] | None
    """Weights whose parts are not equal, and what that costs the first rank; None where all are."""
    warnings: Sequence[str]

    def document(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return asdict(self)


def rehearse(
    what: str | Path | Mapping[str, Any] | None = None,
    *,
    ranks: int,
    rank: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Rehearsal:
    """What one of `ranks` ranks would hold in memory and send to others in a step of a recipe, without the machines.

    `what` is a recipe's name, file or values. One of task `language` with `model.vocab` needs no data. Raises
    ConfigError with all that cannot be divided.
    """
    recipe, base = load_recipe(what, overrides)
    check_division(recipe, ranks)
    task = None if needs_no_data(recipe) else open_task(recipe, base, lambda message: None)
    return rehearse_task(recipe, task, ranks, rank)


def needs_no_data(recipe: AnyRecipe) -> bool:
    """Whether everything about the model and its batches is in the recipe."""
    return isinstance(recipe, Recipe) and recipe.model.vocab is not None


def rehearse_task(recipe: AnyRecipe, task: Task | None, ranks: int, rank: int = 0) -> Rehearsal:
    """`rehearse` for a recipe whose data is open; None for one that needs none."""
    check_division(recipe, ranks)
    if not 0 <= rank < ranks:
        raise UsageError(f"There is no rank {rank} of {ranks}.", expected=f"0 to {ranks - 1}.")
    subject, choice = _subject(recipe, task), _choice(recipe)
    with pretended(recipe.parallel, rank, ranks) as (mine, ledger):
        stage = Stage(recipe, subject, choice, mine, ledger)
        exchanges = stage.step()
        held = stage.held()
    uneven = _uneven(held)
    state = _local_bytes({kind: held[kind] for kind in ("weights", "optimizer")})
    divided = recipe.parallel.divides_weights and ranks > 1
    host = {"checkpoint": 2 * state if divided else state if rank == 0 else 0}
    if recipe.faults.remember_every:
        host["remembered"] = state
    mesh, peak = _mesh(held["weights"], ranks), sum(ledger.at_peak.values())
    for row in exchanges:
        if row["over"] == "all":  # torch's own group, which is a dimension that has all ranks as well
            row["over"] = next((name for name, size in mesh.items() if size == ranks > 1), "all")
    return Rehearsal(
        ranks=ranks, rank=rank, mesh=mesh, rows=stage.rows,
        precision=choice.precision, attention=choice.attention, peak_bytes=peak, peak_at=ledger.peak_moment,
        largest=max(KINDS, key=lambda kind: ledger.at_peak[kind]),
        memory=[
            {"class": kind, "bytes": ledger.at_peak[kind], "most_bytes": ledger.most[kind]} for kind in KINDS
        ],
        activation_bytes=stage.kept_bytes, beginning_bytes=stage.beginning_bytes, host=host, exchanges=exchanges,
        sent_bytes=sum(row["sent_bytes"] for row in exchanges), uneven=uneven,
        warnings=_warnings(recipe, uneven, stage.beginning_bytes, peak),
    )  # fmt: skip


def plan_rehearsed(
    recipe: AnyRecipe, base: Path, ranks: int, facts_of: Callable[[Task, str], dict[str, Any]]
) -> dict[str, Any]:
    """A run's facts and its rehearsal, as one document."""
    try:
        task = open_task(recipe, base, lambda message: None)
    except TextError as error:
        if not needs_no_data(recipe):
            raise
        told = {"recipe": recipe.name, "task": recipe.task, "device": recipe.engine.device}
        size = sum(map(prod, shapes(recipe.model).values()))  # type: ignore[arg-type] # of a language recipe
        facts: dict[str, Any] = {
            **told,
            "parameters": size,
            "warnings": [f"rehearsed without the data: {error}"],
        }
        rehearsal = rehearse_task(recipe, None, ranks)
    else:
        facts, rehearsal = facts_of(task, recipe.engine.device), rehearse_task(recipe, task, ranks)
    warnings = [*facts.pop("warnings"), *rehearsal.warnings]
    return {**facts, "rehearsal": rehearsal.document(), "warnings": warnings}


def tables(rehearsal: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A rehearsal's document as people read it: a title over each table."""
    mesh = " x ".join(f"{size} {name}" for name, size in rehearsal["mesh"].items())
    who = f"Rank {rehearsal['rank']} of {rehearsal['ranks']:,}"
    title = f"{who} ({mesh}), {rehearsal['rows']} rows at once, {rehearsal['precision']}"
    memory = [
        {"memory": row["class"], "bytes": row["bytes"], "size": show_bytes(row["bytes"]),
         "at_most": show_bytes(row["most_bytes"])}
        for row in rehearsal["memory"] if row["most_bytes"]
    ]  # fmt: skip
    peak = rehearsal["peak_bytes"]
    memory.append(
        {"memory": f"in all, at worst ({rehearsal['peak_at']})", "bytes": peak, "size": show_bytes(peak)}
    )
    beside = {"before the first step": rehearsal["beginning_bytes"], **rehearsal["host"]}
    memory += [
        {"memory": name, "bytes": size, "size": show_bytes(size)} for name, size in beside.items() if size
    ]
    sent = [
        {"exchange": row["kind"], **{key: row[key] for key in ("over", "ranks", "count")},
         "of": show_bytes(row["payload_bytes"]), "sent_bytes": row["sent_bytes"], "sent": show_bytes(row["sent_bytes"])}
        for row in rehearsal["exchanges"]
    ]  # fmt: skip
    return [(title, memory), ("Exchanged in a step", sent)]


def _subject(recipe: AnyRecipe, task: Task | None) -> Subject:
    config = recipe.model if task is None else task.config
    row = np.zeros((1, getattr(config, "context", 1)), np.int64)
    arrays: Mapping[str, NDArray[Any] | None] = {"ids": row, "targets": row, "segments": None}
    if not isinstance(recipe, Recipe):
        assert task is not None  # `needs_no_data`
        arrays = task.batches.batch(0).arrays()
    elif recipe.data.mask_documents:
        arrays = {**arrays, "segments": row.astype(np.int32)}
    return Subject(config, lambda device: _built(config, recipe.train.seed, torch.device(device)), arrays)


def _built(config: Any, seed: int, device: torch.device) -> nn.Module:
    """As a task builds its model, which here is where it is to be when it is made."""
    if isinstance(config, NetworkConfig):
        return Network(config, seed=seed)
    return build(config, seed=seed, device=None if device.type == "cpu" else device)


def _choice(recipe: AnyRecipe) -> Choice:
    engine = recipe.engine
    precision = "fp32" if engine.precision == "auto" else engine.precision
    attention = "fused" if engine.attention == "auto" else engine.attention
    return Choice("cpu", precision, False, None if isinstance(recipe.model, NetworkConfig) else attention)


def _mesh(weights: Named, ranks: int) -> dict[str, int]:
    """The dimensions along which weights are divided, and how many copies that leaves."""
    sizes: dict[str, int] = {}
    for weight in weights.values():
        if isinstance(weight, DTensor):
            mesh = weight.device_mesh
            sizes |= zip(mesh.mesh_dim_names or (), mesh.shape, strict=True)
    sizes.pop("copies", None)
    return {"copies": ranks // prod(sizes.values()), **sizes}


def _uneven(held: Mapping[str, Named]) -> dict[str, Any] | None:
    """Weights that are not divided into equal parts, and by how much the first rank's exceed those, in bytes; of all
    that stays from step to step, what the first rank holds and the last."""
    weights = held["weights"]
    found = {
        name: _storage_bytes(weight) - _whole_bytes(weight) / _parts(weight)
        for name, weight in weights.items()
    }
    found = {name: more for name, more in found.items() if more}
    if not found:
        return None
    worst = max(found, key=lambda name: found[name])
    tensors = [tensor for kind in held.values() for tensor in kind.values()]
    return {
        "weights": len(found), "of": len(weights), "worst": worst, "shape": list(weights[worst].shape),
        "waste_bytes": round(sum(found.values())),
        "first_rank_bytes": sum(_part_bytes(tensor, last=False) for tensor in tensors),
        "last_rank_bytes": sum(_part_bytes(tensor, last=True) for tensor in tensors),
    }  # fmt: skip


def _part_bytes(tensor: Tensor, *, last: bool) -> int:
    """Of the first rank's part, or the last one's: of r rows over n ranks, ceil(r / n), and what is left after n - 1 of
    those. A tensor group's parts, which come first, are equal."""
    if not isinstance(tensor, DTensor):
        return _whole_bytes(tensor)
    sizes = dict(zip(tensor.device_mesh.mesh_dim_names or (), tensor.device_mesh.shape, strict=True))
    size, shape = tensor.element_size(), list(tensor.shape)
    dims = zip(sizes, tensor.placements, strict=True)
    for name, placement in sorted(dims, key=lambda dim: dim[0] == "shard"):
        if placement.is_replicate():
            continue
        rows, count = shape[placement.dim], sizes[name]  # type: ignore[attr-defined] # all others have one
        part = -(-rows // count)
        shape[placement.dim] = max(0, rows - part * (count - 1)) if last else part  # type: ignore[attr-defined]
    return size * prod(shape)


def _parts(weight: Tensor) -> int:
    """Over how many ranks it is divided."""
    if not isinstance(weight, DTensor):
        return 1
    pairs = zip(weight.device_mesh.shape, weight.placements, strict=True)
    return prod(size for size, placement in pairs if not placement.is_replicate())


def _whole_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage_bytes(tensor: Tensor) -> int:
    """With what FSDP2 fills it up by, to the size of the first rank's."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage().nbytes()


def _local_bytes(held: Mapping[str, Named]) -> int:
    local = (
        t.to_local() if isinstance(t, DTensor) else t for tensors in held.values() for t in tensors.values()
    )
    return sum(map(_whole_bytes, local))


def _warnings(recipe: AnyRecipe, uneven: Mapping[str, Any] | None, beginning: int, peak: int) -> list[str]:
    engine, said = recipe.engine, []
    if engine.precision == "auto":
        said.append("engine.precision is auto: rehearsed in float32, which holds most")
    if engine.compile == "on":
        said.append("engine.compile is on: rehearsed without, which holds more")
    if uneven is not None:
        said.append(
            f"{uneven['weights']} of {uneven['of']} weights do not divide into equal parts, such as {uneven['worst']} "
            f"{uneven['shape']}: the first rank keeps {show_bytes(uneven['waste_bytes'])} more of weights than an "
            f"equal part, and {show_bytes(uneven['first_rank_bytes'])} in all where the last keeps "
            f"{show_bytes(uneven['last_rank_bytes'])}"
        )
    if beginning > peak:
        said.append(
            f"before the first step a rank holds {show_bytes(beginning)}, more than in any step: each builds the whole "
            "model before it keeps its part"
        )
    return said
