"""Ranks that hold the same weights hold the same bits, or something went wrong: found by digests, a number a rank.

Every rank makes the same update from the same summed gradient, so weights and what the optimiser remembers are the same
to the bit on all that hold the same part of them. They are compared every `faults.digest_every` steps, before a copy of
the state goes into memory, and before a checkpoint. So the state in memory and the one on the disk are agreed on, and
where ranks differ

    all go back        to the last state that was agreed on, and do the steps since again, to the bit as before
    of three or more   the fewer are named at once
    of two             both numbers at the first place where they differ are kept. When the steps are done again and
                       agreed on, the rank whose number was farther from the right one held the wrong copy
    it comes again     at the same step or before: the run ends, and says whose machine it is

(That a rank was wrong for a while spoils both: its gradients went into the sum. That is why none of the two is simply
handed the other's weights.)
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.train.digests import digests_of, fold, pieces
from glassformer.train.faults import Fault
from glassformer.train.optimizers import build_optimizers, state_tensors
from glassformer.train.silent import MachineErred, who
from glassformer.train.task import Event

if TYPE_CHECKING:
    from glassformer.train.loop import Session

_MOST_TENSORS = 5
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TIMES = 4.0
"""So much farther from the right number the wrong one is, at least."""


@dataclass(frozen=True, slots=True)
class Place:
    """The first number in which ranks differ, and what each holds there; None from those that hold other parts."""

    tensor: str
    index: int
    """In the rank's part of the tensor, its numbers in a row."""
    values: Sequence[float | None]


class Copies:
    """What a session knows about the copies of its weights."""

    def __init__(self, session: Session) -> None:
        self._session, self._every = session, session.recipe.faults.digest_every
        self._apart_at = -1
        """The number of updates after which copies last differed, until they are agreed on."""
        self._place: Place | None = None
        self._hosts: list[str] = []
        self._kept: dict[int, int] = {}
        """Updates done -> digest of the state that memory may have taken then."""

    def begin(self) -> Iterator[Event]:
        """Before the first step: whether all ranks make the same update, to the bit, of the same gradient."""
        session = self._session
        if self._every and session.ranks.copies > 1 and len(set(session.ranks.hear(self._trial()))) > 1:
            self._every = 0
            yield session.log(
                "warning",
                message="the ranks' machines round an update differently, so that their copies of the weights drift "
                "apart in the last digits: they are not compared",
            )

    def check(self, step: int) -> None:
        """Before the update of `step`: raises Fault on all ranks where any two differ."""
        session, every = self._session, self._session.recipe.faults.remember_every
        if session.ranks.copies == 1:
            return
        memory = session.guard.memory.step
        kept = bool(self._every and every) and (step % every == 0 or memory is None)
        due = kept or (self._every and step % self._every == 0) or step == self._apart_at
        if due and self._differ(step):
            raise Fault(step - 1, "copies_differ", None)
        if kept:
            older = {at: digest for at, digest in self._kept.items() if at == memory}
            self._kept = {**older, step: self._digest()}

    def differ(self, done: int) -> bool:
        """Before a checkpoint: whether any two ranks that hold the same part of the weights hold other bits, after so
        many updates."""
        return self._every > 0 and self._differ(done)

    def _differ(self, done: int) -> bool:
        if self.apart():
            return True
        if done == self._apart_at:
            self._apart_at = -1
            if self._place is not None:
                self._tell(done, self._place)
        return False

    def apart(self) -> bool:
        """Whether they are so now."""
        ranks = self._session.ranks
        if ranks.copies == 1:
            return False
        heard = ranks.hear((ranks.part, self._digest()))
        return len(set(heard)) > len({part for part, _ in heard})

    def settle(self, fault: Fault, go_back: Callable[[], int | None]) -> Generator[Event, None, int]:
        """Name what differs, go back and return the step to go on from. `go_back` gives None where there is nothing
        to go back to. Raises MachineErred where the same has been tried already."""
        session, ranks, done = self._session, self._session.ranks, fault.step + 1
        tensors = self._tensors()
        heard = ranks.hear((ranks.part, digests_of(tensors)))
        self._hosts = ranks.hear(socket.gethostname())
        num_parts = len({part for part, _ in heard})
        names = [n for n in tensors if len({(part, digests.get(n)) for part, digests in heard}) > num_parts]
        wrong = _fewer([(part, fold([digests.get(name, 0) for name in names])) for part, digests in heard])
        place = self._find(names[0], tensors[names[0]])
        session.guard.faults.append(max(fault.step, 0))
        stop = self._apart_at >= done or session.guard.too_many(max(fault.step, 0))
        step_back, forgot = (None, []) if stop else self._gone_back(go_back)
        wrong = wrong or (forgot if step_back is None else [])
        event = self._event(done, wrong, names, place, step_back)
        yield session.log("fault", **event)
        if step_back is None:
            ranks.wait()  # for rank 0, which has said so
            raise MachineErred(
                f"{event['message'][0].upper()}{event['message'][1:]}.",
                expected="Every checkpoint was the same on all ranks when it was saved.",
                do=f"Test the memory of {who(event['ranks'], ranks.count)}, or leave it out; the same command goes on "
                "from the last checkpoint.",
            )
        self._apart_at, self._place = done, None if wrong else place
        return step_back

    def _gone_back(self, go_back: Callable[[], int | None]) -> tuple[int | None, list[int]]:
        """(the step of a state that is the same on all: the one in memory or, where that was damaged since, on the
        disk; the ranks whose memory was damaged)."""
        ranks, memory = self._session.ranks, self._session.guard.memory
        step = go_back()
        if step is None or not self.apart():
            return step, []
        forgot = [
            rank for rank, is_so in enumerate(ranks.hear(self._digest() != self._kept.get(step))) if is_so
        ]
        if memory.step is None:
            return None, forgot
        memory.step = None
        step = go_back()
        return (None if step is None or self.apart() else step), forgot

    def _find(self, name: str, tensor: Tensor) -> Place:
        """Where ranks first differ, found by the digests of pieces, so that only one piece is exchanged."""
        ranks = self._session.ranks
        parts = list(pieces(tensor))
        heard = ranks.hear((ranks.part, list(digests_of({str(i): p for i, p in enumerate(parts)}).values())))
        number = min(
            i for a in heard for b in heard if a[0] == b[0] for i, (x, y) in enumerate(zip(a[1], b[1], strict=True))
            if x != y
        )  # fmt: skip
        mine = parts[number].cpu() if number < len(parts) else torch.empty(0)
        said = ranks.hear((ranks.part, mine))
        part, index = min(
            (a, int((_bits(x) != _bits(y)).nonzero()[0]))
            for a, x in said for b, y in said if a == b and not torch.equal(_bits(x), _bits(y))
        )  # fmt: skip
        values = [float(x[index]) if of == part else None for of, x in said]
        return Place(name, number * parts[0].numel() + index, values)

    def _tell(self, done: int, place: Place) -> None:
        """Steps that were done again are agreed on: say which of two ranks had held the wrong number."""
        ranks = self._session.ranks
        flat = self._tensors()[place.tensor].detach().reshape(-1)
        heard = ranks.hear(float(flat[place.index]) if place.index < flat.numel() else None)
        away = {
            rank: abs(value - right) if math.isfinite(value) else math.inf
            for rank, (value, right) in enumerate(zip(place.values, heard, strict=True))
            if value is not None and right is not None
        }
        far, near = max(away, key=lambda rank: away[rank]), min(away.values())
        named = who([{"rank": far, "host": self._hosts[far]}], ranks.count)
        if away[far] > _TIMES * near:
            message = (
                f"step {done} done again: {named} held the wrong copy, {place.tensor} was "
                f"{place.values[far]:.9g} and is {heard[far]:.9g} at {place.index}"
            )
        else:
            message = f"step {done} done again: which of the ranks held the wrong copy cannot be told"
        self._session.guard.note("warning", message=message)

    def _event(
        self, done: int, wrong: Sequence[int], names: Sequence[str], place: Place, step_back: int | None
    ) -> dict[str, Any]:
        ranks = [{"rank": rank, "host": self._hosts[rank]} for rank in wrong]
        first = {"tensor": place.tensor, "first": [place.index], "values": list(place.values)}
        tensors = [first, *({"tensor": name} for name in names[1:_MOST_TENSORS])]
        whose = who(ranks, len(self._hosts)) + " differs" if wrong else "the ranks differ"
        deed = "the run stops" if step_back is None else f"back to step {step_back}"
        return {
            "step": done, "kind": "copies_differ", "loss": None, "grad_norm": None, "blamed": None,
            "decision": "stop" if step_back is None else "roll_back", "step_back": step_back,
            "ranks": ranks, "tensors": tensors,
            "message": f"step {done} copies differ: {whose} in {place.tensor}"
            + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "") + f": {deed}",
        }  # fmt: skip

    def _trial(self) -> int:
        """The digest of three updates of made-up weights."""
        session, whole = self._session, 64 * 64
        numbers = torch.arange(whole, device=session.device)
        weight = torch.nn.Parameter((numbers * 7919 % 1009 / 1009 - 0.5).view(64, 64))
        sizes = 0.5 ** (numbers % 40)  # down to 1e-12, as gradients are
        weight.grad = ((numbers * 104729 % 997 / 997 - 0.5) * sizes).view(64, 64)
        for optimizer in build_optimizers(session.recipe.optimizer, {"layers.0.weight": weight}):
            for _ in range(3):
                optimizer.step()
        return digests_of({"": weight.detach()})[""]

    def _digest(self) -> int:
        return fold([digest for _, digest in sorted(digests_of(self._tensors()).items())])

    def _tensors(self) -> Mapping[str, Tensor]:
        """This rank's part of all weights and of what the optimiser remembers."""
        session = self._session
        masters = session.weights.masters
        return session.ranks.mine({**masters, **state_tensors(session.optimizers, masters)})


def _fewer(heard: Sequence[tuple[int, int]]) -> list[int]:
    """The ranks that hold other than most of those with the same part; none where there is no most."""
    wrong = []
    for rank, (part, number) in enumerate(heard):
        others = Counter(n for p, n in heard if p == part)
        most, count = others.most_common(1)[0]
        if number != most and 2 * count > others.total():
            wrong.append(rank)
    return wrong


def _bits(tensor: Tensor) -> Tensor:
    """Its numbers as whole ones, so that NaN is the same as NaN."""
    return tensor.view(_WHOLE[tensor.element_size()])
