"""How sure a loss is that was measured on held-out text, which is only so long.

    L  = sum of all tokens' nats / their number
    se = sqrt(sum over documents of (nats_d - L tokens_d)^2) / tokens

Tokens of one document err together, so documents are what is drawn (rows of the context, where there are fewer than
30 documents). Two models err together as well, on the same text: the error of their difference is that of
nats_d(one) - nats_d(other), and it is this that a law sees.

What a model makes of its context is measured beside it: the mean loss in the second eighth of a row less that in its
last quarter, as a share of the loss. Copying from further back (induction heads) is learned suddenly, somewhere along
a ladder, and a law through rungs that cannot do it knows nothing of those that can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from glassformer.text.batches import NO_LOSS, validation_batches
from glassformer.train.language import LanguageTask
from glassformer.use.load import load

_ROWS = 32
_FEW = 30


@dataclass(frozen=True)
class Noise:
    """Standard errors, as a share of the loss."""

    tokens: int
    parts: int
    """Documents, or rows."""
    loss: float
    """Of one model's loss: another held-out text would have it so much higher or lower, for all models together."""
    difference: float
    """Of the difference between two models' losses."""
    context_gains: Mapping[str, float]
    """Run -> what it makes of its context."""


def held_out_noise(task: LanguageTask, one: Path, other: Path, *more: Path) -> Noise:
    """What the held-out text's length leaves open, measured on two finished runs; of `more` only the context's gain."""
    store = task.prepared.validation
    places = np.arange(store.num_tokens)
    part = np.searchsorted(store.starts, places, "right") - 1
    if store.num_documents < _FEW:
        part = places // task.config.context
    tokens = np.bincount(part).astype(np.float64)
    each = {run: _nats(task, run) for run in (one, other, *more)}
    nats = [np.bincount(part, each[run]).astype(np.float64) for run in (one, other)]
    gains = {run.name: _context_gain(found, task.config.context) for run, found in each.items()}

    def error(total: NDArray[np.float64]) -> float:
        mean = total.sum() / tokens.sum()
        return float(np.sqrt(((total - mean * tokens) ** 2).sum()) / tokens.sum())

    level = float(nats[0].sum() / tokens.sum())
    return Noise(
        store.num_tokens,
        int((tokens > 0).sum()),
        error(nats[0]) / level,
        error(nats[0] - nats[1]) / level,
        gains,
    )


def _context_gain(nats: NDArray[np.float64], context: int) -> float:
    """0 where there is no whole row."""
    rows = nats[: len(nats) // context * context].reshape(-1, context)
    early, late = rows[:, context // 8 : context // 4], rows[:, -context // 4 :]
    return float((early.mean() - late.mean()) / nats.mean()) if len(rows) and early.size else 0.0


@torch.no_grad()
def _nats(task: LanguageTask, run: Path) -> NDArray[np.float64]:
    """Of every held-out token, in order."""
    model = load(run).model
    found = []
    for batch in validation_batches(task.prepared.validation, batch=_ROWS, context=task.config.context):
        targets = torch.from_numpy(batch.targets)
        logits = model(torch.from_numpy(batch.ids))
        each = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="none"
        )
        found.append(each[targets.flatten() != NO_LOSS].double().numpy())
    return np.concatenate(found)
