"""Which rank holds the others up, and what that costs.

Nobody can go on before the slowest has brought its gradient. So each rank measures its own part of a step, from its
beginning until it is ready for the exchange, and after every window of steps all hear each other's medians:

    own_r     median of rank r's own parts in the window       slowest = the rank with the largest
    others    median of own_r over the ranks but the slowest   ratio   = own_slowest / others
    step      median of rank 0's whole steps                   share   = (own_slowest - others) / step

`share` is how much of a step's time would be saved if the slowest were as the others are. A rank is slow when its ratio
is above `SLOW` and its share above `SHARE` in `WINDOWS` windows in a row: then it is named, with its machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

SLOW, SHARE, WINDOWS = 1.5, 0.05, 3
LEAST = 5
"""Steps that a window has at least."""
_REST = 100
"""Windows between two events where nothing changes."""


class Stragglers:
    """What is known of the ranks' speed, the same on all of them."""

    def __init__(self, machines: Callable[[], Sequence[str]]) -> None:
        self._ask, self._machines = machines, list[str]()
        self._own, self._whole = list[float](), list[float]()
        self._slow: tuple[int, int] = (-1, 0)
        """Who was slow in so many windows in a row."""
        self._windows = 0

    def add(self, own: float, whole: float) -> None:
        """Seconds of one step."""
        self._own.append(own)
        self._whole.append(whole)

    def look(
        self, step: int, every: int, hear: Callable[[float, float], Sequence[Sequence[float]]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """After `step` steps: events, by name, where there is something to say. `hear` gives all ranks' numbers."""
        if step % every or len(self._own) < LEAST:
            return
        heard = hear(median(self._own), median(self._whole))
        own, whole = [numbers[0] for numbers in heard], heard[0][1]
        self._own, self._whole = [], []
        slowest = max(range(len(own)), key=own.__getitem__)
        others = median(seconds for rank, seconds in enumerate(own) if rank != slowest)
        ratio, share = own[slowest] / max(others, 1e-9), (own[slowest] - others) / max(whole, 1e-9)
        slow = ratio > SLOW and share > SHARE
        before, times = self._slow
        self._slow = (slowest, times + 1 if slowest == before else 1) if slow else (-1, 0)
        self._windows += 1
        named = self._slow[1] and self._slow[1] % _REST == WINDOWS
        if not named and self._windows % _REST:
            return
        self._machines = self._machines or list(self._ask())
        machine = self._machines[slowest]
        yield "ranks", {
            "step": step, "slowest": slowest, "machine": machine, "seconds": own[slowest], "others": others,
            "step_seconds": whole, "ratio": ratio, "share": share, "slow": slow,
        }  # fmt: skip
        if named:
            message = (
                f"rank {slowest} on {machine} is slow: its part of a step takes {ratio:.1f} times as long as the "
                f"others' ({own[slowest]:.3g} s, not {others:.3g} s); {share:.0%} of each step is spent waiting for it"
            )
            yield "warning", {"message": message}
