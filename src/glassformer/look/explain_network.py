"""Steps of a plain network for one row: weighted sum + bias -> activation -> scores -> probabilities -> loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.arithmetic import (
    FORMULAS,
    Line,
    Piece,
    Vector,
    activated,
    plain_sum,
    softmax_lines,
    sum_of_products,
)
from glassformer.look.asked import check_number, class_number
from glassformer.look.explain_answer import best_but
from glassformer.look.explain_flows import chosen_weight
from glassformer.look.explain_gradient import SECTION as WAY_BACK
from glassformer.look.explain_gradient import Gradient, differentiate, way_back
from glassformer.look.explain_seen import Step, quoted, weight_at
from glassformer.look.reading import Reading
from glassformer.look.source import Source, line_of
from glassformer.look.trace import Recorder
from glassformer.model.mlp import Network
from glassformer.text.columns import Columns

_ANSWER = "The answer"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a network's pass."""

    reading: Reading
    tensors: dict[str, Tensor] = field(repr=False)
    columns: Columns | None
    layer: int
    neuron: int | None
    """Which neuron of `layer` is shown; left out, the one that writes most, as in the other layers."""
    target: Tensor | None
    """A class number, or one number for each output."""

    @property
    def model(self) -> Network:
        assert isinstance(self.reading.model, Network)
        return self.reading.model

    def __call__(self, place: str) -> Float[Tensor, " entry"]:
        return self.tensors[place][0].detach().cpu()

    def shown(self, layer: int) -> int:
        """The neuron of a layer."""
        if layer == self.layer and self.neuron is not None:
            return self.neuron
        model = self.model
        after = model.head if layer + 1 == len(model.layers) else model.layers[layer + 1]
        assert isinstance(after.weight, Tensor)
        return int((self(f"layers.{layer}.post").abs() * after.weight.detach().cpu().norm(dim=0)).argmax())

    def input_name(self, number: int) -> str:
        return f"input {number}" if self.columns is None else self.columns.input_names[number]

    def output_name(self, number: int) -> str:
        return f"output {number}" if self.columns is None else quoted(str(self.columns.outputs[number]))


def network_steps(row: Row, weight: str | None, rate: float) -> Iterator[Step]:
    """Every step for one row, with a target to the update."""
    inputs = row("inputs")
    yield Step(
        "The row", "The row becomes numbers",
        "The network reads numbers: each column less its mean, divided by its spread, words as 0 and 1.",
        "x = (column - mean) / scale" if row.columns else "x = the row",
        (Vector.of("x", inputs),), (_scores('see("inputs"'),), "inputs",
    )  # fmt: skip
    for layer in range(len(row.model.layers)):
        yield from _layer(row, layer)
    yield from _answer(row)
    if row.target is None:
        return
    loss = loss_of(row)
    yield _wrong(row)
    name, index = chosen_weight(row.reading, weight or _default_weight(row))
    yield _first_error(row, differentiate(row.reading, name, index, loss, ["scores"]))
    yield from way_back(row.reading, name, index, loss, rate, lambda source: ["the row"])


def _layer(row: Row, layer: int) -> Iterator[Step]:
    module, n = row.model.layers[layer], row.shown(layer)
    assert isinstance(module.weight, Tensor) and isinstance(module.bias, Tensor)
    section = f"Layer {layer}, neuron {n}"
    given = row(f"layers.{layer - 1}.post") if layer else row("inputs")
    pre, post = row(f"layers.{layer}.pre"), row(f"layers.{layer}.post")
    names: Callable[[int], str] = (lambda i: f"neuron {i}") if layer else row.input_name
    yield Step(
        section,
        "A neuron weighs what it reads",
        f"The layer has {len(pre):,} neurons. Each multiplies what it is given by weights of its own, sums, and adds "
        "its bias.",
        "pre = W x + b",
        (
            sum_of_products(
                f"pre[{n}]", module.weight.detach()[n], given, float(pre[n]), plus=weight_at(module.bias, n),
                names=names,
            ),
        ),
        (_scores(".pre"),),
        f"layers.{layer}.pre",
    )  # fmt: skip
    name = row.model.config.activation
    yield Step(
        section,
        "The neuron fires, or does not",
        "A curve is put on the sum. Without it, all layers together would be one matrix.",
        f"post = {name}(pre),  {name}(x) = {FORMULAS[name]}",
        (Line(f"post[{n}]", activated(name, float(pre[n])), float(post[n])), Vector.of("post", post)),
        (_scores(".post"),),
        f"layers.{layer}.post",
    )


def _answer(row: Row) -> Iterator[Step]:
    model, scores, count = row.model, row("scores"), len(row.model.layers)
    given = row(f"layers.{count - 1}.post") if count else row("inputs")
    head = model.config.head
    names: Callable[[int], str] = (lambda i: f"neuron {i}") if count else row.input_name
    yield Step(
        _ANSWER,
        "Every output gets a score",
        "One more weighted sum for each output.",
        "scores = W x + b",
        tuple(
            sum_of_products(
                f"score of {row.output_name(i)}", model.head.weight.detach()[i], given, float(scores[i]),
                plus=weight_at(model.head.bias, i), names=names,
            )
            for i in _outputs(row)
        ),
        (_scores('see("scores"'),),
        "scores",
    )  # fmt: skip
    if head == "distribution":
        also = [] if row.target is None else [int(row.target)]
        yield Step(
            _ANSWER, "Scores become probabilities",
            "Exponential function, divided by the sum S over all outputs: positive, and 1 in all (softmax).",
            "p = e^(score - largest) / S,  S = Σ e^(score - largest)",
            tuple(softmax_lines(lambda i: f"p of {row.output_name(i)}", scores, row("probabilities"), also=also)),
            (line_of("model/mlp.py", "Network.forward", "scores.softmax(-1)"),), "probabilities",
        )  # fmt: skip
    elif head == "scores":
        chances = row("probabilities")
        yield Step(
            _ANSWER, "Scores become probabilities", "Each output is a yes or no by itself; the sigmoid says how sure.",
            "p = 1 / (1 + e^(-score))",
            tuple(Line(f"p of {row.output_name(i)}", activated("sigmoid", float(scores[i])), float(chances[i]))
                  for i in _outputs(row)),
            (line_of("model/mlp.py", "Network.forward", "scores.softmax(-1)"),), "probabilities",
        )  # fmt: skip
    elif row.columns is not None:
        mean, scale = row.columns.target_mean, row.columns.target_scale
        yield Step(
            _ANSWER, "Scores become the target's own unit",
            "The network learned targets less their mean, divided by their spread; that is undone.",
            "prediction = score × scale + mean",
            tuple(
                Line(row.output_name(i), (float(scores[i]), " × ", scale[i], " + ", mean[i]),
                     float(scores[i]) * scale[i] + mean[i])
                for i in _outputs(row)
            ),
            (line_of("text/columns.py", "Columns.numbers", "self.target_scale"),),
        )  # fmt: skip


def _outputs(row: Row) -> list[int]:
    """Which outputs are shown: of a distribution the right and the best other one, else the first three."""
    scores = row("scores")
    if row.model.config.head != "distribution":
        return list(range(min(3, len(scores))))
    answer = None if row.target is None else int(row.target)
    return list(dict.fromkeys(([] if answer is None else [answer]) + [best_but(scores, answer)]))


def loss_of(row: Row) -> Callable[[Tensor], Tensor]:
    """From the network's prediction to the loss of the row, as `Network.loss` has it."""
    head, target = row.model.config.head, row.target
    assert target is not None

    def loss(given: Tensor) -> Tensor:
        if head == "distribution":
            return -given[0, int(target)].log()
        if head == "number":
            return F.mse_loss(given[0], target.to(given))
        return F.binary_cross_entropy(given[0], target.to(given))

    return loss


def _wrong(row: Row) -> Step:
    head, target = row.model.config.head, row.target
    assert target is not None
    if head == "distribution":
        p = float(row("probabilities")[int(target)])
        formula, lines = "loss = -ln(p of the right answer)", [Line("loss", ("-ln(", p, ")"), -math.log(p))]
    elif head == "number":
        scores = row("scores").double()
        wanted = target.double()
        squares = (scores - wanted).square()
        formula = "loss = mean over outputs of (score - target)²"
        lines = [
            Line(f"error of {row.output_name(i)}", ("(", float(scores[i]), " - ", float(wanted[i]), ")²"),
                 float(squares[i]))
            for i in _outputs(row)
        ]  # fmt: skip
        total = plain_sum("loss", squares, float(squares.mean()))
        lines.append(Line("loss", ("(", *total.right, ") / ", len(squares)), total.value))
    else:
        chances = row("probabilities").double()
        right = torch.where(target > 0.5, chances, 1 - chances)
        formula = "loss = mean over outputs of -ln(p of the right one of yes and no)"
        nats = -right.log()
        lines = [
            Line(f"nats of {row.output_name(i)}", ("-ln(", float(right[i]), ")"), float(nats[i]))
            for i in _outputs(row)
        ]
        total = plain_sum("loss", nats, float(nats.mean()))
        lines.append(Line("loss", ("(", *total.right, ") / ", len(nats)), total.value))
    code = {
        "distribution": "return cross_entropy(",
        "number": "F.mse_loss(",
        "scores": "F.binary_cross_entropy",
    }
    return Step(
        _ANSWER, "How wrong was it?", "0 would be a perfect answer.", formula, tuple(lines),
        (line_of("model/mlp.py", "Network.loss", code[head]),),
    )  # fmt: skip


def _first_error(row: Row, gradient: Gradient) -> Step:
    head, target, errors = row.model.config.head, row.target, gradient.arriving["scores"][0]
    assert target is not None
    count, lines = len(errors), []
    for i in _outputs(row):
        right: tuple[Piece, ...]
        if head == "distribution":
            right = (float(row("probabilities")[i]), " - ", int(i == int(target)))
        elif head == "number":
            right = ("2 × (", float(row("scores")[i]), " - ", float(target[i]), ") / ", count)
        else:
            right = ("(", float(row("probabilities")[i]), " - ", float(target[i]), ") / ", count)
        lines.append(Line(f"error at {row.output_name(i)}", right, float(errors[i])))
    formula = {
        "distribution": "d loss / d score = p - 1 for the right answer, p for all others",
        "number": "d loss / d score = 2 × (score - target) / outputs",
        "scores": "d loss / d score = (p - target) / outputs",
    }[head]
    return Step(
        WAY_BACK, "The error at the scores", "How fast the loss changes with each score: where every error begins.",
        formula, tuple(lines), (line_of("train/step.py", "update", "part.backward()"),), "scores",
    )  # fmt: skip


def _default_weight(row: Row) -> str:
    """From the shown neuron of the shown layer to the right answer; a linear model's largest."""
    model = row.model
    assert row.target is not None
    output = int(row.target) if model.config.head == "distribution" else 0
    if not model.layers:
        read = (row("inputs") * model.head.weight.detach().cpu()[output]).abs()
        return f"head.weight[{output}, {int(read.argmax())}]"
    last = len(model.layers) - 1
    if row.layer == last:
        return f"head.weight[{output}, {row.shown(last)}]"
    return f"layers.{row.layer + 1}.weight[{row.shown(row.layer + 1)}, {row.shown(row.layer)}]"


def network_row(reading: Reading, columns: Columns | None, position: int, layer: int, neuron: int | None,
                target: Any) -> Row:  # fmt: skip
    """The pass over one row, once all choices fit."""
    model = reading.model
    assert isinstance(model, Network)
    count, sizes = len(reading.inputs[0]), model.config.hidden
    if not -count <= position < count:
        raise UsageError(f"There is no row {position}.", expected=f"There are {count}, from 0.")
    if sizes:
        check_number("hidden layer", layer, len(sizes))
    if neuron is not None:
        check_number("neuron", neuron, sizes[layer] if sizes else 0)
    one = Reading(model, (reading.inputs[0][position % count][None],), None)
    recorder = Recorder(one.places(), "*")
    with torch.no_grad():
        one.run(recorder)
    return Row(one, recorder.seen, columns, layer, neuron, _target(model, columns, target))


def _target(model: Network, columns: Columns | None, target: Any) -> Tensor | None:
    if target is None:
        return None
    outputs = model.config.widths[-1]
    if model.config.head == "distribution":
        names = [str(name) for name in columns.outputs] if columns else [str(i) for i in range(outputs)]
        return torch.tensor(class_number(str(target), names))
    numbers = torch.as_tensor(
        [
            float(x)
            for x in (target.split(",") if isinstance(target, str) else torch.as_tensor(target).reshape(-1))
        ]
    )
    if len(numbers) != outputs:
        raise UsageError(
            f"The target has {len(numbers)} numbers.", expected=f"The network has {outputs} outputs."
        )
    if columns is not None and model.config.head == "number":
        numbers = (numbers - torch.tensor(columns.target_mean)) / torch.tensor(columns.target_scale)
    return numbers.double()


def _scores(fragment: str) -> Source:
    return line_of("model/mlp.py", "Network.scores", fragment)
