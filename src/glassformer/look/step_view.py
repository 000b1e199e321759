"""What one optimiser step changes: weight by weight, and what that does to the loss of every token.

    view = step_view(loaded, "the cat sat on the mat", torch.optim.AdamW(loaded.model.parameters(), lr=1e-4))
    view.rows()            for some weights: before, gradient, the optimiser's state, update by formula, after
    view.tensors           for every tensor: how long its gradient and its step are, what it does to the loss
    view.targets           for every token: its loss before and after; some tokens get worse

    predicted change of the loss  =  sum over all weights of  gradient x change        first order (Taylor)

The step is taken on a copy, dropout off; model and optimiser stay as they are to the bit, unless `apply` is asked for.
The copy is in float64, so that a change of 1e-9 in a weight of 1 is not lost in rounding; with `apply` it has the
model's own precision, so that what is shown is what was done.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.look.reading import Model, Text
from glassformer.look.step_batch import Batch, Lessons, lessons
from glassformer.look.step_formulas import NAMES, ByHand, by_hand, formula
from glassformer.look.step_weights import Entry, chosen
from glassformer.look.visible import visible
from glassformer.model.mlp import Network
from glassformer.model.transformer import Transformer
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
Row = dict[str, Any]
_RATE = 1e-3
_SAMPLES = 10


def step_view(
    model: Model,
    batch: Batch,
    optimizer: Optimizers | None = None,
    *,
    target: Text | None = None,
    rate: float | None = None,
    weights: str | Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    apply: bool = False,
    double: bool | None = None,
) -> StepView:
    """Take one step on a copy and show it.

    Args:
        model: What `gf.load` or `gf.load_network` gave, or a bare model.
        batch: A text or several, ids; of a plain network (rows, targets); or what `model.loss` takes, by name.
        optimizer: Over the model's weights, or several that share them; none is plain SGD with `rate` (1e-3).
        target: What an encoder-decoder is to write.
        weights: `name[i, j]` for one weight, `name` or a pattern of names to draw from; left out, from all.
        samples: How many to draw (10), from as many tensors as there are.
        seed: Of the draw.
        apply: Take the step on the given model and optimiser too.
        double: In float64; left out, yes, unless applied.
    """
    module = _module(model)
    if double and apply:
        raise UsageError("A step that is applied is in the model's own precision.", do="Leave out `double`.")
    given = _optimizers(module, optimizer, rate)
    learned = lessons(model, batch, target=target)
    working, optimizers = copy.deepcopy((module, given))
    working.eval()
    if double or (double is None and not apply):
        _in_double(working, optimizers)
        learned = _double(learned)
    _ask_for_gradients(working)

    loss = working.loss(**learned.arrays)
    loss.backward()  # type: ignore[no-untyped-call]
    named, old = dict(working.named_parameters()), dict(module.named_parameters())
    of_weight = {id(w): (o, g) for o in optimizers for g in o.param_groups for w in g["params"]}
    moving = {n: w for n, w in named.items() if w.grad is not None and id(w) in of_weight}
    entries = chosen(moving, weights, _SAMPLES if samples is None else samples, seed)
    if samples is not None and not any(entry.drawn for entry in entries):
        raise UsageError("`samples` has no effect where every weight is named.", do="Leave it out.")
    with torch.no_grad():
        before = learned.each_loss(working)
        expected = [
            _expected(entry, moving[entry.name], *of_weight[id(moving[entry.name])]) for entry in entries
        ]
        for each in optimizers:
            each.step()
        after = learned.each_loss(working)
        loss_after = working.loss(**learned.arrays)
        steps = [_taken(each, moving, of_weight) for each in expected]
        tensors = [_tensor_row(name, old[name], weight) for name, weight in moving.items()]
    if apply:
        with _gradients(dict(module.named_parameters()), {n: w.grad for n, w in moving.items()}):
            for each in given:
                each.step()
    return StepView(
        tuple(type(each).__name__ for each in optimizers), tuple(filter(None, map(formula, optimizers))),
        str(loss.dtype).removeprefix("torch."), loss.item(), loss_after.item(),
        tuple(steps), tensors, _target_rows(learned, before, after), apply,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightStep:
    """One weight through one step."""

    weight: str
    """`blocks.0.mlp.up.weight[3, 5]`"""
    before: float
    gradient: float
    state_before: dict[str, float]
    """What the optimiser remembered of it: m, v (or under the optimiser's own names) and step, where it counts."""
    state: dict[str, float]
    update: float | None
    """The change by the paper's formula, in float64; none where the formula is not written here."""
    state_by_hand: dict[str, float]
    after: float
    last_digit: float
    """One unit in the last place of the weight, in the precision of the step."""

    @property
    def change(self) -> float:
        """What really became of it."""
        return self.after - self.before

    @property
    def difference(self) -> float | None:
        """Between formula and change, as a part of the change, beyond what no optimiser can help: a weight holds
        so many digits, and a change is known to one unit in the last of them."""
        if self.update is None:
            return None
        off = max(0.0, abs(self.update - self.change) - self.last_digit)
        return off / abs(self.change) if self.change else off

    def row(self) -> Row:
        memory = {f"{name}_before": value for name, value in self.state_before.items()} | self.state
        return {
            "weight": self.weight, "before": self.before, "gradient": self.gradient, **memory,
            "update": self.update, "change": self.change, "after": self.after,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepView:
    """One step: some weights, every tensor, every target."""

    optimizers: tuple[str, ...]
    formulas: tuple[str, ...]
    """The update in the papers' symbols, with the terms that these optimisers' settings leave in it."""
    precision: str
    loss_before: float
    loss_after: float
    weights: tuple[WeightStep, ...]
    tensors: list[Row] = field(repr=False)
    """One row a tensor: name, lengths of weight, gradient and change, change as a part of the weight, and
    `predicted_change`, its share of what the first order says of the loss."""
    targets: list[Row] = field(repr=False)
    """One row a target: its text (of a network its row), loss before, after and the change."""
    applied: bool

    def rows(self) -> list[Row]:
        """One row for each weight shown."""
        return [step.row() for step in self.weights]

    @property
    def change(self) -> float:
        """Of the loss."""
        return self.loss_after - self.loss_before

    @property
    def predicted_change(self) -> float:
        """Of the loss, to first order: gradient x change, summed over all weights."""
        return float(sum(row["predicted_change"] for row in self.tensors))

    def check(self) -> float | None:
        """The largest difference between formula and real change, as a part of the change, over the weights shown;
        None where no formula is written here."""
        found = [step.difference for step in self.weights if step.difference is not None]
        return max(found) if found else None

    def summary(self) -> Row:
        """The step in a few numbers."""
        worse = sum(row["change"] > 0 for row in self.targets)
        return {
            "optimizer": ", ".join(self.optimizers),
            "formula": "; ".join(self.formulas) or None,
            "precision": self.precision,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "change": self.change,
            "predicted_change": self.predicted_change,
            "gradient_length": float(sum(row["gradient"] ** 2 for row in self.tensors)) ** 0.5,
            "targets": len(self.targets),
            "targets_worse": worse,
            "formula_off_by": self.check(),
        }

    def to_dict(self) -> Row:
        return {
            "schema": "glassformer.step",
            "version": 1,
            **self.summary(),
            "applied": self.applied,
            "weights": self.rows(),
            "tensors": self.tensors,
            "per_target": self.targets,
        }

    def chart(self) -> charts.Spec:
        """Each target's change of loss: to the left it got better."""
        rows = [
            {"target": f"{number}  {visible(str(row['target']))}", "change": row["change"],
             "became": "worse" if row["change"] > 0 else "better"}
            for number, row in enumerate(self.targets)
        ]  # fmt: skip
        title = (
            f"One step of {', '.join(self.optimizers)}: {self.loss_before:.4g} to {self.loss_after:.4g} nats"
        )
        spec = charts.bars(rows, "target", "change", title=title, value_title="change of the loss")
        scale = {"domain": ["better", "worse"], "range": [charts.PALETTE[0], charts.PALETTE[1]]}
        spec["data"]["values"] = rows
        spec["encoding"]["color"] = {"field": "became", "type": "nominal", "scale": scale,
                                     "legend": {"symbolType": "square"}}  # fmt: skip
        return spec


@dataclass(frozen=True, slots=True)
class _Expected:
    """A weight as it stood before the step, and what the formula says of it."""

    entry: Entry
    before: float
    gradient: float
    state: dict[str, float]
    by_hand: ByHand | None


def _expected(entry: Entry, w: Tensor, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> _Expected:
    assert w.grad is not None
    state = _state(entry, w, optimizer)
    before, gradient = w[entry.index].item(), w.grad[entry.index].item()
    wide = {name: torch.tensor([value], dtype=torch.float64) for name, value in state.items()}
    w_before, g = torch.tensor([[before], [gradient]], dtype=torch.float64)
    hand = by_hand(optimizer, group, w_before, g, wide, int(state.get("step", 0)))
    return _Expected(entry, before, gradient, state, hand)


def _taken(expected: _Expected, moving: Mapping[str, Tensor], of_weight: dict[int, Any]) -> WeightStep:
    entry, hand = expected.entry, expected.by_hand
    w = moving[entry.name]
    return WeightStep(
        entry.label, expected.before, expected.gradient, expected.state, _state(entry, w, of_weight[id(w)][0]),
        None if hand is None else hand.change.item(),
        {} if hand is None else {name: value.item() for name, value in hand.state.items()},
        (after := w[entry.index].item()), torch.finfo(w.dtype).eps * max(abs(expected.before), abs(after)),
    )  # fmt: skip


def _state(entry: Entry, w: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What the optimiser remembers of one weight: its entry in tensors of the weight's shape, and single numbers."""
    found = {}
    for name, value in optimizer.state.get(w, {}).items():
        if isinstance(value, Tensor) and value.shape == w.shape and w.ndim:
            found[NAMES.get(name, name)] = value[entry.index].item()
        elif isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            found[NAMES.get(name, name)] = float(value)
    return found


def _tensor_row(name: str, old: Tensor, weight: Tensor) -> Row:
    assert weight.grad is not None
    change = weight.double() - old.double()
    length, moved = old.double().norm().item(), change.norm().item()
    return {
        "tensor": name,
        "weight": length,
        "gradient": weight.grad.double().norm().item(),
        "change": moved,
        "relative_change": moved / length if length else None,
        "predicted_change": (weight.grad.double() * change).sum().item(),
    }


def _target_rows(learned: Lessons, before: Tensor, after: Tensor) -> list[Row]:
    words = learned.words or [str(row) for row in range(len(before))]
    numbers = zip(words, before.tolist(), after.tolist(), strict=True)
    return [{"target": word, "before": b, "after": a, "change": a - b} for word, b, a in numbers]


def _module(model: Model) -> Transformer | Network:
    if isinstance(model, Predictor):
        return model.network
    return model.model if isinstance(model, Loaded) else model


def _optimizers(
    module: Transformer | Network, optimizer: Optimizers | None, rate: float | None
) -> list[torch.optim.Optimizer]:
    """Those given, each weight in one of them at most, and all of them the model's."""
    if optimizer is None:
        return [torch.optim.SGD(module.parameters(), lr=_RATE if rate is None else rate)]
    if rate is not None:
        raise UsageError(
            "`rate` has no effect with an optimizer, which has its own.", do="Leave one of them out."
        )
    found = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    mine = {id(weight) for weight in module.parameters()}
    held = [id(weight) for each in found for group in each.param_groups for weight in group["params"]]
    if not set(held) <= mine:
        raise UsageError(
            f"{len(set(held) - mine):,} of the optimizer's {len(held):,} tensors are not the model's.",
            do="Make it from this model's parameters().",
        )
    if len(set(held)) < len(held):
        raise UsageError("A weight is in two optimizers.", expected="Each weight is changed by one.")
    return found


def _in_double(model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    model.double()
    for optimizer in optimizers:
        for group in optimizer.param_groups:  # a rate may be a tensor
            group |= {name: value.double() for name, value in group.items() if isinstance(value, Tensor)}
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                    state[name] = value.double()


def _double(learned: Lessons) -> Lessons:
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in learned.arrays.items()
    }
    return Lessons(wide, learned.words)


def _ask_for_gradients(model: torch.nn.Module) -> None:
    """What was loaded for use is frozen as a whole, and learns here; what its owner froze in part stays so."""
    if not any(weight.requires_grad for weight in model.parameters()):
        model.requires_grad_()
        if isinstance(model, Network) and model.config.activation == "step":
            model.layers.requires_grad_(
                False
            )  # as in training: no gradient comes there, and nothing may decay


@contextmanager
def _gradients(weights: dict[str, Tensor], gradients: dict[str, Tensor | None]) -> Iterator[None]:
    """Lend the weights these gradients, and give them back their own."""
    own = {name: weight.grad for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.grad = gradients.get(name)
        yield
    finally:
        for name, weight in weights.items():
            weight.grad = own[name]
