"""A fault that ends a run leaves what reproduces it, to the bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sessions import Breaker, Broken, spoil_activations

import glassformer as gf
from glassformer.train.loop import Session
from glassformer.train.step import Diverged
from glassformer.train.task import Event


def test_too_many_faults_stop_the_run_and_leave_what_reproduces_the_last(breaker: Breaker) -> None:
    def prepare(session: Session) -> None:
        for step in (49, 51, 53):
            spoil_activations(session, step, once=False, row=1)

    with pytest.raises(
        Diverged, match=r"Step 54 not finite .* first at blocks.1.mlp_out .*faults/step-00000054"
    ) as raised:
        breaker("many", prepare=prepare, faults__most=3)
    assert raised.value.exit_code == 1
    found = Broken(breaker.folder / "many")
    assert [d[2] for d in found.decisions] == ["again", "skip", "again", "skip", "stop"]
    assert found.run.summary()["status"] == "killed"


def test_a_bundle_reproduces_the_failure_to_the_bit(breaker: Breaker) -> None:
    """A rate that is far too high: the update itself makes weights whose loss is infinite."""
    with pytest.raises(Diverged):
        breaker("high", optimizer__learning_rate=1e30, optimizer__kind="sgd", model__dropout=0.1,
                faults__not_finite="stop", schedule__warmup=0)  # fmt: skip
    (fault,) = Broken(breaker.folder / "high").all("fault")
    found = gf.reproduce_fault(breaker.folder / "high" / fault["bundle"])
    assert found.same and not math.isfinite(found.loss + found.grad_norm)
    assert found.place is not None and found.place == fault["place"]
    assert found.fault["step"] == fault["step"] == 2


def test_a_bundle_of_a_spike_gives_the_same_finite_numbers(breaker: Breaker) -> None:
    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 66:
            with torch.no_grad():
                session.weights.masters["embed.weight"] *= -20

    with pytest.raises(Diverged, match="loss spike"):
        breaker("stopped", after=after, model__dropout=0.1, faults__spike="stop", train__accumulate=2)
    (fault,) = Broken(breaker.folder / "stopped").all("fault")
    path = breaker.folder / "stopped" / fault["bundle"]
    found = gf.reproduce_fault(path)
    assert found.same and found.loss == fault["loss"] and found.grad_norm == fault["grad_norm"]
    assert found.place is None and found.tensors == [] and len(found.samples) == 5
    content = bytearray((path / "batch.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "batch.safetensors").write_bytes(content)
    with pytest.raises(gf.GlassformerError, match=r"(?s)not whole:.*batch\.safetensors"):
        gf.reproduce_fault(path)


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gf.GlassformerError, match="no bundle of a fault"):
        gf.reproduce_fault(tmp_path)
