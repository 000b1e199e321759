"""How sure a loss is that was measured on held-out text, which is only so long.

    L  = sum of all tokens' nats / their number
    se = sqrt(sum over documents of (nats_d - L tokens_d)^2) / tokens

Tokens of one document err together, so documents are what is drawn (rows of the context, where there are fewer than
30 documents). Two models err together as well, on the same text: the error of their difference is that of
nats_d(one) - nats_d(other), and it is this that a law sees.
"""

from __future__ import annotations

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


def held_out_noise(task: LanguageTask, one: Path, other: Path) -> Noise:
    """What the held-out text's length leaves open, measured on two finished runs."""
    store = task.prepared.validation
    places = np.arange(store.num_tokens)
    part = np.searchsorted(store.starts, places, "right") - 1
    if store.num_documents < _FEW:
        part = places // task.config.context
    tokens = np.bincount(part).astype(np.float64)
    nats = [np.bincount(part, _nats(task, run)).astype(np.float64) for run in (one, other)]

    def error(total: NDArray[np.float64]) -> float:
        mean = total.sum() / tokens.sum()
        return float(np.sqrt(((total - mean * tokens) ** 2).sum()) / tokens.sum())

    level = float(nats[0].sum() / tokens.sum())
    return Noise(
        store.num_tokens, int((tokens > 0).sum()), error(nats[0]) / level, error(nats[0] - nats[1]) / level
    )


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
