"""One neuron as a bill: what it reads, term by term, what becomes of the sum, and what it writes.

    pre   = sum_j w_j x_j + b                          each term is one line, the largest first
    post  = f(pre), or gated f(pre) * (sum_j u_j x_j + c)
    write = post * (its column of W_down)              what it adds to the stream, or to the next layer's sums
    token t gains post * g_t,  g = W_head N(column)    directly, all layers between held as they are

x is what the feed-forward layer is given: the stream, normed where the model norms first. N is every norm on the way
from here to the head with the scale it has at this position, so that it is linear: (v [- mean v]) / scale * gain
(Elhage et al. 2021; for single neurons Geva et al. 2022). Products and sums are taken in float64; the remainder is
what the model's own arithmetic differs from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.asked import check_number, one_row
from glassformer.look.embedding import distinct
from glassformer.look.reading import Model, Reading, Text
from glassformer.look.trace import Recorder, look
from glassformer.look.visible import visible
from glassformer.model.feedforward import FeedForward
from glassformer.model.mlp import Network
from glassformer.model.norms import Norm
from glassformer.model.transformer import Transformer
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor, Rows

_BARS = 64
"""Positions that are drawn as bars with their tokens; more become a curve."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """sum_j w_j x_j + b, at one position."""

    name: str
    """Its place: `pre`, `pre_linear` or `scores`."""
    inputs: Float[Tensor, " input"] = field(repr=False)
    weights: Float[Tensor, " input"] = field(repr=False)
    bias: float | None
    seen: float
    """What the model has there."""

    @property
    def terms(self) -> Float[Tensor, " input"]:
        return self.inputs * self.weights

    @property
    def order(self) -> list[int]:
        """The inputs, the largest term first; equal ones in their order."""
        return [int(j) for j in self.terms.abs().argsort(descending=True, stable=True)]

    @property
    def remainder(self) -> float:
        """What the sum of the terms and the bias lacks of what the model has: rounding."""
        return self.seen - float(self.terms.sum()) - (self.bias or 0.0)

    def rows(self, names: Sequence[str], top: int) -> list[dict[str, Any]]:
        """The `top` largest terms, the others together, bias, remainder; `term` adds up to the last row's."""
        terms, first, rest = self.terms.tolist(), self.order[:top], self.order[top:]
        lines: list[dict[str, Any]] = [
            {
                "input": names[j],
                "x": float(self.inputs[j]),
                "weight": float(self.weights[j]),
                "term": terms[j],
            }
            for j in first
        ]
        if rest:
            lines.append({"input": f"other {len(rest)} terms", "term": sum(terms[j] for j in rest)})
        if self.bias is not None:
            lines.append({"input": "bias", "term": self.bias})
        lines += [
            {"input": "remainder", "term": self.remainder},
            {"input": f"= {self.name}", "term": self.seen},
        ]
        return [{"sum": self.name, **line} for line in lines]


@dataclass(frozen=True, slots=True)
class NeuronSheet:
    """One neuron at one position of a text (of a plain network: at one row)."""

    reading: Reading = field(repr=False)
    place: str
    """`blocks.3.mlp`, `layers.0`, `head`."""
    neuron: int
    position: int
    at: str
    """The token there, or the row."""
    names: tuple[str, ...] = field(repr=False)
    """Of the inputs."""
    sums: tuple[WeightedSum, ...]
    """What the activation is given; gated, then what its result is multiplied by."""
    activation: str
    activated: float
    """f(pre)."""
    post: float
    over: dict[str, Float[Tensor, " position"]] = field(repr=False)
    """The sums and `post` at every position."""
    labels: tuple[str, ...] = field(repr=False)
    """Of the positions."""
    column: Float[Tensor, " output"] = field(repr=False)
    """What it writes with each unit of `post`; empty in a plain network's last layer."""
    outputs: tuple[str, ...] = field(repr=False)
    """Names of what it writes to."""
    per_unit: Float[Tensor, " vocab"] | None = field(repr=False)
    """g: what each token's logit gains directly with each unit; None where no straight way leads to the head."""
    top: int

    def rows(self) -> list[dict[str, Any]]:
        """The bill: for each sum its largest terms, the others together, bias, remainder and sum."""
        return [row for one in self.sums for row in one.rows(self.names, self.top)]

    def position_rows(self) -> list[dict[str, Any]]:
        """The sums and the activation at every position."""
        values = {name: each.tolist() for name, each in self.over.items()}
        return [
            {"position": p, "token": label, **{name: each[p] for name, each in values.items()}}
            for p, label in enumerate(self.labels)
        ]

    def write_rows(self) -> list[dict[str, Any]]:
        """The largest of what it writes."""
        order = self.column.abs().argsort(descending=True, stable=True)[: self.top].tolist()
        return [
            {
                "to": self.outputs[k],
                "weight": float(self.column[k]),
                "adds": self.post * float(self.column[k]),
            }
            for k in order
        ]

    def token_rows(self, *, suppressed: bool = False) -> list[dict[str, Any]]:
        """The tokens that a positive activation promotes most (or suppresses): for each unit, and as it is here."""
        if self.per_unit is None:
            return []
        order = self.per_unit.argsort(descending=not suppressed, stable=True)[: self.top].tolist()
        return [
            {"token": word, "id": t, "per_unit": float(self.per_unit[t]), "logit": self.post * float(self.per_unit[t])}
            for t, word in zip(order, self.reading.words(order), strict=True)
        ]  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The sheet in a few lines."""
        sums = {one.name: one.seen for one in self.sums}
        return {
            "neuron": f"{self.place} {self.neuron}", "position": self.position, "at": self.at, **sums,
            self.activation: self.activated, "post": self.post,
            "written": abs(self.post) * float(self.column.norm()) if len(self.column) else None,
            "remainder": max((abs(one.remainder) for one in self.sums), default=0.0),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        whole = {one.name: one.rows(self.names, len(self.names)) for one in self.sums}
        return {
            **self.facts(), "terms": whole, "positions": self.position_rows(), "writes": self.write_rows(),
            "promotes": self.token_rows(), "suppresses": self.token_rows(suppressed=True),
        }  # fmt: skip

    @property
    def chart_names(self) -> tuple[str, ...]:
        """The charts there are."""
        return ("terms", "positions", *(("tokens",) if self.per_unit is not None else ()))

    def chart(self, of: str = "terms") -> charts.Spec:
        """terms: the lines of the bill; positions: the activation over the text; tokens: promoted and suppressed."""
        title = f"{self.place}, neuron {self.neuron}"
        if of == "terms":
            gated = len(self.sums) > 1
            rows = [row for row in self.rows() if row["input"] != "remainder"]
            return charts.bars(rows, "input", "term", series="sum" if gated else None, value_title="weight x input",
                               title=f"{title} at {visible(self.at)}: {self.sums[0].seen:.3g}")  # fmt: skip
        if of == "positions":
            rows = [
                {**row, "name": f"{p} {visible(self.labels[p])}"}
                for p, row in enumerate(self.position_rows())
            ]
            title = f"{title}: activation"
            if len(rows) > _BARS:
                return charts.line(rows, "position", "post", title=title, y_title="activation")
            both = [{**row, "value": row[of], "of": of} for row in rows for of in (self.sums[0].name, "post")]
            return charts.bars(both, "name", "value", series="of", title=title, value_title="")
        if of not in self.chart_names:
            raise UsageError(
                f"There is no chart {of!r}.", expected=f"It can be {', '.join(self.chart_names)}."
            )
        rows = [*self.token_rows(), *reversed(self.token_rows(suppressed=True))]
        names = distinct([row["token"] for row in rows], [row["id"] for row in rows])
        rows = [{**row, "name": name} for row, name in zip(rows, names, strict=True)]
        return charts.bars(
            rows, "name", "per_unit", title=f"{title}: tokens", value_title="logit for each unit"
        )


def neuron(
    model: Model,
    text: Text | Rows,
    layer: int,
    neuron: int,
    *,
    position: int = -1,
    target: Text | None = None,
    stack: str | None = None,
    top: int = 10,
) -> NeuronSheet:
    """The sheet of one neuron. `position` counts tokens (rows of a plain network) from 0, or from the end below 0. An
    encoder-decoder has neurons in two stacks, 'encoder' and 'decoder', of which the decoder's are taken when `stack`
    is left out. A plain network's layer after the hidden ones is its output.

    Raises UsageError for a layer, neuron or position that is not there.
    """
    reading = Reading.of(model, text, target=target)
    if top < 1:
        raise UsageError(f"top is {top}.", expected="1 or more.")
    with torch.no_grad():
        if isinstance(reading.model, Network):
            if stack is not None:
                raise UsageError("stack has no effect on a plain network.", do="Leave it out.")
            columns = model.columns if isinstance(model, Predictor) else None
            ends = (columns.input_names, columns.outputs) if columns else None
            return _of_network(reading, reading.model, layer, neuron, position, top, ends)
        return _of_block(reading, reading.model, layer, neuron, position, top, stack)


def _of_block(
    reading: Reading, model: Transformer, layer: int, neuron: int, position: int, top: int, stack: str | None
) -> NeuronSheet:
    config, known = model.config, [one.name for one in model.stacks]
    if stack is not None and (stack not in known or len(known) == 1):
        raise UsageError(
            f"This model has no stack {stack!r} to choose.", expected=f"It has {', '.join(known)}."
        )
    name = stack or known[-1]
    check_number("layer", layer, len(getattr(model, name)))
    if not config.ff_width:
        raise UsageError("This model's blocks are attention alone (feedforward 0): there is no neuron.")
    check_number("neuron", neuron, config.ff_width)
    labels = reading.source_tokens if name == "encoder" else reading.tokens
    one_row(reading, "the sheet")
    at = _at(position, len(labels), "position")
    place = f"{name}.{layer}"
    mlp = model.get_submodule(f"{place}.mlp")
    assert isinstance(mlp, FeedForward)
    crossed = config.kind == "encoder-decoder" and name == "decoder"
    given = "ln2.normalized" if config.norm_place == "pre" else "resid_mid_cross" if crossed else "resid_mid"
    sums = ["pre", "pre_linear"] if config.gated else ["pre"]
    norms = list(_norms_to_head(model, name, layer))
    wanted = [f"{place}.{given}", f"{place}.mlp.post", *(f"{place}.mlp.{one}" for one in sums)]
    recorder = Recorder(reading.places(), [*wanted, *(scale for scale, _ in norms)])
    reading.run(recorder)
    seen = {each: tensor[0].double() for each, tensor in recorder.seen.items()}
    x = seen[f"{place}.{given}"][at]
    over = {one: seen[f"{place}.mlp.{one}"][:, neuron] for one in [*sums, "post"]}
    column = mlp.down.weight[:, neuron].double()
    found = [
        _sum(one, x, mlp.up, neuron + number * config.ff_width, over[one][at])
        for number, one in enumerate(sums)
    ]
    per_unit = None
    if config.head == "tokens" and not config.head_transform and name == known[-1]:
        v = column
        for scale, norm in norms:
            v = (v - v.mean() if norm.centred else v) / seen[scale][at] * norm.weight.double()
        size = config.vocab_size if reading.tokenizer is None else reading.tokenizer.vocab_size
        per_unit = model.head.weight[:size].double() @ v
    activated = mlp.activation(over["pre"][at])
    entries = tuple(f"entry {k}" for k in range(config.width))
    return NeuronSheet(
        reading, f"{place}.mlp", neuron, at, labels[at], entries, tuple(found), config.activation,
        float(activated), float(over["post"][at]), over, tuple(labels), column, entries, per_unit, top,
    )  # fmt: skip


def _norms_to_head(model: Transformer, stack: str, layer: int) -> Iterator[tuple[str, Norm]]:
    """Every norm that what this layer's feed-forward adds passes on its straight way to the head."""
    if model.config.norm_place == "pre":
        last = "ln_final" if stack == "blocks" else f"{stack}.ln_final"
        norm: Norm = model.encoder_norm if stack == "encoder" else model.norm  # type: ignore[assignment] # add_module
        yield f"{last}.scale", norm
        return
    for later, block in enumerate(getattr(model, stack)):
        if later > layer:
            yield f"{stack}.{later}.ln1.scale", block.norm1
            if block.norm_cross is not None:
                yield f"{stack}.{later}.ln_cross.scale", block.norm_cross
        if later >= layer:
            yield f"{stack}.{later}.ln2.scale", block.norm2


def _of_network(
    reading: Reading,
    network: Network,
    layer: int,
    neuron: int,
    position: int,
    top: int,
    ends: tuple[Sequence[str], Sequence[str]] | None,
) -> NeuronSheet:
    config = network.config
    check_number("layer", layer, config.layers + 1)
    sizes, last = config.widths, layer == config.layers
    check_number("neuron", neuron, sizes[layer + 1])
    num_rows = len(reading.inputs[0])
    at = _at(position, num_rows, "row")
    place = "head" if last else f"layers.{layer}"
    given = f"layers.{layer - 1}.post" if layer else "inputs"
    pre = "scores" if last else f"{place}.pre"
    post = ("scores" if config.head == "number" else "probabilities") if last else f"{place}.post"
    recorder = Recorder(reading.places(), [given, pre, post])
    reading.run(recorder)
    seen = {each: tensor.double() for each, tensor in recorder.seen.items()}
    linear = network.head if last else network.layers[layer]
    assert isinstance(linear, nn.Linear)
    after = None if last else [*network.layers, network.head][layer + 1]
    over = {"scores" if last else "pre": seen[pre][:, neuron], "post": seen[post][:, neuron]}
    found = _sum("scores" if last else "pre", seen[given][at], linear, neuron, seen[pre][at, neuron])
    ins, outs = ends or ([f"input {j}" for j in range(sizes[0])], [f"output {k}" for k in range(sizes[-1])])
    to = outs if layer + 2 >= len(sizes) - 1 else [f"neuron {k}" for k in range(sizes[layer + 2])]
    activation = {"number": "none", "distribution": "softmax", "scores": "sigmoid"}[config.head] if last else (
        config.activation
    )  # fmt: skip
    names = [f"neuron {j}" for j in range(sizes[layer])] if layer else ins
    return NeuronSheet(
        reading, place, neuron, at, f"row {at}", tuple(names), (found,), activation,
        float(seen[post][at, neuron]), float(seen[post][at, neuron]), over,
        tuple(f"row {row}" for row in range(num_rows)),
        linear.weight.new_zeros(0) if after is None else after.weight[:, neuron].double(),
        () if after is None else tuple(to), None, top,
    )  # fmt: skip


def _sum(
    name: str, x: Float[Tensor, " input"], layer: nn.Linear, row: int, seen: Float[Tensor, ""]
) -> WeightedSum:
    bias = None if layer.bias is None else float(layer.bias[row])
    return WeightedSum(name, x.cpu(), layer.weight[row].double().cpu(), bias, float(seen))


def _at(position: int, count: int, what: str) -> int:
    if not -count <= position < count:
        raise UsageError(f"There is no {what} {position}.", expected=f"0 to {count - 1}, or -1 for the last.")
    return position % count


def loudest(model: Loaded | Transformer, text: Text, *, target: Text | None = None) -> tuple[int, int]:
    """(layer, neuron) of the one that writes the longest vector at the last position: |post| times the length of
    its column of W_down; of an encoder-decoder among the decoder's."""
    module = model.model if isinstance(model, Loaded) else model
    stack = module.stacks[-1].name
    trace = look(model, text, f"{stack}.*.mlp.post", target=target)
    written = torch.stack(
        [
            trace[place][0, -1].abs() * block.mlp.down.weight.detach().norm(dim=0)
            for place, block in zip(trace, getattr(module, stack), strict=True)
        ]
    )
    layer, number = divmod(int(written.argmax()), written.shape[1])
    return layer, number
