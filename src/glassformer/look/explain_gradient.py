"""Steps from the loss back to one weight, and what changing that weight does.

    d loss / d logit = p - [right answer]                              where every error begins
    d loss / d w     = Σ_position (error arriving) × (input)           the weight's gradient
    w <- w - rate × gradient                                           one step of SGD
    loss after - loss before  ~  -rate × gradient²                     the first-order forecast

The last line is measured: the model runs again with the one weight changed, in float64, since the change is often
smaller than float32 can show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.look.arithmetic import Given, Line, Precise, sum_of_products
from glassformer.look.explain_answer import best_but
from glassformer.look.explain_flows import Index, flows
from glassformer.look.explain_seen import Seen, Step
from glassformer.look.reading import Reading
from glassformer.look.source import line_of
from glassformer.look.trace import Recorder

SECTION = "The way back"
LossOf = Callable[[Tensor], Tensor]
"""From what the model's forward gives (of a network its scores) to the loss of the one prediction."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """What autograd says of one weight, and of the places on the way to it."""

    weight: float
    """d loss / d w."""
    arriving: dict[str, Tensor]
    """d loss / d place."""
    seen: dict[str, Tensor]


def differentiate(
    reading: Reading,
    name: str,
    index: Index,
    loss_of: LossOf,
    places: Sequence[str],
    reads: Sequence[str] = (),
) -> Gradient:
    """The gradients of the loss by one weight and by `places`; `reads` are recorded as well. The model is left as it
    is."""
    weights = reading.weights()
    leaf = weights[name] = weights[name].clone().requires_grad_()
    recorder = Recorder(reading.places(), [*places, *reads], attached=True)
    with torch.enable_grad():
        loss = loss_of(reading.run(recorder, weights=weights))
        inside = [place for place in places if recorder.seen[place].requires_grad]
        asked = [leaf, *(recorder.seen[place] for place in inside)]
        gradient, *arriving = torch.autograd.grad(loss, asked, allow_unused=True)
    found = {
        place: torch.zeros_like(recorder.seen[place]) if each is None else each
        for place, each in zip(inside, arriving, strict=True)
    }
    value = 0.0 if gradient is None else float(gradient[index])
    return Gradient(value, found, {place: each.detach() for place, each in recorder.seen.items()})


def way_back(
    reading: Reading,
    name: str,
    index: Index,
    loss_of: LossOf,
    rate: float,
    words: Callable[[bool], list[str]],
) -> Iterator[Step]:
    """The gradient of one weight in terms, and its update."""
    uses = flows(reading, name, index)
    places = sorted({use.arriving for use in uses})
    gradient = differentiate(
        reading, name, index, loss_of, places, sorted({place for use in uses for place in use.reads})
    )
    errors, inputs, names = [], [], []
    for use in uses:
        arriving = gradient.arriving.get(use.arriving)
        given = use.input(gradient.seen)
        errors.append(torch.zeros_like(given) if arriving is None else use.error(arriving))
        inputs.append(given)
        end = f" ({use.arriving})" if len(uses) > 1 else ""
        names += [word + end for word in words(use.source)]
    at = f"{name}[{', '.join(map(str, index))}]"
    yield Step(
        SECTION,
        "The gradient of one weight",
        "How fast does the loss rise when this weight does? At every position: the error that arrives behind it, times "
        f"what it was given to multiply. Here w is {at}, and the error is that of {' and '.join(places)}.",
        "d loss / d w = Σ_position (error arriving) × (input)",
        (
            sum_of_products(
                "d loss / d w", torch.cat(errors), torch.cat(inputs), gradient.weight, names=names.__getitem__
            ),
        ),
        (line_of("train/step.py", "update", "part.backward()"),),
        places[0],
    )
    yield _update(reading, name, index, loss_of, gradient.weight, rate, at)


def _update(
    reading: Reading, name: str, index: Index, loss_of: LossOf, gradient: float, rate: float, at: str
) -> Step:
    double = reading.in_double()
    weights = double.weights()
    before_weight = float(weights[name][index])
    after_weight = before_weight - rate * gradient
    with torch.no_grad():
        before = float(loss_of(double.run(weights=weights)))
        changed = weights[name].clone()
        changed[index] = after_weight
        after = float(loss_of(double.run(weights={**weights, name: changed})))
    forecast = -rate * gradient**2
    return Step(
        "The update",
        "The weight takes a step downhill",
        f"The weight w, {at}, moves against its gradient (SGD; rate {rate:g}), all others stay. Forecast is "
        "what the slope says, measured what the model says when it runs again with this weight changed, in float64.",
        "w ← w - rate × gradient,  forecast = -rate × gradient²,  measured = loss after - loss before",
        (
            Line("w", (before_weight, " - ", Given(rate), " × ", gradient), after_weight),
            Line("forecast", (Given(-rate), " × ", gradient, "²"), forecast),
            Line("measured", (Precise(after), " - ", Precise(before)), after - before),
        ),
        (line_of("train/optimizers.py", "build_optimizers", "torch.optim.SGD("),),
    )


def first_error(seen: Seen, gradient: Gradient, place: str, name: Callable[[int], str]) -> Step:
    """d loss / d logits: where every error begins."""
    errors = gradient.arriving[place][0]
    errors = errors if place == "class_logits" else errors[seen.position]
    shares = seen("class_probabilities") if place == "class_logits" else seen.here("probabilities")
    answer, other = seen.answer, best_but(shares, seen.answer)
    assert answer is not None
    lines = [
        Line(f"error at {name(i)}", (float(shares[i]), " - ", int(i == answer)), float(errors[i]))
        for i in dict.fromkeys((answer, other))
    ]
    return Step(
        SECTION,
        "The error at the scores",
        "The loss falls fastest when the right score rises by what its probability lacks to 1, and every other one "
        "falls by the probability it had.",
        "d loss / d logit = p - 1 for the right answer, p for all others",
        tuple(lines),
        (line_of("model/loss.py", "_loss_and_gradient", "grad.scatter_add_("),),
        place,
    )


def through_the_head(seen: Seen, gradient: Gradient) -> Step:
    """d loss / d x for the followed entry of the last vector."""
    j, last = seen.entry, seen.last_vectors
    errors = gradient.arriving["logits"][0][seen.position].cpu()
    column = seen.model.head.weight.detach()[:, j].cpu()
    value = float(gradient.arriving[last][0][seen.position][j])
    return Step(
        SECTION,
        "The error goes back through the scores",
        f"Entry {j} of the last vector went into every score; the errors of all of them come back by the same weights. "
        "So it goes on, layer by layer, to the beginning.",
        "d loss / d x[j] = Σ_answer (d loss / d logit) × W[answer, j]",
        (sum_of_products(f"d loss / d x[{j}]", errors, column, value, names=seen.quoted),),
        (line_of("model/loss.py", "_Chunked.forward", "torch.mm(grad, weight"),),
        last,
    )
