"""One step: the same mathematics however the batch is divided, and nothing changed by a step that went wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.stacks import Decoder, build
from glassformer.text.batches import NO_LOSS, Batch
from glassformer.train.config import OptimizerConfig
from glassformer.train.engine import Choice, prepare_loss
from glassformer.train.optimizers import build_optimizers, state_tensors
from glassformer.train.step import Diverged, Update, update
from glassformer.train.weights import Weights

CPU = torch.device("cpu")
RATES = {"sgd": 0.3, "adam": 0.01, "adamw": 0.01, "lion": 0.003, "adafactor": 0.05, "muon": 0.01}


def a_batch(rows: int = 8, length: int = 12, vocab: int = 29) -> Batch:
    ids = np.random.default_rng(0).integers(0, vocab, (rows, length + 1))
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), None, np.arange(rows))


def unequal() -> Batch:
    """As `fit` packing gives it: rows end early, one is empty, and documents do not see each other."""
    batch = a_batch()
    segments = np.zeros((8, 12), np.int32)
    segments[:, 5:] = 1
    for row, end in enumerate([12, 3, 12, 0, 7, 12, 1, 9]):
        batch.targets[row, end:] = NO_LOSS
        segments[row, end:] = -1
    return Batch(batch.ids, batch.targets, segments, batch.sample_ids)


class Learner:
    """A tiny model with everything a step needs."""

    def __init__(
        self,
        *,
        precision: Precision = "fp32",
        double: bool = False,
        options: dict[str, float] | None = None,
        **optimizer: Any,
    ) -> None:
        small = ModelConfig(vocab=29, width=16, layers=1, heads=2, context=12)
        self.model: Decoder = build(small, seed=4)
        if double:
            self.model.double()
        self.weights = Weights(self.model, precision)
        settings = {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, **optimizer}
        self.optimizers = build_optimizers(OptimizerConfig.model_validate(settings), self.weights.masters)
        self.loss = prepare_loss(self.model, Choice("cpu", precision, False, "explicit"), **(options or {}))

    def step(self, batch: Batch, clip: float | None = None, accumulate: int = 1, rate: float = 1.0) -> Update:
        return update(
            self.loss,
            self.weights,
            self.optimizers,
            batch,
            rate=rate,
            clip=clip,
            accumulate=accumulate,
            device=CPU,
        )

    def values(self) -> torch.Tensor:
        """Every weight, in one row."""
        return torch.cat([w.detach().flatten() for w in self.weights.masters.values()])


@pytest.mark.parametrize("batch", [a_batch(), unequal()], ids=["full rows", "unequal rows"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_micro_batches_add_up_to_the_whole_batch(batch: Batch, clip: float | None) -> None:
    whole = Learner(double=True)
    found = whole.step(batch, clip)
    for accumulate in (2, 4, 8):
        parts = Learner(double=True)
        again = parts.step(batch, clip, accumulate)
        assert again.loss == pytest.approx(found.loss, rel=1e-6)
        assert again.grad_norm == pytest.approx(found.grad_norm, rel=1e-12)
        assert torch.allclose(parts.values(), whole.values(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_micro_batches_add_up_as_well_as_bfloat16_can_tell(precision: Precision) -> None:
    whole, parts = Learner(precision=precision), Learner(precision=precision)
    before = whole.values()
    whole.step(unequal())
    parts.step(unequal(), accumulate=4)
    moved, again = whole.values() - before, parts.values() - before
    assert (moved - again).norm() < 0.02 * moved.norm()


def test_the_loss_is_the_mean_over_targets_in_nats() -> None:
    learner, batch = Learner(double=True), unequal()
    ids, segments = torch.from_numpy(batch.ids), torch.from_numpy(batch.segments)
    lines = learner.model(ids, segments=segments).log_softmax(-1).flatten(0, 1).detach().numpy()
    targets = batch.targets.flatten()
    kept = np.flatnonzero(targets != NO_LOSS)
    assert len(kept) == 56
    assert learner.step(batch).loss == pytest.approx(-lines[kept, targets[kept]].mean(), rel=1e-6)


def test_smoothing_and_z_loss_reach_the_loss() -> None:
    batch, s, z = a_batch(), 0.2, 0.01
    learner = Learner(double=True, options={"label_smoothing": s, "z_loss": z})
    logits = learner.model(torch.from_numpy(batch.ids)).detach().flatten(0, 1)
    lse = logits.logsumexp(-1)
    right = logits.gather(1, torch.from_numpy(batch.targets).flatten()[:, None])[:, 0]
    expected = ((1 - s) * (lse - right) + s * (lse - logits.mean(-1)) + z * lse**2).mean()
    assert learner.step(batch).loss == pytest.approx(expected.item(), rel=1e-6)


def test_a_gradient_that_is_too_long_is_cut_to_exactly_the_length_allowed() -> None:
    free, clipped = Learner(double=True), Learner(double=True)
    before = free.values()
    norm = free.step(a_batch()).grad_norm
    gradient = before - free.values()
    assert gradient.norm().item() == pytest.approx(norm, rel=1e-12) and norm > 0.05
    assert clipped.step(a_batch(), clip=0.05).grad_norm == norm  # as it was before
    assert torch.allclose(before - clipped.values(), gradient * 0.05 / norm, rtol=0, atol=1e-14)


def test_a_gradient_within_the_length_allowed_is_left_alone() -> None:
    free, clipped = Learner(), Learner()
    norm = free.step(a_batch()).grad_norm
    clipped.step(a_batch(), clip=norm * 1.001)
    assert torch.equal(free.values(), clipped.values())


def test_the_schedules_factor_scales_the_step() -> None:
    whole, half = Learner(double=True), Learner(double=True)
    before = whole.values()
    whole.step(a_batch())
    half.step(a_batch(), rate=0.5)
    assert torch.allclose(half.values() - before, (whole.values() - before) / 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("what", [float("nan"), float("inf"), 1e38])
def test_a_step_that_is_not_finite_changes_nothing(precision: Precision, what: float) -> None:
    learner = Learner(precision=precision, kind="muon", learning_rate=0.01, momentum=0.9)
    learner.step(a_batch())
    with torch.no_grad():  # as a hardware error or an exploded weight would
        learner.weights.masters["blocks.0.mlp.up.weight"][3, 2] = what
        learner.weights.masters["blocks.0.mlp.down.weight"][2, 3] = what
        learner.weights.refresh()
    weights = learner.values()
    remembered = {k: v.clone() for k, v in state_tensors(learner.optimizers, learner.weights.masters).items()}
    with pytest.raises(Diverged, match=r"no weight was changed.*learning_rate"):
        learner.step(a_batch(), accumulate=2)
    assert torch.equal(learner.values().view(torch.int32), weights.view(torch.int32))
    after = state_tensors(learner.optimizers, learner.weights.masters)
    assert all(torch.equal(after[name], value) for name, value in remembered.items())


def test_too_high_a_rate_is_noticed_at_the_step_after() -> None:
    learner = Learner(learning_rate=1e30)
    learner.step(a_batch())
    kept = learner.values()
    with pytest.raises(Diverged):
        learner.step(a_batch())
    assert torch.equal(learner.values(), kept)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("kind", RATES)
def test_the_loss_falls_whatever_the_optimiser(kind: str, precision: Precision) -> None:
    learner = Learner(kind=kind, precision=precision, learning_rate=RATES[kind], momentum=0.9)
    losses = [learner.step(a_batch(), clip=1.0).loss for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(29), rel=0.05)
    assert losses[-1] < 0.6 * losses[0]


def test_a_batch_without_targets_is_no_step_but_no_fault() -> None:
    learner, batch = Learner(), a_batch()
    batch.targets[:] = NO_LOSS
    before = learner.values()
    assert learner.step(batch) == Update(0.0, 0.0)
    assert torch.equal(learner.values(), before)
