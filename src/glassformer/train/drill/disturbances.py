"""What befalls a run in a drill, and when: drawn from a seed, so that the same seed befalls it alike.

    kill        SIGKILL of one rank, of all of them with their launcher, or of the launcher alone
    bit flip    all are killed; then one bit of one file of the newest checkpoint is the other one
    NaN         one number that one rank computes on the way to the loss is NaN, once
    full disk   while a checkpoint is saved, no file of rank 0 may grow beyond so many bytes
    stop        SIGSTOP of one rank: it neither works nor ends
    weight      one bit of one weight changes, and nobody says so: no trainer can find it, but a drill must (sabotage)

A moment is a step and a part of the time that one takes; the n-th time that rank 0 asks the system for something in the
folder of a checkpoint that is not whole yet; or a part of the time that starting takes. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

Kind = Literal["kill", "bit flip", "NaN", "full disk", "stop", "weight"]
Moment = Literal["step", "save", "start"]
Whom = int | Literal["all", "launcher"]

_MOST_TURNS = 12
"""A save asks the system for about so many things in the folder that is not whole yet."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing that befalls a run."""

    kind: Kind
    step: int
    """Not before so many steps of the run are done."""
    whom: Whom = 0
    moment: Moment = "step"
    turn: int = 1
    """Of a save: the how manieth thing that is asked for."""
    draws: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """From 0 to 1: the part of a step's or a start's time; and two for what there is to choose (which file, which bit;
    which module, which number; how large a file may be; how long a stop is)."""

    @property
    def actor(self) -> int:
        """The rank in whose process it happens: that of the one it befalls, or of the one that saves."""
        return self.whom if self.moment != "save" and isinstance(self.whom, int) else 0

    def ends(self, ranks: int) -> bool:
        """Whether the processes end by it, and the command has to be given again."""
        return self.kind in ("kill", "bit flip") or (self.kind == "stop" and ranks > 1)

    @property
    def target(self) -> str:
        return f"rank {self.whom}" if isinstance(self.whom, int) else self.whom

    def as_json(self, number: int) -> dict[str, Any]:
        """For the plan of a process."""
        fields = {name: getattr(self, name) for name in ("kind", "step", "whom", "moment", "turn", "draws")}
        return {"number": number, "actor": self.actor, **fields}


def draw(
    seed: int, *, kills: int, ranks: int, steps: int, every: int, sabotage: bool = False
) -> list[Disturbance]:
    """A drill's disturbances, in the order of their steps: `kills` kills, and of the others a few.

    The run takes `steps` steps, with a checkpoint every `every`. Of the kills a quarter are within saves and a tenth
    while a process starts; of ranks, all and launcher each has its turn before chance decides. `sabotage` adds a
    changed weight in the middle.
    """
    draws = Random(seed)
    few = 1 + kills // 10
    flips: list[Kind] = ["bit flip"] * few
    spoiled: list[Kind] = ["NaN"] * few
    kinds: list[Kind] = [*flips, *spoiled, "full disk", "stop"]
    last = max(1, steps - every - 1)
    found = [_other(kind, draws, ranks, steps, every) for kind in kinds]
    everyone: list[Whom] = [*range(ranks), *(("all", "launcher") if ranks > 1 else ())]
    whom = [*everyone, *draws.choices([*range(ranks), *everyone], k=kills)][:kills]
    moments: list[Moment] = ["step"] * kills
    for index in range(0, kills, 4):
        moments[index] = "save"
    for index in range(3, kills, 10):
        moments[index] = "start"
    draws.shuffle(moments)
    for one, moment in zip(whom, moments, strict=True):
        step, turn = draws.randint(1, last), draws.randint(1, _MOST_TURNS)
        found.append(Disturbance("kill", step, one, moment, turn, _three(draws)))
    if sabotage:
        found.append(Disturbance("weight", max(1, steps // 2)))
    return in_order(found)


def in_order(disturbances: Sequence[Disturbance]) -> list[Disturbance]:
    return sorted(disturbances, key=lambda one: one.step)


def _other(kind: Kind, draws: Random, ranks: int, steps: int, every: int) -> Disturbance:
    """A bit flip needs a second checkpoint to fall back on; a save that fails needs one after it."""
    first = 2 * every + 1 if kind == "bit flip" else 1
    last = steps - 2 * every - 1 if kind == "full disk" else steps - every - 1
    step = draws.randint(min(first, steps - 1), max(first, last, 1))
    whom: Whom = "all" if kind == "bit flip" else 0 if kind == "full disk" else draws.randrange(ranks)
    return Disturbance(
        kind, min(step, steps - 1), whom, "save" if kind == "full disk" else "step", 1, _three(draws)
    )


def _three(draws: Random) -> tuple[float, float, float]:
    return draws.random(), draws.random(), draws.random()
