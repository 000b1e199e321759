"""Steps from the last vector to the loss: the head's scores, their shares, and how wrong they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.look.arithmetic import (
    FORMULAS,
    Line,
    Vector,
    activated,
    mean_of,
    softmax_lines,
    sum_of_products,
)
from glassformer.look.explain_seen import Seen, Step, bias_at, quoted
from glassformer.look.explain_stream import norm_formula, norm_lines, norm_sources, norm_step
from glassformer.look.source import Source, line_of
from glassformer.model.feedforward import ACTIVATIONS
from glassformer.model.norms import Norm
from glassformer.model.stacks import Encoder

SECTION = "The answer"


def answer_steps(seen: Seen, classes: tuple[str, ...] = ()) -> Iterator[Step]:
    """Final norm, scores, probabilities, loss: of tokens, or of the classes of these names."""
    config = seen.config
    if isinstance(norm := seen.final_norm, Norm):
        last = seen.here(f"{seen.stack}.{config.layers - 1}.resid_post")
        yield norm_step(seen, SECTION, "The last vector is brought to one size", norm, last, seen.top("ln_final"),
                        again=True)  # fmt: skip
    if config.head == "classes":
        yield _pooled(seen)
        x, logits, shares = seen("pooled"), seen("class_logits"), seen("class_probabilities")
        place, names = (
            "class_",
            [quoted(name) for name in classes] or [f"class {n}" for n in range(len(logits))],
        )
        code = line_of("model/stacks.py", "Encoder.forward", '"class_logits"')
        share = line_of("model/stacks.py", "Encoder.forward", "logits.softmax(-1)")
        name: Callable[[int], str] = names.__getitem__
    else:
        x = seen.here(seen.last_vectors)
        if isinstance(model := seen.model, Encoder) and config.head_transform:
            steps, x = _transformed(seen, model, x)
            yield from steps
        logits, shares, place, name = seen.here("logits"), seen.here("probabilities"), "", seen.quoted
        code, share = _scores('see("logits"'), _scores("logits.softmax(-1)")
    also = () if seen.answer is None else (seen.answer,)
    yield _logits(seen, x, logits, place, name, code)
    yield Step(
        SECTION,
        "Scores become probabilities",
        "The same softmax as in attention, now over everything that could stand here.",
        "p = e^(logit - largest) / S,  S = Σ e^(logit - largest)",
        tuple(softmax_lines(lambda i: f"p of {name(i)}", logits, shares, also=also)),
        (share,),
        f"{place}probabilities",
    )  # fmt: skip
    if seen.answer is not None:
        yield _loss(seen, float(shares[seen.answer]), name(seen.answer))


def best_but(scores: Float[Tensor, " score"], answer: int | None) -> int:
    """The largest score that is not the answer's."""
    order = scores.topk(min(2, len(scores))).indices.tolist()
    return int(next((i for i in order if i != answer), order[0]))


def _logits(
    seen: Seen, x: Tensor, logits: Tensor, place: str, name: Callable[[int], str], code: Source
) -> Step:
    head, other = seen.model.head, best_but(logits, seen.answer)
    chosen = [other] if seen.answer is None else sorted({seen.answer, other}, key=lambda i: i != seen.answer)
    lines = [
        sum_of_products(
            f"logit of {name(i)}", head.weight.detach()[i], x, float(logits[i]), plus=bias_at(head.bias, i)
        )
        for i in chosen
    ]
    tied = " That is the table E of the beginning." if seen.config.tied and not place else ""
    which = f"{len(logits):,} {'classes' if place else 'tokens'}"
    asked = (
        ""
        if seen.answer is None
        else f" Shown: {name(seen.answer)}, which is the right answer, and the best other."
    )
    return Step(
        SECTION,
        "Every possible answer gets a score",
        f"Each of the {which} has a row of weights, and its score (logit) is the product with the vector.{tied}{asked}",
        "logits = W x" + (" + b" if head.bias is not None else ""),
        tuple(lines),
        (code,),
        f"{place}logits",
    )


def _loss(seen: Seen, p: float, name: str) -> Step:
    writes = seen.config.kind != "encoder"
    value = float(seen("loss")[seen.position]) if writes else -math.log(p)
    source = (
        _scores('see("loss"')
        if writes
        else line_of("model/loss.py", "cross_entropy", "loss = F.cross_entropy(")
    )
    return Step(
        SECTION,
        "How wrong was it?",
        f"The loss is 0 where the right answer, {name}, gets probability 1, and grows without end as it gets less. "
        "It is measured in nats.",
        "loss = -ln(p of the right answer)",
        (Line("loss", ("-ln(", p, ")"), value), Line("probability", ("e^(", -value, ")"), p)),
        (source,),
        "loss" if writes else None,
    )


def _pooled(seen: Seen) -> Step:
    model, j = seen.model, seen.entry
    assert isinstance(model, Encoder)
    vectors, pooled = seen(seen.last_vectors), seen("pooled")
    if model.pooler is None:
        sentence, formula = "The mean of all vectors stands for the row.", "pooled = mean over positions of x"
        lines = [mean_of(f"pooled[{j}]", vectors[:, j], float(pooled[j]))]
        code = "x.mean(1)"
    else:
        sentence = "The row's first vector goes through one more layer and stands for the row."
        formula, code = "pooled = tanh(W x + b)", "torch.tanh("
        row, bias = model.pooler.weight.detach()[j], bias_at(model.pooler.bias, j)
        total = float(row.double() @ vectors[0].double()) + (bias or 0.0)
        lines = [sum_of_products(f"sum[{j}]", row, vectors[0], total, plus=bias)]
        lines.append(Line(f"pooled[{j}]", activated("tanh", total), float(pooled[j])))
    return Step(
        SECTION, "One vector for the row", sentence, formula, (*lines, Vector.of("pooled", pooled)),
        (line_of("model/stacks.py", "Encoder.pooled", code),), "pooled",
    )  # fmt: skip


def _transformed(seen: Seen, model: Encoder, x: Tensor) -> tuple[list[Step], Tensor]:
    """BERT's extra layer before the scores. It has no places; its numbers are computed here as the model does."""
    transform, norm, j = model.transform, model.transform_norm, seen.entry
    assert transform is not None and norm is not None
    with torch.no_grad():
        device = transform.weight.device
        h = transform(x.to(device)).cpu()
        a = ACTIVATIONS[seen.config.activation](h)
        t = model.transformed(x.to(device)).cpu()
    wide = a.double() - a.double().mean() if norm.centred else a.double()
    scale = math.sqrt(float(wide.square().mean()) + norm.epsilon)
    name = seen.config.activation
    lines = [
        sum_of_products(
            f"h[{j}]", transform.weight.detach()[j], x, float(h[j]), plus=bias_at(transform.bias, j)
        ),
        Line(f"a[{j}]", activated(name, float(h[j])), float(a[j])),
        *norm_lines(norm, a, j, scale, float(t[j])),
    ]
    step = Step(
        SECTION,
        "One more layer before the scores",
        "The head for tokens has a matrix, an activation and a norm of its own, as in BERT.",
        f"h = W x,  a = {name}(h),  {name}(x) = {FORMULAS[name]};  {norm_formula(norm)}",
        (*lines, Vector.of("normalized", t)),
        (line_of("model/stacks.py", "Encoder.transformed", "self.transform("), *norm_sources(norm)),
    )
    return [step], t


def _scores(fragment: str) -> Source:
    return line_of("model/transformer.py", "Transformer._scores", fragment)
