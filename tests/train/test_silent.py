"""A machine that computes a wrong number now and then, for real: it is found, named, and nothing is learned from it."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from sessions import Breaker, Broken, at_pass, flip, wrong_product
from torch.utils._python_dispatch import TorchDispatchMode

from glassformer.train.known import wrong_answers
from glassformer.train.loop import Session
from glassformer.train.silent import MachineErred
from glassformer.train.task import Event

SHORT = {"train__steps": 40, "train__checkpoint_every": 15}
ON = {"faults__replay_every": 10, "faults__digest_every": 10, **SHORT}
HOST = socket.gethostname()


class BadUnit(TorchDispatchMode):
    """A machine whose unit for products of float32 matrices turns one bit around."""

    on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.on and func is torch.ops.aten.mm.default and out.dtype == torch.float32:
            flip(out, out.numel() // 2, 20)
        return out


@pytest.fixture(scope="module")
def undisturbed(breaker: Breaker) -> dict[str, Any]:
    found = breaker("undisturbed", **SHORT)
    assert found.decisions == [] and found.warned == ""
    return found.story


@pytest.mark.parametrize(("which", "exact"), [(2, True), (1, False)], ids=["the step", "the replay"])
def test_a_product_that_was_wrong_once_costs_nothing_and_is_named(
    breaker: Breaker, undisturbed: dict[str, Any], which: int, exact: bool
) -> None:
    def prepare(session: Session) -> None:
        wrong_product(session, at_pass(session, 29, which))

    found = breaker(f"once {which}", prepare=prepare, **ON)
    assert found.decisions == [(30, "silent", "again", None)]
    (fault,) = found.all("fault")
    assert fault["ranks"] == [{"rank": 0, "host": HOST}] and fault["verified"] == 20
    assert fault["tensors"][0]["tensor"] == "loss"
    named = {row["tensor"]: row for row in fault["tensors"][1:]}
    for row in named.values():
        wrong, right = row["lengths"]
        assert 0 < abs(wrong - right) < right
        assert ("count" in row) == exact and (not exact or (row["largest"] > 0 and row["count"] <= row["of"]))
    assert f"this machine ({HOST}) erred once, in loss first: computed again" in fault["message"]
    assert found.story == undisturbed


def test_without_a_replay_such_a_product_is_learned_from(
    breaker: Breaker, undisturbed: dict[str, Any]
) -> None:
    found = breaker("unseen", prepare=lambda s: wrong_product(s, at_pass(s, 29, 1)), **SHORT)
    assert found.decisions == [] and found.story["model"] != undisturbed["model"]


def test_numbers_that_are_never_the_same_twice_end_the_run(breaker: Breaker) -> None:
    def prepare(session: Session) -> None:
        bits = iter(range(10, 23))
        err = at_pass(session, 29, 1, 2, 3)

        def spoil(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and err():
                out = out.clone()
                flip(out, 7, next(bits))
            return out

        session.model.blocks[0].mlp.register_forward_hook(spoil)

    with pytest.raises(MachineErred) as raised:
        breaker("never", prepare=prepare, **ON)
    said = str(raised.value)
    assert f"Step 30 gave two answers: this machine ({HOST}) erred and does so again" in said
    assert "changed no weight" in said and "The last step that gave one answer twice is 20." in said


def test_a_step_that_errs_again_after_it_was_computed_again_ends_the_run(breaker: Breaker) -> None:
    with pytest.raises(MachineErred, match="Step 30 gave two answers"):
        breaker("twice", prepare=lambda s: wrong_product(s, at_pass(s, 29, 2, 5)), **ON)
    assert [d[2] for d in Broken(breaker.folder / "twice").decisions] == ["again", "stop"]


def test_a_unit_that_is_always_wrong_gives_itself_away_by_known_answers(
    breaker: Breaker, undisturbed: dict[str, Any]
) -> None:
    """It gives the same wrong bits twice: no replay on one rank could tell."""
    unit = BadUnit()

    def after(session: Session, event: Event) -> None:
        unit.on |= event["event"] == "step" and event["step"] == 23

    with pytest.raises(MachineErred) as raised, unit:
        breaker("unit", after=after, **{**ON, "faults__replay_every": 20})
    said = str(raised.value)
    assert "is wrong about a product of two matrices" in said and "Step 30" in said
    found = Broken(breaker.folder / "unit")
    assert [event["step"] for event in found.all("checkpoint")] == [15]  # the wrong step is not saved
    assert found.all("fault")[-1]["verified"] == 20
    assert breaker("unit", **ON).story == undisturbed


def test_a_machine_that_is_wrong_from_the_beginning_does_not_begin(breaker: Breaker) -> None:
    unit = BadUnit()
    unit.on = True
    with pytest.raises(MachineErred, match="wrong about a product of two matrices"), unit:
        breaker("from the beginning", **ON)
    assert wrong_answers(torch.device("cpu")) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"engine__attention": "blocks", "model__dropout": 0.1, "train__accumulate": 2},
        {"engine__attention": "fused", "engine__precision": "bf16", "model__dropout": 0.1},
        {"engine__precision": "autocast", "optimizer__kind": "muon", "engine__deterministic": True},
    ],
    ids=["blocks", "fused", "explicit"],
)  # fmt: skip
def test_computing_twice_changes_no_number_and_finds_nothing_where_nothing_is_wrong(
    breaker: Breaker, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    short = {**SHORT, "train__steps": 12, "train__checkpoint_every": 8, **settings}
    twice = breaker(f"{name} twice", faults__replay_every=1, faults__digest_every=1, **short)
    assert twice.decisions == [] and twice.warned == ""
    assert twice.story == breaker(f"{name} once", **short).story


def test_where_two_answers_are_never_the_same_to_the_bit_they_are_compared_by_length(
    breaker: Breaker,
) -> None:
    """Sums in another order each time, as by atomic adds: said once, and a large error is found all the same."""
    noise = torch.Generator().manual_seed(1)

    def prepare(session: Session) -> None:
        def jitter(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
            return out * (1 + 1e-6 * torch.rand(out.shape, generator=noise))

        err = at_pass(session, 29, 2)
        session.model.blocks[0].mlp.register_forward_hook(jitter)
        session.model.blocks[1].mlp.register_forward_hook(lambda module, x, y: y * 1.5 if err() else y)

    found = breaker("unsteady", prepare=prepare, **ON)
    assert found.decisions == [(30, "silent", "again", None)]
    assert "differs in its last digits (rank 0; fp32 eager, explicit attention)" in found.warned
    assert found.warned.count("\n") == 0
