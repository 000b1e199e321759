"""Other numbers in place of the model's own, and many such changes in one batch.

    see = Replace(reading.places(), [Put("blocks.3.resid_pre", clean, at={"position": 4})])
    reading.run(see)                      everything after goes on from the numbers that were put there

`Put.value` is as the place's tensor, or spreads to it (a single 0 does); of it is taken what stands at the same
indices as what is replaced. `rows` chooses rows of a batch, so a sweep over n changes is one pass over n copies of
the text, each changed in its own way: `sweep` does that, in batches that fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError, nearest
from glassformer.look.reading import Reading
from glassformer.look.resume import Later, Only, last_stream, layer_of, resumed
from glassformer.look.trace import Recorder
from glassformer.model.config import ModelConfig
from glassformer.model.places import NOTHING_FOLLOWS, See, canonical, chained, find
from glassformer.run.manifest import free_memory_bytes

_BATCH_TOKENS = 4096
"""Tokens of a batch: beyond this a processor gains nothing from more."""
_BATCH_BYTES = 2**29
"""The most memory of a batch, where that much is free."""


@dataclass(frozen=True, slots=True)
class Put:
    """A value for a place: whole, or only `at` these indices of some of its axes (named in model/places.py)."""

    place: str
    value: Tensor
    at: Mapping[str, Sequence[int]] = field(default_factory=dict)
    rows: Sequence[int] | None = None
    """Rows of the batch; None: all. The value's rows, where it has several, belong to these in order."""


class Replace:
    """A `see` that puts values at places, in the order given."""

    def __init__(self, known: Sequence[str], puts: Sequence[Put]) -> None:
        """`known` are the model's places. Raises UsageError for a place or an axis that is not there."""
        self._puts: dict[str, list[tuple[Put, tuple[str, ...]]]] = {}
        for put in puts:
            name = canonical(put.place)
            if name not in known:
                raise UsageError(f"This model has no place {put.place!r}; {nearest(name, known)}")
            if name in NOTHING_FOLLOWS:
                raise UsageError(
                    f"Nothing follows from {name}, so putting other numbers there has no effect."
                )
            axes = find(name).axes
            for axis in ["batch"] * (put.rows is not None) + [*put.at]:
                if axis not in axes:
                    raise UsageError(f"{name} has no axis {axis!r}; {nearest(axis, axes)}")
            self._puts.setdefault(name, []).append((put, axes))

    def wants(self, name: str) -> bool:
        return name in self._puts

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name not in self._puts:
            return y
        y = y.clone()
        for put, axes in self._puts[name]:
            _assign(y, put, axes)
        return y


def sweep(
    reading: Reading,
    edits: Sequence[Sequence[Put]],
    measure: Callable[[Tensor], Tensor],
    *,
    base: Sequence[Put] = (),
    at: int | None = None,
    at_once: int | None = None,
) -> Float[Tensor, "edit row *measured"]:
    """What `measure` makes of the model's output after each edit, a set of `Put`s for all rows of the reading.

    `base` is put in before each of them. `at`: measure is given this position's output alone, (row, 1, ...).
    `at_once` edits share a pass; left out, as many as fit in memory. A pass begins at the first block that one of
    its edits changes, so edits of one block go together.
    """
    own, known = len(reading.inputs[-1]), reading.places()
    size = at_once or max(1, rows_at_once(reading) // own)
    starts = [min((layer_of(canonical(put.place)) for put in edit), default=0) for edit in edits]
    order = sorted(range(len(edits)), key=starts.__getitem__)
    passes = [order[first : first + size] for first in range(0, len(order), size)]
    begins = [starts[each[0]] for each in passes]
    streams = record(reading, [f"blocks.{layer}.resid_pre" for layer in {*begins} - {0}], base)[0]
    found: list[Tensor] = [torch.empty(0)] * len(edits)
    for begin, several in zip(begins, passes, strict=True):
        stream = f"blocks.{begin}.resid_pre"
        first = [Put(stream, streams[stream])] if begin else base
        puts = [
            replace(put, rows=range(row * own, (row + 1) * own))
            for row, number in enumerate(several)
            for put in (*first, *edits[number])
        ]
        output = _output(repeated(reading, len(several)), puts, begin, at, known)
        measured = measure(output).unflatten(0, (len(several), own))  # type: ignore[no-untyped-call]  # torch's
        for number, values in zip(several, measured, strict=True):
            found[number] = values
    return torch.stack(found)


def _output(
    reading: Reading, puts: Sequence[Put], begin: int, at: int | None, known: Sequence[str]
) -> Tensor:
    see: See = Replace(known, puts)
    last = last_stream(known)
    if (
        at is not None
        and last is not None
        and all(known.index(canonical(put.place)) <= known.index(last) for put in puts)
    ):
        see, at = chained(see, Only(last, at)), None
    with torch.no_grad():
        output = resumed(reading, begin).run(Later(see, begin)) if begin else reading.run(see)
    return output if at is None else output[:, at : at + 1]


def record(
    reading: Reading, places: Sequence[str], puts: Sequence[Put] = ()
) -> tuple[dict[str, Tensor], Tensor]:
    """What these places hold, and the model's output; after `puts`, where some are given."""
    known = reading.places()
    recorder = Recorder(known, places)
    with torch.no_grad():
        output = reading.run(chained(Replace(known, puts), recorder))
    return recorder.seen, output


def repeated(reading: Reading, times: int) -> Reading:
    """The same rows, several times over."""
    inputs = tuple(each.repeat(times, *[1] * (each.ndim - 1)) for each in reading.inputs)
    return replace(reading, inputs=inputs)


def rows_at_once(reading: Reading) -> int:
    """How many rows of this length a pass may have, at least 1."""
    config = reading.model.config
    assert isinstance(config, ModelConfig)
    tokens = sum(each.shape[1] for each in reading.inputs)
    entry = next(reading.model.parameters()).element_size()
    # a block's largest tensors, two copies of the logits (what is measured makes its own), three of scores
    numbers = tokens * (2 * config.vocab_size + 16 * config.width + 4 * config.ff_width)
    numbers += 3 * config.num_heads * tokens * tokens
    free = free_memory_bytes()
    budget = _BATCH_BYTES if free is None else min(_BATCH_BYTES, free // 4)
    return max(1, min(_BATCH_TOKENS // tokens, budget // (numbers * entry)))


def _assign(y: Tensor, put: Put, axes: tuple[str, ...]) -> None:
    """y[rows, ..., at, ...] = value[..., at, ...], in place."""
    rows = None if put.rows is None else torch.as_tensor(put.rows, device=y.device)
    shape = y.shape if rows is None else (len(rows), *y.shape[1:])
    try:
        value = put.value.to(y).expand(shape)
    except RuntimeError:
        raise UsageError(
            f"A value of shape {list(put.value.shape)} does not fit at {put.place}.",
            expected=f"Expected {list(shape)} ({', '.join(axes)}), or what spreads to it.",
        ) from None
    for axis, chosen in put.at.items():
        size = y.shape[axes.index(axis)]
        if any(not -size <= index < size for index in chosen):
            raise UsageError(
                f"{put.place} has no {axis} {list(chosen)}.", expected=f"Expected 0 to {size - 1}."
            )
    here = {
        axis: torch.as_tensor(chosen, dtype=torch.long, device=y.device) for axis, chosen in put.at.items()
    }
    there = dict(here)
    if rows is not None and here:
        here["batch"], there["batch"] = rows, torch.arange(len(rows), device=y.device)
    elif rows is not None:
        y[rows] = value
        return
    y[_mesh(here, axes)] = value[_mesh(there, axes)]


def _mesh(chosen: Mapping[str, Tensor], axes: tuple[str, ...]) -> tuple[slice | Tensor, ...]:
    """Indices that together choose every combination of those chosen of each axis; of other axes, all."""
    counted: Iterator[int] = iter(range(len(chosen)))
    index: list[slice | Tensor] = []
    for axis in axes:
        if axis in chosen:
            shape = [1] * len(chosen)
            shape[next(counted)] = -1
            index.append(chosen[axis].view(shape))
        else:
            index.append(slice(None))
    return tuple(index)
