"""The backward pass, seen: whose fault the loss is.

    found = blame(loaded, "the cat sat")
    found.rows()                                  the loss of every token; they sum to found.total
    found.places["blocks.3.resid_pre"]            dL/dy: how L changes with each number there
    found.weights["blocks.3.mlp.up.weight"]       dL/dW of every weight
    found.by("heads")                             ranked: see look/ranking.py for the formulas

L is the mean loss in nats of the tokens that count (look/per_token.py), the one that training makes smaller. The
chain rule hands it back from the last place to the first (Rumelhart, Hinton and Williams 1986); torch does the
arithmetic, and `check=True` holds it against finite differences (look/differences.py).

The gradients of all weights take as much memory as the model. The model is not changed: copies of its weights that
share its memory ask for gradients, its own do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glassformer import charts
from glassformer.errors import ModelError, UsageError
from glassformer.look import ranking
from glassformer.look.differences import Differences, compare_with_differences
from glassformer.look.per_token import PerToken, Target
from glassformer.look.ranking import Ranking, Row
from glassformer.look.reading import Model, Reading, Text
from glassformer.look.trace import Graph, Places, matching
from glassformer.look.visible import visible
from glassformer.model.places import NOTHING_FOLLOWS
from glassformer.run.manifest import free_memory_bytes
from glassformer.units import show_bytes
from glassformer.use.predict import Predictor, Rows

LIGHT = re.compile(
    r"(embed|resid_pre|resid_post|attn\.z|attn_out|mlp\.post|mlp_out)$|^(inputs|layers\.\d+\.post|scores)$"
)
"""What is seen when no places are named; nothing of size (query, key), so that the fast path runs."""


@dataclass(frozen=True, slots=True, repr=False)
class Blame:
    """The losses of one text and what they say about every place and weight."""

    per_token: PerToken
    losses: Tensor
    """(item) in nats."""
    places: Mapping[str, Tensor]
    """Place -> the gradient of `loss` by what it holds, of the same shape."""
    values: Mapping[str, Tensor] = field(repr=False)
    """Place -> what it holds."""
    weights: Mapping[str, Tensor] = field(repr=False)
    """Name -> the gradient of `loss` by the weight."""
    learning_rate: float
    inputs: tuple[str, ...] = ()
    """The names of a plain network's inputs."""
    check: Differences | None = None
    warnings: tuple[str, ...] = ()
    """What is wrong with the numbers, such as the place where they stop being finite."""

    @property
    def reading(self) -> Reading:
        return self.per_token.reading

    @property
    def loss(self) -> float:
        """The mean of the losses: what the gradients are of."""
        return float(self.losses.double().mean())

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.losses.double().sum())

    @property
    def falls_by(self) -> float:
        """To first order, what one step of plain gradient descent lowers the loss by: r |g|^2 over all weights."""
        return math.fsum(row["falls_by"] for row in self.by("weights"))

    def rows(self) -> list[Row]:
        """One row for each token whose loss counts: where it stands, what it is, its loss in nats. Of a classifier one
        for the text, of a plain network one for each row."""
        what, per = self.per_token.what, self.per_token
        several = what == "token" and len(self.reading.inputs[-1]) > 1
        found = []
        for row, at, label, loss in zip(
            per.rows.tolist(), per.positions.tolist(), per.labels, self.losses.tolist(), strict=True
        ):
            place = {"row": row} if several or what == "row" else {}
            named = {"position": at, "token": label} if what == "token" else {"class": label}
            found.append({**place, **({} if what == "row" else named), "loss": loss})
        return found

    def by(self, ranking_: Ranking, top: int | None = None) -> list[Row]:
        """A ranking: `weights`, `heads`, `neurons`, `tokens` or `places`; at most `top` rows. Heads need the places
        `attn.z`, neurons `mlp.post`, tokens `embed`; without them there are no rows."""
        ranking.check_ranking(ranking_)
        given = (self.places, self.values)
        match ranking_:
            case "weights":
                own = dict(self.reading.model.named_parameters())
                return ranking.rank_weights(self.weights, own, self.learning_rate)[:top]
            case "heads":
                return ranking.rank_heads(*given, top)
            case "neurons":
                return ranking.rank_neurons(*given, top)
            case "tokens":
                return ranking.rank_tokens(*given, self._labels)[:top]
            case _:
                return ranking.rank_places(*given)[:top]

    def to_dict(self, *, by: Sequence[Ranking] = ranking.RANKINGS, top: int | None = 10) -> dict[str, Any]:
        """The losses, the first rows of each ranking, the check; not the gradients themselves."""
        return {
            "loss": self.loss,
            "total": self.total,
            "learning_rate": self.learning_rate,
            "falls_by": self.falls_by,
            "losses": self.rows(),
            **{name: rows for name in by if (rows := self.by(name, top))},
            **({"check": self.check.to_dict()} if self.check else {}),
            "warnings": list(self.warnings),
        }

    def chart(self, by: Ranking | None = None, top: int = 30) -> charts.Spec:
        """The loss of each token as bars; by `weights` a heat map of layers and their parts, by `heads` one of
        layers and heads, by `neurons`, `tokens` and `places` bars of the first rows."""
        if by is None:
            rows = [{**row, "name": _bar(row)} for row in self.rows()]
            title = f"Loss of each {self.per_token.what}: {self.loss:.3f} nats on average"
            return charts.bars(rows, "name", "loss", title=title, value_title="loss (nats)")
        parts = by == "weights"
        rows = ranking.blame_of_parts(self.weights) if parts else self.by(by, None if by == "heads" else top)
        if not rows:
            raise UsageError(
                f"There is no blame by {by}.", do="Leave places out, or name those it comes from."
            )
        if by in ("weights", "heads"):
            return _parts_chart(rows) if parts else _heads_chart(rows)
        value = "gradient" if by == "places" else "if_zero"
        titles = {
            "gradient": "|gradient|",
            "if_zero": "change of the loss were it zero, to first order (nats)",
        }
        named = [{**row, "name": _bar(row)} for row in rows]
        if by == "tokens":  # as they stand in the text
            named.sort(key=lambda row: (row.get("side", ""), row.get("position", 0)))
        return charts.bars(named, "name", value, title=f"Blame by {by}", value_title=titles[value])

    def _labels(self, place: str) -> Sequence[str]:
        if place == "inputs":
            return self.inputs or [str(at) for at in range(self.places[place].shape[1])]
        return self.reading.source_tokens if place == "encoder.embed" else self.reading.tokens

    def __repr__(self) -> str:
        return (
            f"Blame({self.loss:.4f} nats a {self.per_token.what}, {len(self.places)} places, "
            f"{len(self.weights)} weight tensors{', ' + self.check.verdict if self.check else ''})"
        )


def blame(
    model: Model,
    text: Text | Rows,
    places: Places | None = None,
    *,
    target: Target | None = None,
    tokens: Sequence[int] | None = None,
    learning_rate: float = 1e-3,
    check: bool = False,
    samples: int = 200,
    seed: int = 0,
) -> Blame:
    """Read the text once, take the loss of each token, and hand the mean back to every weight and to the `places` (left
    out: vectors, what each head and neuron does, what each layer adds).

    `target` is what an encoder-decoder is to write, the class of a classifier, the right tokens of an encoder, or
    what is right for each row of a plain network. `tokens` are the positions whose losses count; the others are only
    read. `learning_rate` scales `falls_by` alone. `check` tests at least `samples` weights, some of every tensor,
    against finite differences, on a copy of the model in float64 (6 to 12 passes a weight); `seed` draws them.

    Raises UsageError for a place that the model lacks and for a target that does not fit, ModelError for a text that
    does not fit or gradients that take more memory than is free.
    """
    per_token = PerToken.of(model, text, target=target, tokens=tokens)
    reading = per_token.reading
    known = [name for name in reading.places() if not name.endswith(NOTHING_FOLLOWS)]
    light = [name for name in known if LIGHT.search(name)]
    _check_memory(reading, check)
    losses, seen, gradients, weights = _backward(per_token, matching(known, places) if places else light)
    return Blame(
        per_token,
        losses,
        gradients,
        seen,
        weights,
        learning_rate,
        tuple(model.columns.input_names) if isinstance(model, Predictor) else (),
        check_gradients(per_token, samples=samples, seed=seed) if check else None,
        _warnings(reading, losses, seen, gradients, weights),
    )


def check_gradients(per_token: PerToken, *, samples: int = 200, seed: int = 0) -> Differences:
    """The gradients of all weights against finite differences, both in float64."""
    wide = per_token.in_double()
    _, _, _, gradients = _backward(wide, [])
    return compare_with_differences(
        lambda weights: wide.run(weights=weights).mean(),
        wide.reading.weights(),
        gradients,
        samples=samples,
        seed=seed,
    )


def _backward(
    per_token: PerToken, places: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The losses, what the places hold, and the gradients of the mean loss by places and by weights."""
    weights = per_token.reading.weights(gradient=True)
    graph = Graph(per_token.reading.places(), places)
    with torch.enable_grad():
        losses = per_token.run(graph, weights=weights)
        wanted = [*graph.seen.values(), *weights.values()]
        found = torch.autograd.grad(losses.mean(), wanted, materialize_grads=True)
    seen = {name: value.detach() for name, value in graph.seen.items()}
    gradients = dict(zip([*seen, *weights], found, strict=True))
    return (
        losses.detach(),
        seen,
        {name: gradients[name] for name in seen},
        {name: gradients[name] for name in weights},
    )


def _check_memory(reading: Reading, check: bool) -> None:
    entries = sum(weight.numel() for weight in reading.model.parameters())
    own = next(reading.model.parameters()).element_size()
    needed, free = entries * (own + (3 * 8 if check else 0)), free_memory_bytes()
    if free is not None and needed > free:
        doubled = " with two copies in float64 for the check" if check else ""
        raise ModelError(
            f"The gradients of {entries:,} weights take {show_bytes(needed)}{doubled}; {show_bytes(free)} are free.",
            do="Leave the check out." if check else "Take a smaller model, or free some memory.",
        )


def _warnings(
    reading: Reading,
    losses: Tensor,
    seen: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> tuple[str, ...]:
    """Where numbers stop being finite, by name: forward from the first place, backward from the last."""
    found = []
    own = {name: weight.detach() for name, weight in reading.model.named_parameters()}
    values = {name: value for name, value in seen.items() if not name.endswith("attn.scores")}  # masked
    for what, tensors in (
        ("weights", own),
        ("values", values),
        ("losses", {"loss": losses}),
        ("gradients", dict(reversed(list(gradients.items())))),
        ("gradients", weights),
    ):
        bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if bad:
            first = tensors[bad[0]]
            count = int((~first.isfinite()).sum())
            more = f" So it is in {len(bad) - 1:,} more." if len(bad) > 1 else ""
            found.append(f"{bad[0]}: {count:,} of {first.numel():,} {what} are not finite.{more}")
    return tuple(found)


def _bar(row: Row) -> str:
    """A row's name in a chart, unlike any other's."""
    parts = [
        f"{name} {row[name]}"
        for name in ("stack", "attention", "layer", "head", "neuron", "row")
        if name in row
    ]
    parts += [str(row[name]) for name in ("side", "position") if name in row]
    parts += [visible(row["token"])] if "token" in row else []
    parts += [str(row[name]) for name in ("class", "input", "place") if name in row]
    return "  ".join(parts)


def _parts_chart(rows: list[Row]) -> charts.Spec:
    layers = list(dict.fromkeys((row["stack"], row["layer"]) for row in rows))
    parts = list(dict.fromkeys(row["part"] for row in rows))
    cells = [
        {
            "part": parts.index(row["part"]),
            "layer": layers.index((row["stack"], row["layer"])),
            "gradient": row["gradient"],
            "words": f"{row['gradient']:.2g}",
        }
        for row in rows
    ]
    names = [f"{stack} {layer}" for stack, layer in layers]
    return charts.heatmap(
        cells, "part", "layer", "gradient", labels=parts, y_labels=names, words="words",
        title="Blame by layer: |gradient| of its weights", value_title="|gradient|",
        size=(110 * len(parts), 26 * len(layers)),
    )  # fmt: skip


def _heads_chart(rows: list[Row]) -> charts.Spec:
    def kind(row: Row) -> tuple[str, str, int]:
        return row.get("stack", "blocks"), row.get("attention", ""), row["layer"]

    layers = sorted({kind(row) for row in rows}, key=lambda one: (one[0] != "encoder", one[2], one[1]))
    cells = [
        {"head": row["head"], "layer": layers.index(kind(row)), "if_zero": row["if_zero"],
         "words": f"{row['if_zero']:.2g}"}
        for row in rows
    ]  # fmt: skip
    names = [" ".join(str(part) for part in one if part != "") for one in layers]
    return charts.heatmap(
        cells, "head", "layer", "if_zero", y_labels=names, diverging=True, words="words",
        title="Blame by head: change of the loss were it silent", value_title="nats",
        size=(56 * (1 + max(row["head"] for row in rows)), 26 * len(layers)),
    )  # fmt: skip
