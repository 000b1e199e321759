"""The logit lens: what the model would say if a layer were its last (nostalgebraist 2020).

    logits_l = head(norm(x_l))        x_l the residual stream after l blocks, layer 0 the embedding

norm and head are the model's own last ones (a post-norm model has no last norm; BERT's transform is a part of the
head). At each layer and position, with p_l = softmax(logits_l) and p the model's own probabilities:

    top          the likeliest tokens by p_l
    entropy      H = - sum_t p_l(t) log p_l(t), in nats: 0 is certainty, log V an even guess
    rank         how many tokens score above the chosen one: 0 is the top
    probability  p_l of the chosen token
    kl           sum_t p(t) log(p(t) / p_l(t)), in nats: how far the layer is from the end; 0 at the end

Only the stream is kept of each layer; logits live for a few layers and positions at a time. The last layer
is read like the others, so that its distance from the model's own output checks the lens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer import charts
from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import position_of, scorer, token_id
from glassformer.look.reading import Model, Reading, Text
from glassformer.look.trace import look
from glassformer.look.visible import visible
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import stacks
from glassformer.model.stacks import Encoder
from glassformer.model.transformer import Transformer

_CHUNK_LOGITS = 2**22
"""Logits that exist at a time (16 MiB; a few times that with what is made of them)."""

_MOST_POSITIONS = 12
"""Columns of the chart, so that its words can be read."""


class Stage(NamedTuple):
    """Where in the stack of blocks the stream is read."""

    layer: int
    """Blocks that it has been through."""
    name: str
    """The same as a word: `3`, or `3+attn` between the two halves of the block that follows."""
    place: str
    """Its name in the table of places."""


@dataclass(frozen=True, slots=True)
class Lens:
    """What each layer would say at each position. Tensors are on the processor."""

    reading: Reading = field(repr=False)
    stages: tuple[Stage, ...]
    chosen: tuple[int, ...]
    """At each position the token whose rank and probability are told: the one asked for, or what the model says."""
    top_ids: Int[Tensor, "layer position top"] = field(repr=False)
    top_probabilities: Float[Tensor, "layer position top"] = field(repr=False)
    entropy: Float[Tensor, "layer position"] = field(repr=False)
    rank: Int[Tensor, "layer position"] = field(repr=False)
    probability: Float[Tensor, "layer position"] = field(repr=False)
    kl: Float[Tensor, "layer position"] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[str]:
        """What stands at each position."""
        return self.reading.tokens

    def rows(self, position: int | None = None) -> list[dict[str, Any]]:
        """One row for each layer and position, or for each layer at one `position`; `top` is a list of tokens
        with their ids and probabilities, the likeliest first."""
        if position is None:
            return self._rows(range(len(self.chosen)))
        return self._rows([position_of(self.reading, position)])

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "glassformer.lens",
            "version": 1,
            "tokens": self.tokens,
            "ids": self.reading.ids,
            "chosen": list(self.chosen),
            "rows": self.rows(),
            "warnings": list(self.warnings),
        }

    def chart(self) -> charts.Spec:
        """Layers by positions (the last ones, of a long text) with the likeliest token in each cell; below it, the
        chosen token of the last position over the layers."""
        shown = range(len(self.chosen))[-_MOST_POSITIONS:]
        width = max(260, 64 * len(shown))
        cells = [
            {
                "position": row["position"] - shown.start,
                "stage": number // len(shown),
                "says": _short(row["top"][0]["token"]),
                "probability": row["top"][0]["probability"],
            }
            for number, row in enumerate(self._rows(shown))
        ]
        writes = not isinstance(self.reading.model, Encoder)
        grid = charts.heatmap(
            cells, "position", "stage", "probability", words="says",
            labels=[_short(self.tokens[at]) for at in shown], y_labels=[stage.name for stage in self.stages],
            title=f"What each layer would say {'next' if writes else 'stands here'}", x_title="token",
            y_title="layer", value_title="its probability", size=(width, max(80, 20 * len(self.stages))),
        )  # fmt: skip
        last = [{**row, "layer": _height(stage), "rank + 1": row["rank"] + 1}
                for stage, row in zip(self.stages, self.rows(-1), strict=True)]  # fmt: skip
        chosen = f"{visible(self.reading.words(self.chosen[-1:])[0])} at the last position"
        rank = charts.line(
            last, "layer", "rank + 1", log_y=True, title=f"Rank of {chosen}", size=(width, 140)
        )
        chance = charts.line(
            last, "layer", "probability", from_zero=True, title=f"Probability of {chosen}", size=(width, 140)
        )
        return charts.stacked(grid, rank, chance)

    def _rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        tokens, chosen = self.tokens, self.reading.words(self.chosen)
        return [
            {
                "layer": stage.layer,
                "stage": stage.name,
                "place": stage.place,
                "position": at,
                "token": tokens[at],
                "top": self._top(row, at),
                "entropy": self.entropy[row, at].item(),
                "chosen": chosen[at],
                "rank": int(self.rank[row, at]),
                "probability": self.probability[row, at].item(),
                "kl": self.kl[row, at].item(),
            }
            for row, stage in enumerate(self.stages)
            for at in positions
        ]

    def _top(self, row: int, at: int) -> list[dict[str, Any]]:
        ids = self.top_ids[row, at].tolist()
        pairs = zip(ids, self.reading.words(ids), self.top_probabilities[row, at].tolist(), strict=True)
        return [{"token": word, "id": number, "probability": chance} for number, word, chance in pairs]


@torch.no_grad()
def lens(
    model: Model,
    text: Text,
    *,
    target: Text | None = None,
    token: str | int | None = None,
    half: bool = False,
    top: int = 5,
) -> Lens:
    """Read every layer's stream as if it were the last: the embedding, then what leaves each block, and with
    `half` also what stands between attention and feed-forward. An encoder-decoder reads the text and writes
    `target`; the layers are its decoder's.

    `token` is one whose rank and probability are told at every layer; left out, it is at each position what the
    model says in the end. Raises UsageError for a `token` that is several, and says how it splits.
    """
    if top < 1:
        raise UsageError(f"top is {top}.", expected="At least 1.")
    reading = Reading.of(model, text, target=target)
    scores = scorer(reading, "a lens")
    asked = None if token is None else token_id(reading, token)
    through = stages(scores.config, half=half)
    trace = look(model, text, [*(stage.place for stage in through), "logits"], target=target)
    said = trace["logits"][0]
    chosen = said.argmax(-1) if asked is None else torch.full_like(said[:, 0], asked, dtype=torch.long)
    streams = [trace[stage.place][0] for stage in through]
    # All layers of a position, then of the next: many rows share one pass over the head's matrix.
    rows = torch.arange(len(said) * len(streams), device=said.device)
    columns: list[Tensor] = []
    for part in torch.split(rows, max(1, _CHUNK_LOGITS // said.shape[-1])):
        told = _seen(scores, streams, part, said, chosen, top)
        # Into memory taken once: kept as they are, they would lie between the logits and hold those pages too.
        columns = columns or [each.new_empty(len(rows), *each.shape[1:]) for each in told]
        for column, each in zip(columns, told, strict=True):
            column[part] = each
    top_ids, top_probabilities, entropy, rank, probability, kl = (
        torch.stack(torch.split(column, len(streams)), dim=1).cpu() for column in columns
    )
    return Lens(
        reading, tuple(through), tuple(chosen.tolist()), top_ids, top_probabilities, entropy, rank, probability,
        kl, trace.warnings,
    )  # fmt: skip


def readout(model: Transformer, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
    """The logits that the model's last norm and head make of a residual stream."""
    norm: Any = model.norm
    y = x if norm is None else norm(x)
    logits: Tensor = model.head(model.transformed(y) if isinstance(model, Encoder) else y)
    return logits


def stages(config: ModelConfig, *, half: bool = False) -> list[Stage]:
    """Where the stream of the stack that ends in the head can be read, in order."""
    stack = stacks(config)[-1]
    if not stack.layers:
        raise ModelError("The model has no blocks, so there is nothing between what it reads and says.")
    # The middle of a block is a stage of its own where something more comes after it.
    follows = [
        ("attn", "resid_mid", stack.cross or config.ff_width),
        ("cross", "resid_mid_cross", config.ff_width),
    ]
    middle = [
        (name, place)
        for name, place, more in follows[: 1 + stack.cross]
        if half and more and not config.parallel
    ]
    if half and not middle:
        why = (
            "attention and feed-forward read the same stream"
            if config.parallel
            else "a block is one attention"
        )
        raise UsageError(f"half has no effect: in this model {why}.", do="Leave it out.")
    found = [Stage(0, "0", f"{stack.name}.0.resid_pre")]
    for layer in range(stack.layers):
        found += [Stage(layer, f"{layer}+{name}", f"{stack.name}.{layer}.{place}") for name, place in middle]
        found.append(Stage(layer + 1, f"{layer + 1}", f"{stack.name}.{layer}.resid_post"))
    return found


def _seen(
    model: Transformer,
    streams: Sequence[Float[Tensor, "position width"]],
    rows: Int[Tensor, " row"],
    said: Float[Tensor, "position vocab"],
    chosen: Int[Tensor, " position"],
    top: int,
) -> tuple[Tensor, ...]:
    """What is told of some rows, counted through all layers of one position and then of the next; `said` are the
    model's own logits."""
    places, layers = rows // len(streams), rows % len(streams)
    x = torch.stack([streams[layer][at] for layer, at in zip(layers.tolist(), places.tolist(), strict=True)])
    logits, at, first = readout(model, x), chosen[places, None], int(places[0])
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p, p = logits.log_softmax(-1, dtype=wide), logits.softmax(-1, dtype=wide)
    final, log_final = (f(said[first : int(places[-1]) + 1], -1, dtype=wide)[places - first]
                        for f in (torch.softmax, torch.log_softmax))  # fmt: skip
    best = p.topk(min(top, logits.shape[-1]))
    return (
        best.indices,
        best.values,
        -torch.linalg.vecdot(p, log_p),
        (logits > logits.gather(-1, at)).sum(-1),
        p.gather(-1, at)[:, 0],
        torch.linalg.vecdot(final, log_final - log_p).clamp(min=0),  # rounding can pass below 0
    )


def _height(stage: Stage) -> float:
    """Where a stage stands on an axis of layers."""
    return stage.layer + {"": 0.0, "attn": 0.4, "cross": 0.7}[stage.name.partition("+")[2]]


def _short(word: str, most: int = 9) -> str:
    """A token as it fits into a cell."""
    word = visible(word)
    return word if len(word) <= most else word[: most - 1] + "…"
