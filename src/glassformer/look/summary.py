"""One pass in a few tables: what comes next and how sure that is, how wrong each token was, how large the stream.

    entropy     H = -sum_v p_v log p_v, in nats: 0 when one token is certain, log V when none is preferred
    norm        |x| = sqrt(sum_i x_i^2), the length of a vector; here its mean over the positions

`resid_pre` enters a block, `attn_out` and `mlp_out` are what its two layers add, `resid_post` leaves it: how much
each writes, against what was there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.look.reading import Model, Reading, Text
from glassformer.look.trace import warnings
from glassformer.look.visible import visible
from glassformer.model.mlp import Network
from glassformer.use.predict import Rows

_LAYER = ("resid_pre", "attn_out", "cross_attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True, slots=True)
class Summary:
    """Tables of one pass."""

    tokens: list[dict[str, Any]]
    """For each token: its text, its loss (-log p, in nats) given those before it, and what had been said in its
    place. Of an encoder: what it says stands there, and how sure it is."""
    answers: list[dict[str, Any]]
    """The likeliest next tokens; of an encoder the last position's; of a classifier or network the classes."""
    entropy: float | None
    """Of the distribution the answers come from, in nats."""
    layers: list[dict[str, Any]]
    """Mean norms in each block; of a network, of its sums and activations."""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Norms:
    """A `see` that measures what passes and keeps none of it."""

    def __init__(self, places: list[str]) -> None:
        self.places = set(places)
        self.found: dict[str, float] = {}

    def wants(self, name: str) -> bool:
        return name in self.places

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        if name in self.places:
            self.found[name] = float(y.detach().float().norm(dim=-1).mean())
        return y


def summary(model: Model, text: Text | Rows, *, target: Text | None = None, top: int = 10) -> Summary:
    """What the model makes of a text (an encoder-decoder: of writing `target` for it), in tables."""
    reading = Reading.of(model, text, target=target)
    network = isinstance(reading.model, Network)
    keep = reading.places() if network else [p for p in reading.places() if p.rsplit(".", 1)[-1] in _LAYER]
    norms = _Norms(keep)
    with torch.no_grad():
        whole = reading.run(norms)
    layers, wrong, output = _by_layer(norms.found), warnings(reading, whole), whole[0].float()
    if network or output.ndim == 1:
        return Summary([], _outputs(reading, output, top), None, layers, wrong)
    if reading.model.config.head == "none":
        tokens = [{"position": n, "token": visible(token)} for n, token in enumerate(reading.tokens)]
        return Summary(tokens, [], None, layers, wrong)
    entropy = float(torch.special.entr(output[-1].softmax(-1)).sum())
    return Summary(_tokens(reading, output), _answers(reading, output[-1], top), entropy, layers, wrong)


def _tokens(reading: Reading, logits: Float[Tensor, "position vocab"]) -> list[dict[str, Any]]:
    logs = logits.log_softmax(-1)
    ids, tokens = torch.tensor(reading.ids, device=logits.device), reading.tokens
    writes = reading.model.config.kind != "encoder"
    told = logs[:-1] if writes else logs  # of a writer, what the position before says stands here
    best = told.max(-1)
    said = reading.words(best.indices.tolist())
    hidden = None if reading.tokenizer is None or writes else reading.tokenizer.mask
    loss = (-told.gather(-1, ids[len(ids) - len(told) :, None])[:, 0]).tolist()
    first = (
        [{"position": 0, "token": visible(tokens[0]), "loss": None, "said": None, "probability": None}]
        if writes
        else []
    )
    return first + [
        {
            "position": n,
            "token": visible(tokens[n]),
            "loss": None if ids[n] == hidden else loss[i],  # what is hidden there is not in the text
            "said": visible(said[i]),
            "probability": chance,
        }
        for i, (n, chance) in enumerate(
            zip(range(len(first), len(ids)), best.values.exp().tolist(), strict=True)
        )
    ]


def _answers(reading: Reading, logits: Float[Tensor, " vocab"], top: int) -> list[dict[str, Any]]:
    best = logits.topk(min(top, len(logits)))
    chances = logits.softmax(-1)[best.indices].tolist()
    return [
        {"token": visible(token), "id": int(i), "probability": chance, "logit": logit}
        for token, i, chance, logit in zip(
            reading.words(best.indices.tolist()),
            best.indices.tolist(),
            chances,
            best.values.tolist(),
            strict=True,
        )
    ]


def _outputs(reading: Reading, output: Float[Tensor, " output"], top: int) -> list[dict[str, Any]]:
    """Classes and their probabilities, largest first; numbers as they come."""
    names = reading.outputs or tuple(str(n) for n in range(len(output)))
    kind = reading.model.config.head
    if kind == "classes":
        output = output.softmax(-1)
    what = "number" if kind == "number" else "probability"
    rows = [{"output": name, what: value} for name, value in zip(names, output.tolist(), strict=True)]
    return rows if kind == "number" else sorted(rows, key=lambda row: -float(row[what]))[:top]


def _by_layer(found: dict[str, float]) -> list[dict[str, Any]]:
    """`blocks.3.attn_out: x` -> {"block": "blocks.3", "attn_out": x, ...}."""
    rows: dict[str, dict[str, Any]] = {}
    for place, norm in found.items():
        block, _, name = place.rpartition(".")
        rows.setdefault(block, {"block": block})[name] = norm
    return list(rows.values())
