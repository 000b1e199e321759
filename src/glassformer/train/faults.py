"""A number that would spoil the weights never reaches them: what is decided when a step is refused.

    check      before every update: loss and gradient against train/spikes.py
    again      a refused step is computed once more; what does not come again was the machine's error, and costs the
               time of a step and nothing else
    back       weights or optimiser not finite, or (policy roll_back) a spike that an earlier batch shows as well: the
               state of train/memory.py comes back, and the steps since are done again, to the bit as before
    skip       the batch is put in quarantine: its step passes without an update
    lower      the same, and the learning rate is lowered for a while
    stop       by policy, or the `most`-th fault within `within` steps: Diverged, with a bundle (train/bundle.py)

A decision is a function of the loss, the gradient's length, and what was decided before, and all that it depends on is
part of every checkpoint. So a run that is killed and goes on decides as it did, and so do many ranks, which share these
numbers (`Ranks.agree`); what only one of them can see, numbers in its own weights that are not finite, is asked of all
(`Ranks.anywhere`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from glassformer.errors import GlassformerError
from glassformer.train.config import FaultsConfig, OptimizerConfig
from glassformer.train.engine import Choice
from glassformer.train.health import Health
from glassformer.train.memory import Memory, all_finite
from glassformer.train.optimizers import state_tensors
from glassformer.train.ranks import ALONE, Ranks
from glassformer.train.spikes import Kind, Watch
from glassformer.train.step import Update
from glassformer.train.task import Batch
from glassformer.train.weights import Weights

Deed = Literal["log", "again", "skip", "roll_back", "lower_rate", "stop"]


class Fault(GlassformerError):
    """A step that was refused; nothing was changed. Never leaves the training loop."""

    def __init__(self, step: int, kind: Kind, found: Update | None) -> None:
        self.step, self.kind, self.found = step, kind, found
        """`step` counts from 0; `found` is None where the weights were looked at, not a step."""
        super().__init__(f"step {step + 1}: {kind}")


@dataclass(frozen=True, slots=True)
class Decision:
    deed: Deed
    blamed: int | None = None
    """The step whose batch is in quarantine from now on."""


_DEEDS = {
    "log": "noted",
    "again": "computed again",
    "roll_back": "back to step {step_back}",
    "skip": "its batch is left out",
    "lower_rate": "the rate is lowered",
    "stop": "the run stops",
}


def in_words(event: Mapping[str, Any]) -> str:
    """A fault's event as one line."""
    numbers = (
        "" if event["loss"] is None else f" (loss {event['loss']:.4g}, gradient {event['grad_norm']:.4g})"
    )
    place, tensors = event.get("place"), event.get("tensors")
    where = ""
    if place:
        named = [f"{key} {place[key]}" for key in ("head", "position", "token", "sample_id") if key in place]
        where = f", first at {place['place']} {place['pass']}{' '.join(['', *named])}"
    elif tensors:
        first = tensors[0]
        where = f", {first['count']:,} of {first['of']:,} in {first['tensor']}"
    elif event.get("samples"):
        where = f", highest in sample {event['samples'][0]['sample_id']}"
    deed = _DEEDS[event["decision"]].format(step_back=event.get("step_back"))
    left_out = (
        f", without the batch of step {event['blamed']}" if event.get("step_back") and event["blamed"] else ""
    )
    return f"step {event['step']} {event['kind'].replace('_', ' ')}{numbers}{where}: {deed}{left_out}"


class Guard:
    """What a run knows about its faults."""

    def __init__(
        self,
        config: FaultsConfig,
        optimizer: OptimizerConfig,
        weights: Weights,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.weights, self.optimizers, self.ranks = config, weights, optimizers, ranks
        self.watch, self.memory, self.health = Watch(config), Memory(), Health(optimizer)
        self.quarantined: dict[int, list[int]] = {}
        """Step -> the ids of the samples that are not learned from."""
        self.faults: list[int] = []
        """Steps of all faults, as they came."""
        self.lowered_until = 0
        self.last: int | None = None
        """The last step that was found good."""
        self._again: set[int] = set()
        self._gone_back: set[int] = set()
        self._noted: list[tuple[str, dict[str, Any]]] = []

    def rate(self, step: int) -> float:
        """The factor that `lower_rate` puts on the learning rate."""
        return self.config.lower_by if step < self.lowered_until else 1.0

    def check(self, step: int, found: Update, state: Callable[[], Mapping[str, Any]]) -> None:
        """Raises Fault for an update that must not be. `state` is what goes with the weights into memory."""
        kind = self.watch.judge(found.loss, found.grad_norm)
        if kind is not None and (kind == "not_finite" or self.config.spike != "log"):
            raise Fault(step, kind, found)
        if kind is None:
            if step in self._again:
                self._again.discard(step)
                message = f"step {step + 1} was as usual when it was computed again: the machine erred, not the data"
                self._noted.append(("warning", {"message": message}))
            every = self.config.remember_every
            if every and (self.memory.step is None or step % every == 0) and step != self.memory.step:
                self.memory.keep(step, self.weights, self.optimizers, state(), ranks=self.ranks)
            self.last = step
        if self.is_due(step):
            found_now = self.health.gradients(self.weights, self.ranks)
            self._noted += [("warning", {"message": f"step {step + 1}: {m}"}) for m in found_now]
        usual = self.watch.usual()
        drift = self.watch.admit(found.loss, found.grad_norm)
        if drift is not None and self.config.divergence == "stop":
            raise Fault(step, drift, found)
        if drift is not None and self.config.divergence == "lower_rate":
            self.lowered_until = step + 1 + self.config.lower_for
        for noted, deed in ((kind, "log"), (drift, self.config.divergence)):
            if noted is not None:
                about = {"loss": found.loss, "grad_norm": found.grad_norm, "usual": usual}
                event = {"step": step + 1, "kind": noted, "decision": deed, **about}
                self._noted.append(("fault", {**event, "message": in_words(event)}))

    def look(self, step: int, model: nn.Module, batch: Batch, choice: Choice) -> None:
        """At the model itself, where it is due."""
        if self.is_due(step):
            found = self.health.logits(model, batch, choice, self.ranks)
            self._noted += [("warning", {"message": f"step {step + 1}: {m}"}) for m in found]

    def noted(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events that are to be told once the step is done: their names and fields."""
        while self._noted:
            yield self._noted.pop(0)

    def is_due(self, step: int) -> bool:
        """Whether the step is one of those that train/health.py looks at."""
        return self.config.look_every > 0 and (step + 1) % self.config.look_every == 0

    def damaged(self) -> bool:
        """Whether a weight, or what the optimiser remembers, is not finite, on whichever rank."""
        mine, remembered = self.ranks.mine, state_tensors(self.optimizers, self.weights.masters)
        tensors = [*mine(self.weights.masters).values(), *mine(remembered).values()]
        return self.ranks.anywhere(not all_finite(tensors))

    def decide(
        self, fault: Fault, sample_ids: Callable[[int], list[int]], *, damaged: bool, earlier_too: bool
    ) -> Decision:
        """What is done about a fault. `earlier_too`: the batch before, found good then, shows it as well now."""
        step, policy = fault.step, self._policy(fault.kind)
        repeated = step in self._again
        if not repeated:
            self.faults.append(step)
        near = [other for other in self.faults if abs(other - step) < self.config.within]
        if policy == "stop" or len(near) >= self.config.most:
            return Decision("stop")
        if damaged or (repeated and earlier_too and policy == "roll_back"):
            # The first time the same steps are done again; when it comes again, the update before was the cause.
            blamed = self.last if step in self._gone_back or not damaged else None
            self._gone_back.add(step)
            self._again.discard(step)
            return self._quarantine("roll_back", blamed, sample_ids)
        if not repeated:
            self._again.add(step)
            return Decision("again")
        self._again.discard(step)
        if policy == "lower_rate":
            self.lowered_until = step + 1 + self.config.lower_for
        return self._quarantine("lower_rate" if policy == "lower_rate" else "skip", step, sample_ids)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "quarantined": {str(step): ids for step, ids in self.quarantined.items()},
            "faults": list(self.faults),
            **self._of_the_curve(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """What a checkpoint held."""
        self.quarantined = {int(step): ids for step, ids in state["quarantined"].items()}
        self.faults = list(state["faults"])
        self.go_back(state)

    def go_back(self, state: Mapping[str, Any]) -> None:
        """The curve is again what it was; what was decided since stays decided."""
        self.watch.load(state["watch"])
        self.lowered_until = max(self.lowered_until, state["lowered_until"])
        self.last = state["last"]

    def _of_the_curve(self) -> dict[str, Any]:
        return {"watch": self.watch.state(), "lowered_until": self.lowered_until, "last": self.last}

    def _policy(self, kind: Kind) -> str:
        if kind == "divergence":
            return self.config.divergence
        return self.config.not_finite if kind == "not_finite" else self.config.spike

    def _quarantine(self, deed: Deed, blamed: int | None, sample_ids: Callable[[int], list[int]]) -> Decision:
        if blamed is not None:
            self.quarantined[blamed] = sample_ids(blamed)
        return Decision(deed, blamed)
