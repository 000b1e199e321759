"""What a run measures on itself between its steps, and at its end: what is held out, samples, the finished model.

Nothing here changes a number of the training: no gradient is taken, and dropout's noise is a function of the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from glassformer.run import checkpoints, reserve
from glassformer.run.report import write_report
from glassformer.stats import bits_per_byte
from glassformer.train.bench import peak_bytes
from glassformer.train.launch import release_pages
from glassformer.train.meter import joules, matmul_ceiling
from glassformer.train.step import micro_batches
from glassformer.train.task import Batch, Event

if TYPE_CHECKING:
    from glassformer.train.loop import Session


def validate(session: Session, step: int, *, whole: bool) -> Iterator[Event]:
    """Mean loss on what is held out, each target predicted once, without smoothing. With the training step's own code
    and gradients on, so that nothing is compiled a second time; no gradient is taken."""
    task, ranks, train = session.task, session.ranks, session.recipe.train
    rows = session.parts.rows // session.parts.count
    limit = None if whole else train.validation_tokens
    nats, num_targets, num_bytes = 0.0, 0.0, 0.0
    with _without_dropout(session), torch.set_grad_enabled(not ranks.sharded):
        for batch, counts in ranks.deal(_at_most(limit, task.validation(rows))):
            with session.steady():  # as compiled code was
                for arrays in micro_batches(batch, 1, session.device):
                    nats += session.plain_loss_of(**arrays).item() * batch.num_targets * counts
            num_targets += batch.num_targets * counts
            num_bytes += (task.num_bytes(batch) or 0) * counts
        model = _whole(session)
        judged = task.judge(model, whole=whole) if ranks.is_first else {}
    nats, num_targets, num_bytes = ranks.total(nats, num_targets, num_bytes)
    session.meter.saw_ceiling(ceiling(session))
    if num_targets:
        bits = (
            {"bits_per_byte": bits_per_byte(nats, int(num_bytes)), "bytes": int(num_bytes)}
            if num_bytes
            else {}
        )
        yield session.log(
            "validation", step=step, loss=nats / num_targets, tokens=int(num_targets), whole=whole, **bits, **judged
        )  # fmt: skip


def sample(session: Session, step: int) -> Iterator[Event]:
    """What the model writes by now."""
    with _without_dropout(session):
        model = _whole(session)
        for event in session.task.samples(model) if session.ranks.is_first else ():
            yield session.log(event.pop("event"), step=step, **event)


def finish(session: Session, step: int, energy: float | None) -> Iterator[Event]:
    """After the last checkpoint: the finished model, all that is measured on it, and the report."""
    ranks, weights, run = session.ranks, session.weights, session.run
    if session.recipe.train.average > 1:
        mean: dict[str, torch.Tensor] = {}
        steps: list[int] = []
        if ranks.is_first:
            mean, steps = checkpoints.mean(run.checkpoints, session.recipe.train.average)
        weights.load(ranks.spread(mean, weights.masters))
        yield session.log("averaged", step=step, steps=steps)
    yield from validate(session, step, whole=True)
    yield from sample(session, step)
    model = _whole(session)
    if not ranks.is_first:
        return
    weights.settle()
    model.eval()
    reserve.release(run.checkpoints)
    session.task.save(run.model, model)
    for event in session.task.findings(model):
        yield session.log(event.pop("event"), **event)
    now = joules()
    used = {} if energy is None or now is None else {"joules": now - energy}
    summary = session.summary()
    took = {key: summary[key] for key in ("flops", "seconds", "tokens")}
    yield session.log("cost", **took, peak_bytes=peak_bytes(session.choice.device), **used)
    yield session.log("done", **summary)
    release_pages()  # what draws the charts does not stand on the training's peak
    write_report(run)


def ceiling(session: Session) -> float:
    """FLOP/s that the bare products reach at this moment, on all ranks together."""
    task, choice, ranks = session.task, session.choice, session.ranks
    rows = task.batches.tokens_per_batch // session.parts.count // ranks.data_count
    mine = matmul_ceiling(task.matrices.values(), rows, choice.precision, choice.device)
    return ranks.total(mine)[0]


def _whole(session: Session) -> nn.Module:
    """The model with all its weights, to be looked at; on rank 0."""
    return session.ranks.whole(session.model, session.weights, session.task.build)


@contextlib.contextmanager
def _without_dropout(session: Session) -> Iterator[None]:
    """Compiled code belongs to one mode, so the mode is left alone where it changes nothing."""
    session.model.train(not session.task.config.dropout)
    try:
        yield
    finally:
        session.model.train()


def _at_most(num_targets: int | None, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The first batches, until so many targets are in them."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch.num_targets
        if num_targets is not None and seen >= num_targets:
            return
