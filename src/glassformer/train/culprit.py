"""Where a fault came from: the first place whose numbers are not finite, and the samples whose loss is too high.

The part of the batch is run again with a `see` at every place of the model (model/places.py), which takes the
explicit path of attention and no compiled code:

    forward    places in the order of the pass; the first with a number that is not finite
    backward   d loss / d place, one row after the other; the first in the order of the backward pass: from the loss

Dropout is off, so nothing is drawn and a run goes on with the random numbers it had. A fault that is not seen here
was not in these numbers: the machine erred once, or the code that was compiled does (docs/faults.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glassformer.look.step_batch import Lessons
from glassformer.model import network
from glassformer.model.mlp import Network
from glassformer.model.places import find
from glassformer.stats import median
from glassformer.train.engine import Choice
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.spikes import deviation
from glassformer.train.step import micro_batches
from glassformer.train.task import Batch

_MOST_SAMPLES = 5


class _Found(Exception):
    """Ends a pass at the place that was looked for."""


class Checker:
    """A `see` that stops the pass at the first place with a number that is not finite."""

    def __init__(self, *, stops: bool = True) -> None:
        self.stops = stops
        """False where other ranks wait for this one in the rest of the pass."""
        self.place: str | None = None
        self.bad: Tensor | None = None
        """True where a number is not finite."""

    def wants(self, name: str) -> bool:
        return True

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        bad = _bad(name, y.detach()) if self.place is None else None
        if bad is not None:
            self.place, self.bad = name, bad
            if self.stops:
                raise _Found
        return y


class _Attached:
    """A `see` that keeps every place as a part of autograd's graph."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return name not in ("probabilities", "loss")  # nothing follows from these

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if y.requires_grad:
            self.seen[name] = y
        return y


def first_not_finite(
    model: nn.Module, batch: Batch, choice: Choice, *, accumulate: int = 1, ranks: Ranks = ALONE
) -> dict[str, Any] | None:
    """The first place with a number that is not finite, forward and, where no rank has one, backward. Each of `ranks`
    looks at its rows.

    None when there is none either way. A dict of `pass`, `place`, `value`, the indices along the place's axes
    (`layer`, `head`, `position`, `query`, `neuron` ...; `part` of the batch), and of the samples it is in: `sample_id`
    of the first, `token`, and `sample_ids` of all.
    """
    batch = ranks.rows(batch)
    device, size = torch.device(choice.device), len(batch.sample_ids) // accumulate
    found: dict[str, Any] | None = None
    with aside(model, choice):
        for number, arrays in enumerate(micro_batches(batch, accumulate, device)):
            ids = batch.sample_ids[number * size : (number + 1) * size].tolist()
            checker = Checker(stops=not ranks.sharded)
            with torch.no_grad(), contextlib.suppress(_Found):
                _losses(model, arrays, checker)
            if found is None and checker.place is not None and checker.bad is not None:
                found = _where("forward", model, checker.place, checker.bad, arrays, ids, number)
            if found and not ranks.sharded:
                break
        ranks.rest()
        if ranks.anywhere(found is not None):
            return found
        for row, arrays in enumerate(micro_batches(batch, len(batch.sample_ids), device)):
            seen = _backward(model, arrays)
            if seen is not None and found is None:
                part, ids = row // size, batch.sample_ids[row : row + 1].tolist()
                found = _where("backward", model, *seen, arrays, ids, part)
            if found and not ranks.sharded:
                break
    return found


def row_losses(
    model: nn.Module, batch: Batch, choice: Choice, *, ranks: Ranks = ALONE
) -> list[dict[str, Any]]:
    """The samples whose loss stands out most: `sample_id`, `loss`, and how many robust `deviations` it is above the
    median of the batch, the highest first."""
    device, found = torch.device(choice.device), []
    with aside(model, choice), torch.no_grad():
        for sample, arrays in zip(
            batch.sample_ids.tolist(), micro_batches(batch, len(batch.sample_ids), device), strict=True
        ):
            losses = _losses(model, arrays)
            found.append((int(sample), losses.mean().item() if losses.numel() else 0.0))
    ranks.rest()
    values = [loss for _, loss in found]
    middle, spread = median(values), max(deviation(values), 1e-12)
    rows = [{"sample_id": i, "loss": x, "deviations": (x - middle) / spread} for i, x in found]
    return sorted(rows, key=lambda row: -row["loss"])[:_MOST_SAMPLES]


def _losses(model: nn.Module, arrays: dict[str, Tensor | None], *see: Any) -> Tensor:
    given = {name: value for name, value in arrays.items() if value is not None}
    return Lessons(given).each_loss(model, *see)  # type: ignore[arg-type] # every model that learns is one of these


def _backward(model: nn.Module, arrays: dict[str, Tensor | None]) -> tuple[str, Tensor] | None:
    """The first place, counted from the loss, whose gradient has a number that is not finite; and where in it."""
    attached = _Attached()
    num_targets = arrays["num_targets"]
    assert num_targets is not None
    loss = _losses(model, arrays, attached).sum() / num_targets
    places = list(attached.seen)
    if not places or not loss.requires_grad:
        return None
    grads = torch.autograd.grad(loss, [attached.seen[name] for name in places], allow_unused=True)
    for name, grad in reversed(list(zip(places, grads, strict=True))):
        if grad is not None and not grad.sum().isfinite() and bool((bad := ~grad.isfinite()).any()):
            return name, bad
    return None


def _bad(name: str, y: Tensor) -> Tensor | None:
    """Where `y` is not finite. Scores are -inf where a mask says so."""
    if not y.is_floating_point() or y.sum().isfinite():
        return None
    bad = ~y.isfinite()
    if name.endswith(".scores"):
        bad &= ~y.isneginf()
    return bad if bool(bad.any()) else None


def _where(
    direction: str, model: nn.Module, place: str, bad: Tensor, arrays: dict[str, Tensor | None],
    sample_ids: Sequence[int], part: int,
) -> dict[str, Any]:  # fmt: skip
    axes = network.find(place).axes if isinstance(model, Network) else find(place).axes
    indices = bad.nonzero()
    first = dict(zip(axes, indices[0].tolist(), strict=True))
    found: dict[str, Any] = {"pass": direction, "place": place, "part": part, "count": len(indices)}
    numbers = [int(piece) for piece in place.split(".") if piece.isdigit()]
    if numbers:
        found["layer"] = numbers[0]
    found |= {axis: index for axis, index in first.items() if axis not in ("batch", "row", "one")}
    if axes[0] in ("batch", "row"):
        rows = sorted(set(indices[:, 0].tolist()))
        found["sample_id"] = int(sample_ids[rows[0]])
        found["sample_ids"] = [int(sample_ids[row]) for row in rows]
        position = first.get("position", first.get("query"))
        read = "source" if place.startswith("encoder.") or ".cross_attn.k" in place else "ids"
        ids = arrays.get(read)
        if position is not None and ids is not None and position < ids.shape[1]:
            found["token"] = int(ids[rows[0], position])
    return found


@contextlib.contextmanager
def aside(model: nn.Module, choice: Choice) -> Iterator[None]:
    """Compute as in training, apart from it: no dropout, and the mode is afterwards what it was."""
    learning = [module for module in model.modules() if module.training]
    kind = choice.device.split(":")[0]
    for module in learning:
        module.training = False
    try:
        with torch.autocast(kind, torch.bfloat16, enabled=choice.precision == "autocast"):
            yield
    finally:
        for module in learning:
            module.training = True
