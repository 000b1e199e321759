"""Warnings before anything has gone wrong, by name."""

from __future__ import annotations

import torch
from sessions import Breaker

from glassformer.train.loop import Session
from glassformer.train.task import Event


def test_a_tensor_that_does_not_learn_is_named(breaker: Breaker) -> None:
    def prepare(session: Session) -> None:
        weights = session.weights.working
        weights["blocks.0.mlp.down.weight"].register_hook(torch.zeros_like)
        weights["blocks.1.mlp.down.weight"].register_hook(lambda gradient: gradient * 1e-9)

    found = breaker("dead", prepare=prepare, faults__look_every=10)
    told = [event["message"] for event in found.all("warning")]
    assert told[0] == "step 20: blocks.0.mlp.down.weight does not learn: its whole gradient is 0"
    assert told[1].startswith(
        "step 20: blocks.1.mlp.down.weight hardly learns: the root mean square of its gradient"
    )
    assert len(told) == 2 and found.decisions == []


def test_exploding_logits_are_named(breaker: Breaker) -> None:
    def after(session: Session, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 12:
            with torch.no_grad():
                session.model.blocks[1].attn.qkv.weight[:32] *= 300  # queries and keys
                session.model.norm.weight *= 1000

    found = breaker("exploding", after=after, faults__look_every=10, optimizer__learning_rate=1e-4)
    told = " | ".join(event["message"] for event in found.all("warning"))
    assert (
        "step 20: blocks.1.attn.scaled has a number of" in told and "step 20: logits has a number of" in told
    )
    assert "blocks.0" not in told and told.count("blocks.1.attn.scaled") == 1
