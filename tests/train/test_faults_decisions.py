"""How decisions hang together: what was decided stays decided, through a roll back and through a checkpoint."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from sessions import Break, Breaker, Broken, scale_loss, spoil_activations
from torch import Tensor

import glassformer as gf
from glassformer.run import checkpoints
from glassformer.train.config import FaultsConfig, OptimizerConfig
from glassformer.train.faults import Fault, Guard
from glassformer.train.interrupt import Interrupt
from glassformer.train.loop import Session
from glassformer.train.ranks import Ranks
from glassformer.train.step import Diverged, Update
from glassformer.train.task import Event
from glassformer.train.weights import Weights


def nan_weight(at: int) -> Break:
    """One weight becomes NaN after step `at`, once."""
    left = [1]

    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == at and left[0]:
            left[0] = 0
            with torch.no_grad():
                session.weights.masters["blocks.0.mlp.up.weight"][0, 0] = torch.nan

    return after


def test_a_roll_back_does_not_bring_a_batch_back_from_quarantine(breaker: Breaker) -> None:
    found = breaker("both", prepare=lambda s: spoil_activations(s, 49, once=False), after=nan_weight(57))
    assert [d[:3] for d in found.decisions] == [
        (50, "not_finite", "again"), (50, "not_finite", "skip"), (58, "not_finite", "roll_back"),
    ]  # fmt: skip
    only = breaker("one", prepare=lambda s: spoil_activations(s, 49, once=False))
    assert found.story == only.story


def test_quarantine_and_curve_are_part_of_a_checkpoint(breaker: Breaker) -> None:
    found = breaker("kept", prepare=lambda s: spoil_activations(s, 49, once=False))
    newest = checkpoints.load_newest(found.run.checkpoints)
    assert newest is not None and newest.step == 90
    state = newest.state["faults"]
    fault = found.all("fault")[-1]
    assert state["quarantined"] == {"49": fault["sample_ids"]} and len(fault["sample_ids"]) == 8
    assert state["faults"] == [49] and state["last"] == 89
    assert state["watch"]["losses"] == [row["loss"] for row in found.run.rows()][-40:]
    with breaker.session("kept") as session:
        for event in session.events(Interrupt(), None):
            if event["event"] == "resumed":
                assert session.guard.quarantined == {49: fault["sample_ids"]} and session.guard.faults == [49]
                assert session.guard.watch.state() == state["watch"]


def test_a_checkpoint_from_before_there_were_faults_is_gone_on_with(breaker: Breaker) -> None:
    with breaker.session("old") as session:
        for event in session.events(Interrupt(), None):
            if event["event"] == "step" and event["step"] == 45:
                break
    path = breaker.folder / "old" / "checkpoints"
    kept = checkpoints.load_newest(path)
    assert kept is not None and kept.step == 40
    del kept.state["faults"]
    checkpoints.save(path, 40, kept.tensors, kept.state)
    recipe = breaker.folder / "old" / "recipe.toml"
    values = tomllib.loads(recipe.read_text(encoding="utf-8"))
    del values["faults"]
    recipe.write_text(tomli_w.dumps(values), encoding="utf-8")
    assert breaker("old").run.summary()["status"] == "done"


def test_without_memory_and_without_a_checkpoint_there_is_nothing_to_go_back_to(breaker: Breaker) -> None:
    with pytest.raises(Diverged, match=r"Step 6 not finite .*the run stops; no weight was changed"):
        breaker("nowhere", after=nan_weight(5), faults__remember_every=0)
    (fault,) = Broken(breaker.folder / "nowhere").all("fault")
    assert fault["decision"] == "stop"
    found = gf.reproduce_fault(breaker.folder / "nowhere" / fault["bundle"])
    assert found.same and [row["tensor"] for row in found.tensors] == ["blocks.0.mlp.up.weight"]
    assert found.place is not None and found.place["place"] == "blocks.0.mlp.pre"


def test_weights_that_the_same_update_spoils_again_are_gone_round(breaker: Breaker) -> None:
    """The update of step 50 puts an infinity into a weight whenever it is made."""

    def prepare(session: Session) -> None:
        (optimizer,) = session.optimizers

        def spoil(optimizer: torch.optim.Optimizer, arguments: object, keywords: object) -> None:
            if session.guard.last == 49:
                with torch.no_grad():
                    session.weights.masters["blocks.0.mlp.up.weight"][1, 1] = torch.inf

        optimizer.register_step_post_hook(spoil)

    found = breaker("again and again", prepare=prepare)
    assert found.decisions == [(51, "not_finite", "roll_back", None), (51, "not_finite", "roll_back", 50)]
    assert [row["step"] for row in found.run.rows()] == [n for n in range(1, 91) if n != 50]


@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_a_batch_that_spikes_by_itself_costs_its_batch_and_nothing_else(
    breaker: Breaker, policy: str
) -> None:
    found = breaker(policy, prepare=lambda s: scale_loss(s, range(59, 60), 10.0), faults__spike=policy)
    assert found.decisions == [(60, "loss_spike", "again", None), (60, "loss_spike", "skip", 60)]


def rising(session: Session) -> None:
    """From step 45 on the loss rises by 0.6 % of what it was with every batch."""
    batches, plain = session.task.batches, session.loss_of
    number = {np.ascontiguousarray(batches.batch(n).ids).tobytes(): n for n in range(90)}

    def loss_of(**arrays: Tensor) -> Tensor:
        return plain(**arrays) * (1 + 0.006 * max(0, number[arrays["ids"].numpy().tobytes()] - 45))

    session.loss_of = loss_of


def test_a_slow_divergence_is_noted_or_stops_the_run_or_lowers_the_rate(breaker: Breaker) -> None:
    settings = {"faults__window": 20, "optimizer__learning_rate": 1e-5, "faults__lower_for": 5}
    noted = breaker("noted", prepare=rising, **settings)
    assert noted.decisions and {d[1:3] for d in noted.decisions} == {("divergence", "log")}
    first = noted.decisions[0][0]
    assert 46 < first < 85
    lowered = breaker("lowered", prepare=rising, faults__divergence="lower_rate", **settings)
    assert lowered.decisions[0] == (first, "divergence", "lower_rate", None)
    rates = [{row["step"]: row["learning_rate"] for row in run.run.rows()} for run in (lowered, noted)]
    half = [n for n in range(1, first + 7) if rates[0][n] == pytest.approx(rates[1][n] / 2)]
    assert half == list(range(first + 1, first + 6))
    with pytest.raises(Diverged, match=f"Step {first} divergence"):
        breaker("stopped", prepare=rising, faults__divergence="stop", **settings)


def test_the_stop_counts_only_faults_that_are_near() -> None:
    config = FaultsConfig(most=2, within=10)
    model = torch.nn.Linear(2, 2)
    guard = Guard(config, OptimizerConfig(), Weights(model, "fp32"), [])

    def decide(step: int) -> str:
        with pytest.raises(Fault) as raised:
            guard.check(step, Update(float("nan"), 1.0), dict)
        return guard.decide(raised.value, lambda step: [step], damaged=False, earlier_too=False).deed

    assert [decide(5), decide(5), decide(15), decide(15)] == ["again", "skip", "again", "skip"]
    assert decide(24) == "stop"
    assert guard.quarantined == {5: [5], 15: [15]}


class Another(Ranks):
    """A rank that says of everything that it is so with it."""

    def hear(self, word: Any) -> list[Any]:
        return [word, True]


def test_many_ranks_agree_that_a_weight_of_one_is_not_finite() -> None:
    """What only one rank sees is asked of all: here the other one says so."""
    guard = Guard(
        FaultsConfig(),
        OptimizerConfig(),
        Weights(torch.nn.Linear(2, 2), "fp32"),
        [],
        ranks=Another(),
    )
    assert guard.damaged()
