"""Where a number that is not finite came from: forward, backward, in every kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sessions import Breaker

from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.train.culprit import first_not_finite, row_losses
from glassformer.train.engine import Choice


def test_a_head_is_named(breaker: Breaker) -> None:
    """Keys that overflow in one head: their products with the queries are the first to be infinite."""

    with breaker.session("head") as session:
        batch = session.task.batches.batch(0)
        with torch.no_grad():
            session.model.blocks[1].attn.qkv.weight[8:16] = 3e38  # the queries of head 1
        found = first_not_finite(session.model, batch, session.choice)
    assert found is not None and found["place"].startswith("blocks.1.attn.") and found["head"] == 1
    assert found["pass"] == "forward" and found["sample_id"] == int(batch.sample_ids[0])


def test_a_gradient_that_overflows_inside_is_traced_from_the_loss_down(breaker: Breaker) -> None:
    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * torch.inf

    with breaker.session("inside") as session:
        session.model.blocks[0].mlp.register_forward_hook(lambda module, given, out: Overflowing.apply(out))
        batch = session.task.batches.batch(0)
        found = first_not_finite(session.model, batch, session.choice)
    assert found is not None
    assert (found["pass"], found["place"], found["layer"]) == ("backward", "blocks.0.mlp.post", 0)
    assert found["sample_id"] == int(batch.sample_ids[0])


@pytest.mark.parametrize("table", [False, True], ids=["encoder-decoder", "plain network"])
def test_other_models_are_traced_too(breaker: Breaker, table: bool) -> None:
    """One weight is NaN: the first place that reads it is named, and the rows it reaches."""
    if table:
        model: Any = Network(NetworkConfig(inputs=4, outputs=3, hidden=(8, 8)), seed=0)
        arrays = {"inputs": np.ones((5, 4), np.float32), "targets": np.zeros(5, np.int64)}
        weight, place = model.layers[1].weight, "layers.1.pre"
    else:
        model = build(
            ModelConfig(kind="encoder-decoder", vocab=11, width=8, layers=1, heads=2, context=6), seed=0
        )
        ids = np.arange(30).reshape(5, 6) % 11
        arrays = {"source": ids, "ids": ids, "targets": ids}
        weight, place = model.encoder[0].mlp.up.weight, "encoder.0.mlp.pre"
    with torch.no_grad():
        weight[2, 1] = torch.nan
    found = first_not_finite(model, Rows(arrays), Choice("cpu", "fp32", False, None))
    assert found is not None and (found["place"], found["pass"], found["layer"]) == (
        place,
        "forward",
        int(table),
    )
    assert (
        found["sample_ids"] == [100, 101, 102, 103, 104] and found["neuron" if table else "feedforward"] == 2
    )
    assert table or found["token"] == 0
    with torch.no_grad():
        weight[2, 1] = 0.1
    assert first_not_finite(model, Rows(arrays), Choice("cpu", "fp32", False, None)) is None
    rows = row_losses(model, Rows(arrays), Choice("cpu", "fp32", False, None))
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True) and len(
        rows
    ) == 5


class Rows:
    """A batch of arrays."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays, self.sample_ids, self.num_targets = arrays, np.arange(100, 105), 30

    def arrays(self) -> dict[str, Any]:
        return self._arrays
