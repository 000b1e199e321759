"""Which weights to show: named ones, `blocks.0.mlp.up.weight[3, 5]`, or some drawn at random.

Drawn ones come from as many tensors as there are, one from each before a second from any, in a random order; else
the embedding, which has most of a small model's weights, would be all there is to see. A draw depends on the seed and
the tensor's name alone.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from glassformer.errors import UsageError, nearest
from glassformer.seeds import generator


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight: its tensor's name and where it is in it."""

    name: str
    index: tuple[int, ...]
    drawn: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}[{', '.join(map(str, self.index))}]"


def chosen(
    tensors: Mapping[str, Tensor], wanted: str | Sequence[str] | None, samples: int, seed: int
) -> list[Entry]:
    """The named weights, and `samples` drawn from the tensors that are named whole or by a pattern; from all of them
    where nothing is wanted. Raises UsageError for one that is not there, or that the step does not change."""
    named: list[Entry] = []
    whole: dict[str, Tensor] = {} if wanted is not None else dict(tensors)
    for name in [wanted] if isinstance(wanted, str) else wanted or []:
        found = re.fullmatch(r"(.+?)\[([\d,\s-]+)\]", name)
        if found is not None:
            named.append(_entry(tensors, found[1], found[2]))
            continue
        these = fnmatch.filter(tensors, name)
        if not these:
            raise _missing(tensors, name)
        whole |= {each: tensors[each] for each in these}
    return [*named, *_drawn(whole, samples, seed)]


def _entry(tensors: Mapping[str, Tensor], name: str, index: str) -> Entry:
    if name not in tensors:
        raise _missing(tensors, name)
    shape = list(tensors[name].shape)
    try:
        place = tuple(int(number) for number in index.split(","))
    except ValueError:
        place = ()
    if len(place) != len(shape) or not all(0 <= i < size for i, size in zip(place, shape, strict=True)):
        raise UsageError(f"{name} has no entry [{index}].", expected=f"Its shape is {shape}, counted from 0.")
    return Entry(name, place)


def _drawn(tensors: Mapping[str, Tensor], samples: int, seed: int) -> list[Entry]:
    """Round after round over the tensors, an entry of each that has one left."""
    if not tensors:
        return []
    names = sorted(tensors)
    generator(seed, "step_view", "order").shuffle(names)
    queues: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        size, shape = tensors[name].numel(), tuple(tensors[name].shape)
        flat = generator(seed, "step_view", name).choice(size, min(samples, size), replace=False)
        queues[name] = [tuple(int(i) for i in np.unravel_index(one, shape)) for one in flat]
    found: list[Entry] = []
    while len(found) < samples and any(queues.values()):
        for name, queue in queues.items():
            if queue and len(found) < samples:
                found.append(Entry(name, queue.pop(0), drawn=True))
    places = {name: number for number, name in enumerate(tensors)}
    return sorted(found, key=lambda entry: (places[entry.name], entry.index))


def _missing(tensors: Mapping[str, Tensor], name: str) -> UsageError:
    return UsageError(
        f"The step changes no weight {name!r}; {nearest(name, tensors)}",
        do="A tied head is the embedding's; one that is frozen, or in no optimizer, does not change.",
    )
