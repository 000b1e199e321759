"""A machine that errs and does not say so: part of a step is computed twice, and the answers are compared to the bit.

At every `faults.replay_every`-th step, and at those whose weights are saved, all ranks compute the same micro-batch:
the first of one rank's rows, with that rank's dropout noise, the ranks taking turns. Its rank computes it once more as
part of the step itself. An answer is the loss and the gradient of every weight; each rank also answers questions whose
answers are known (train/known.py).

    all the same            the step goes on
    not the same            computed a third time; train/verdict.py finds who erred, and whether once or always
    someone erred once      the step begins again. No weight had changed: the run is to the bit as if nothing had been
    someone errs always     the run ends, and says whose machine it is

Sharded weights are gathered and gradients summed by all in the middle of a step: there every rank computes its own rows
twice. That finds who erred once in his loss; of those that err always, only the known answers tell.

Two answers of one rank may differ without an error (sums by atomic adds on a GPU), and so may those of two kinds of
machine. That is tried before the first step, told in a warning, and from then on lengths of gradients are compared,
within a tolerance.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.errors import GlassformerError
from glassformer.run import checkpoints
from glassformer.train import known
from glassformer.train.digests import digests_of, fold
from glassformer.train.faults import Fault
from glassformer.train.step import micro_batches
from glassformer.train.task import Batch, Event
from glassformer.train.verdict import Answer, Report, Verdict, judge, suspects

if TYPE_CHECKING:
    from glassformer.train.loop import Session

_NEAR = {"fp32": 1e-3, "autocast": 5e-2, "bf16": 5e-2}
"""What answers may differ by, as a share of the loss and of the length of the whole gradient."""
_MOST_TENSORS = 5


class MachineErred(GlassformerError):
    """A rank's numbers are wrong again and again."""


class Silent(Fault):
    """A step that gave two answers."""

    def __init__(self, step: int, first: Answer | None, second: Answer, failed: Sequence[str]) -> None:
        super().__init__(step, "silent", None)
        self.first, self.second, self.failed = first, second, failed


class Replay:
    """What a session computes twice."""

    def __init__(self, session: Session) -> None:
        self._session, self._every = session, session.recipe.faults.replay_every
        self.verified = 0
        """Steps that were done when answers were last found the same."""
        self._near_own: float | None = None
        self._near_others: float | None = None
        self._first: Answer | None = None
        self._second: Answer | None = None
        self._gradients: dict[str, Tensor] = {}
        """Of the step's own answer, where it differs from the second."""
        self._parts = 0
        self._mine = False
        self._failed: set[int] = set()
        """Steps that have begun again."""

    def is_due(self, step: int) -> bool:
        done, session = step + 1, self._session
        saved = done % session.recipe.train.checkpoint_every == 0 or done == session.num_steps
        return self._every > 0 and (done % self._every == 0 or saved)

    def begin(self) -> Iterator[Event]:
        """Before the first step: whether answers are the same at all, and the known ones right."""
        if not self._every:
            return
        session, ranks, batch = self._session, self._session.ranks, self._session.task.batches.batch(0)
        near = _NEAR[session.choice.precision]
        first, second = (
            session.parts.fit(lambda parts: self._answer(0, batch, self._whose(0)), -1) for _ in range(2)
        )
        fault = Silent(-1, first, second, known.wrong_answers(session.device))
        heard = ranks.hear((first.word == second.word, not fault.failed, second.word))
        unsteady = [f"rank {rank}" for rank, (same, _, _) in enumerate(heard) if not same]
        message = ""
        if not all(right for _, right, _ in heard):
            yield from self.settle(fault)
        elif unsteady:
            self._near_own = self._near_others = near
            message = (
                f"a micro-batch that is computed twice differs in its last digits ({', '.join(unsteady)}; "
                f"{session.choice.name}): replays are compared within {near:.1%}; with engine.deterministic to the bit"
            )
        elif not ranks.sharded and len({word for _, _, word in heard}) > 1:
            found = suspects(ranks.hear(self._distance(batch)))
            if found:
                yield from self._refuse(fault, Verdict(found, persistent=True), self._reports(fault, batch))
            self._near_others = near
            message = (
                "the ranks' machines differ in the last digits of one micro-batch, all about as near to the same in "
                f"float64: their answers are compared within {near:.1%}"
            )
        session.weights.zero_gradients()
        if message:
            yield session.log("warning", message=message)

    def before(self, step: int, batch: Batch) -> None:
        """The answer that the step's own will be compared with. Random numbers are to be set anew after it."""
        self._first, self._second, self._gradients = None, None, {}
        if self.is_due(step):
            fit = self._session.parts.fit
            self._second = fit(lambda parts: self._answer(step, batch, self._whose(step)), step)
        self._parts = self._session.parts.count
        self._mine = self._second is not None and self._whose(step) == self._session.ranks.data_rank

    def note(self, loss: Tensor) -> None:
        """The step's own first micro-batch is there, its gradient alone. Nothing is exchanged yet."""
        if self._second is not None and self._mine and self._parts == self._session.parts.count:
            self._first = self._answer_there(loss)
            if not self._first.same(self._second, self._near_own):
                self._gradients = _kept(_gradients(self._session))

    def compare(self, step: int) -> None:
        """Before the update: raises Silent on all ranks, or on none."""
        first, second, self._second = self._first, self._second, None
        if second is None or self._parts != self._session.parts.count:
            return  # not due, or what was computed twice was cut into smaller parts in between
        ranks = self._session.ranks
        failed = known.wrong_answers(self._session.device)
        good = not failed and (first is None or first.same(second, self._near_own))
        heard = ranks.hear((good, second.word, second if self._near_others else None))
        fine = all(good for good, _, _ in heard)
        if not ranks.sharded:
            _, word, one = heard[0]
            fine &= all(w == word or (a and one and a.same(one, self._near_others)) for _, w, a in heard)
        if not fine:
            raise Silent(step, first, second, failed)
        self.verified = step + 1

    def settle(self, fault: Silent) -> Generator[Event, None, int]:
        """Whose error it was; yields the fault's event and returns the step that begins again. Raises MachineErred
        where there is no sense in that."""
        session, step = self._session, fault.step
        batch = session.task.batches.batch(max(step, 0))
        heard = self._reports(fault, batch)
        sharded = session.ranks.sharded
        verdict = judge(heard, near_own=self._near_own, near_others=self._near_others, sharded=sharded)
        if verdict.persistent and not verdict.erring and not sharded:
            verdict = Verdict(suspects(session.ranks.hear(self._distance(batch))), persistent=True)
        session.weights.zero_gradients()
        session.guard.faults.append(step)
        if verdict.persistent or step in self._failed or session.guard.too_many(step):
            yield from self._refuse(fault, verdict, heard)
        self._failed.add(step)
        yield session.log("fault", **self._event(fault, verdict, heard, "again"))
        return step

    def _refuse(self, fault: Silent, verdict: Verdict, heard: Sequence[Report]) -> Iterator[Event]:
        session = self._session
        event = self._event(fault, verdict, heard, "stop")
        yield session.log("fault", **event)
        saved = session.ranks.decide(lambda: checkpoints.list_checkpoints(session.run.checkpoints))
        session.ranks.wait()  # for rank 0, which has said so
        since = [one.name for one in saved if one.kind == "checkpoint" and one.step > self.verified]
        raise MachineErred(
            f"{event['message'][0].upper()}{event['message'][1:]}; this step changed no weight.",
            expected=f"The last step that gave one answer twice is {self.verified}"
            + (
                f"; saved since then: {', '.join(since)}, delete what is not to be trusted." if since else "."
            ),
            do=f"Test memory and processor of {who(event['ranks'], len(heard))}, or leave it out; the same command "
            "goes on from the last checkpoint.",
        )

    def _reports(self, fault: Silent, batch: Batch) -> list[Report]:
        """Of all ranks: what was computed, and what comes of it one time more."""
        session = self._session
        before = {} if fault.first is None else self._gradients
        third = self._answer(max(fault.step, 0), batch, self._whose(fault.step))
        apart = _apart(before, _gradients(session))
        again = known.wrong_answers(session.device) if fault.failed else []
        return session.ranks.hear(
            Report(socket.gethostname(), fault.first, fault.second, third, fault.failed, again, apart)
        )

    def _event(
        self, fault: Silent, verdict: Verdict, heard: Sequence[Report], decision: str
    ) -> dict[str, Any]:
        right = next((r.third for rank, r in enumerate(heard) if rank not in verdict.erring), None)
        ranks = [{"rank": rank, "host": heard[rank].host} for rank in verdict.erring]
        if self._session.ranks.sharded:  # every rank answered for rows and parts of its own
            right = None
        rows = [row for rank in verdict.erring for row in heard[rank].rows(rank, right or heard[rank].third)]
        failed = sorted({name for rank in verdict.erring for name in heard[rank].failed_again})
        where = f", in {rows[0]['tensor']} first" if rows else ""
        where += f", and is wrong about {' and '.join(failed)}" if failed else ""
        often, deed = (
            ("once", "computed again") if decision == "again" else ("and does so again", "the run stops")
        )
        step = fault.step + 1
        return {
            "step": step, "kind": "silent", "loss": None, "grad_norm": None, "decision": decision, "blamed": None,
            "ranks": ranks, "tensors": rows[:_MOST_TENSORS], "verified": self.verified,
            "message": f"step {step} gave two answers: {who(ranks, len(heard))} erred {often}{where}: {deed}",
        }  # fmt: skip

    def _answer(self, step: int, batch: Batch, whose: int) -> Answer:
        """Of the first micro-batch of that rank's rows; its gradient stays where gradients are."""
        session = self._session
        session.weights.zero_gradients()
        session.seed_dropout(step, whose)
        return self._answer_there(self._learn(self._arrays(batch, whose)))

    def _answer_there(self, loss: Tensor) -> Answer:
        """Of the gradient that is there now."""
        gradients = _gradients(self._session)
        digests = digests_of({"loss": loss, **gradients})
        lengths = torch.stack(torch._foreach_norm(list(gradients.values()))).tolist()
        named = dict(zip(gradients, lengths, strict=True))
        return Answer(loss.item(), digests, named, fold(list(digests.values())))

    def _distance(self, batch: Batch) -> float:
        """Of this rank's answer, for rows that are the same on all ranks, from its own in float64. No dropout."""
        session, train = self._session, self._session.recipe.train
        arrays = self._arrays(batch, 0)
        learning = [m for m in session.model.modules() if m.training] if session.task.config.dropout else []
        for module in learning:
            module.training = False
        session.weights.zero_gradients()
        loss = self._learn(arrays)
        found = known.distance(
            session.model, session.choice, arrays, (loss.item(), _gradients(session)),
            label_smoothing=train.label_smoothing, z_loss=train.z_loss,
        )  # fmt: skip
        for module in learning:
            module.training = True
        return found

    def _learn(self, arrays: Mapping[str, Tensor | None]) -> Tensor:
        loss = self._session.loss_of(**arrays)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._session.weights.collect()
        return loss.detach()

    def _arrays(self, batch: Batch, whose: int) -> Mapping[str, Tensor | None]:
        session = self._session
        rows = session.ranks.rows(batch, whose)
        return next(micro_batches(rows, session.parts.count, session.device))

    def _whose(self, step: int) -> int:
        """The data rank whose rows are computed: each in its turn, or, where a pass is everyone's, one's own."""
        ranks = self._session.ranks
        return ranks.data_rank if ranks.sharded else max(step, 0) // self._every % ranks.data_count


def who(ranks: Sequence[Mapping[str, Any]], count: int) -> str:
    """The ranks that erred, for a sentence."""
    if count == 1:
        return f"this machine ({socket.gethostname()})"
    if not ranks:
        return f"one of the {count} ranks (it cannot be told which)"
    return " and ".join(f"rank {row['rank']} ({row['host']})" for row in ranks)


def _gradients(session: Session) -> dict[str, Tensor]:
    given = {name: w.grad for name, w in session.weights.masters.items() if w.grad is not None}
    return dict(session.ranks.mine(given))


def _kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _apart(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Where gradients differ: in how many numbers of how many, where first, and by how much at most."""
    found: dict[str, dict[str, Any]] = {}
    for name, old in before.items():
        new = now[name].detach().cpu()
        other = old != new
        if bool(other.any()):
            first = other.nonzero()[0].tolist()
            largest = (old.double() - new.double()).abs().max().item()
            found[name] = {"count": int(other.sum()), "of": new.numel(), "first": first, "largest": largest}
    return found
