"""One prediction from the text to the update, every step with its formula and with the model's own numbers put in.

    text -> numbers -> vectors (+ position) -> norm -> q . k / sqrt(d) -> mask -> softmax -> blend -> heads
         -> feed-forward -> residual -> the other blocks -> final norm -> scores -> probabilities -> loss
         -> the gradient of one weight -> its update, and the loss after it

    print(explain(model, "def __init__(self").text())

Every number was seen in a pass of this model; every sum is added up from the numbers shown; and every step names the
line of our code that computes it, found when asked. What a line shows can be computed again from it (`arithmetic.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.look.asked import check_number, class_names, class_number, one_row, position_of, token_id
from glassformer.look.attention import concentration
from glassformer.look.explain_answer import answer_steps
from glassformer.look.explain_attention import attention
from glassformer.look.explain_feedforward import feedforward
from glassformer.look.explain_flows import chosen_weight
from glassformer.look.explain_gradient import differentiate, first_error, through_the_head, way_back
from glassformer.look.explain_network import network_row, network_steps
from glassformer.look.explain_seen import Seen, Step, quoted
from glassformer.look.explain_stream import beginning, norm_step, other_blocks, residual
from glassformer.look.explanation import Explanation
from glassformer.look.reading import Model, Reading, Text, wide
from glassformer.look.trace import Recorder
from glassformer.model.mlp import Network
from glassformer.model.stacks import Encoder, EncoderDecoder
from glassformer.use.load import Loaded
from glassformer.use.predict import Predictor, Rows

_RATE = 0.1


def explain(
    model: Model,
    text: Text | Rows,
    *,
    layer: int = 0,
    head: int | None = None,
    position: int | None = None,
    neuron: int | None = None,
    weight: str | None = None,
    rate: float = _RATE,
    target: Any = None,
) -> Explanation:
    """Explain one prediction of a model, with all its numbers.

    layer: The block shown in full (of an encoder-decoder, the decoder's; of a plain network the hidden layer).
    head: The head shown; left out, the most telling one of the block (`heads.concentration`).
    position: Where the prediction is made, -1 at the last token; of a plain network, the row. Left out: before the
        text's last token, which is then the right answer; with `target` at the last token; in an encoder at the first
        hidden token, else the last.
    neuron: The neuron shown; left out, the one that writes most.
    weight: The weight whose gradient is shown, "NAME[i, j]"; left out, the neuron's largest weight in writing.
    rate: How far the update goes.
    target: The right answer: the token that comes next (of an encoder: stands there), as text or id. What an
        encoder-decoder writes. The class, or the numbers, of a plain network or a classifier.
    """
    if not rate > 0:
        raise UsageError(f"rate is {rate:g}.", expected="Above 0.")
    module = model.model if isinstance(model, Loaded) else model
    if isinstance(module, Network | Predictor):
        if head is not None:
            raise UsageError("A plain network has no heads.", do="Leave head out.")
        columns = module.columns if isinstance(module, Predictor) else None
        row = network_row(Reading.of(model, text), columns, position or 0, layer, neuron, target)
        shown = {"layer": layer, "neuron": neuron, "row": position or 0}
        about = f"What does the network make of row {position or 0}?"
        return Explanation(tuple(network_steps(row, weight, rate)), shown, about)
    reading, position, answer = _question(model, text, position, target)
    seen = _seen(reading, layer, head, position, neuron, answer)
    name, index = chosen_weight(reading, weight or _default_weight(seen))
    classes = model.classes if isinstance(model, Loaded) else ()
    steps = [*_forward(seen, classes)]
    if answer is not None:
        steps += _backward(seen, name, index, rate, classes)
    choices: dict[str, Any] = {
        "layer": layer, **{("head" if a == "attn" else "cross_head"): h for a, h in seen.heads.items()},
        "position": position, "neuron": seen.neuron, "entry": seen.entry, "answer": answer,
        "weight": f"{name}[{', '.join(map(str, index))}]", "rate": rate,
    }  # fmt: skip
    return Explanation(tuple(steps), choices, _about(seen))


def _about(seen: Seen) -> str:
    """The question in a sentence."""
    words = seen.reading.tokens
    head = ", ".join(
        f"{'cross-attention ' if a == 'cross_attn' else ''}head {h}" for a, h in seen.heads.items()
    )
    shown = f"Shown in full: block {seen.layer}, {head}" + (
        "" if seen.neuron is None else f", neuron {seen.neuron}"
    )
    joint = "" if seen.reading.tokenizer else " "
    if seen.config.head == "classes":
        question = f"Which class is {json.dumps(joint.join(words), ensure_ascii=False)}?"
    elif seen.config.kind == "encoder":
        question = f"What stands at {seen.position} in {json.dumps(joint.join(words), ensure_ascii=False)}?"
    else:
        read = json.dumps(joint.join(words[: seen.position + 1]), ensure_ascii=False)
        question = f"What follows {read}?"
        if seen.config.kind == "encoder-decoder":
            source = json.dumps(joint.join(seen.reading.source_tokens), ensure_ascii=False)
            question = f"What follows {read}, written from the source {source}?"
    right = (
        ""
        if seen.answer is None or seen.config.head == "classes"
        else f" Right is {seen.quoted(seen.answer)}."
    )
    return f"{question}{right} {shown}, and entry {seen.entry} of the stream."


def _question(model: Any, text: Any, position: int | None, target: Any) -> tuple[Reading, int, int | None]:
    """What is read, where the prediction is made, and the right answer."""
    module = model.model if isinstance(model, Loaded) else model
    written, target = (target, None) if isinstance(module, EncoderDecoder) else (None, target)
    reading = Reading.of(model, text, target=written)
    one_row(reading, "an explanation")
    if isinstance(module, Encoder):
        return _of_encoder(reading, position, target)
    ids = reading.ids
    if target is not None:
        at = position_of(reading, -1 if position is None else position)
        reading = Reading.of(model, [*ids[: at + 1], token_id(reading, target)])
        return reading, at, reading.ids[-1]
    if len(ids) < 2:
        raise UsageError(
            "Of one token there is nothing to predict.",
            do="Give a longer text, whose last token is the right answer, or the answer as target.",
        )
    at = position_of(reading, -2 if position is None else position)
    if at == len(ids) - 1:
        raise UsageError(
            f"What comes after the last token, at {at}, is not in the text.",
            do="Give the right answer as target, or an earlier position.",
        )
    return reading, at, ids[at + 1]


def _of_encoder(reading: Reading, position: int | None, target: Any) -> tuple[Reading, int, int | None]:
    ids, tokenizer, head = reading.ids, reading.tokenizer, reading.model.config.head
    if head == "none":
        raise ModelError(
            "This encoder gives vectors, no scores.", expected="explain needs a head for an answer."
        )
    hidden = [at for at, i in enumerate(ids) if tokenizer is not None and i == tokenizer.mask]
    if position is None and hidden:
        position = hidden[0]
    at = position_of(reading, -1 if position is None else position)
    if head == "classes":
        return reading, at, None if target is None else class_number(target, class_names(reading))
    return reading, at, ids[at] if target is None else token_id(reading, target)


def _seen(reading: Reading, layer: int, head: int | None, position: int, neuron: int | None,
          answer: int | None) -> Seen:  # fmt: skip
    """One pass, and what in it is shown where nothing else was asked for."""
    assert not isinstance(reading.model, Network)
    config = reading.model.config
    for name, given, count in (
        ("layer", layer, config.layers), ("head", head, config.num_heads), ("neuron", neuron, config.ff_width)
    ):  # fmt: skip
        if given is not None:
            check_number(name, given, count)
    stack = "decoder" if config.kind == "encoder-decoder" else "blocks"
    known = reading.places()
    inside = [f"{stack}.{layer}.*", *(f"{stack}.*.{name}" for name in ("resid_pre", "resid_post"))]
    ends = [f"{stack}.*_out", *(place for place in known if not place.startswith((f"{stack}.", "encoder.")))]
    ends += [place for place in known if place.startswith(f"{stack}.") and not place.split(".")[1].isdigit()]
    recorder = Recorder(known, [*inside, *ends])
    with torch.no_grad():
        output = reading.run(recorder)
    if not output.isfinite().all():
        raise ModelError(
            "The model's outputs are not finite.", do="Look where that begins: gf.look(model, text, '*')."
        )
    heads = {}
    for attn in ("attn", "cross_attn"):
        pattern = recorder.seen.get(f"{stack}.{layer}.{attn}.pattern")
        if pattern is not None:
            heads[attn] = int(concentration(pattern[0].float().cpu()).argmin()) if head is None else head
    seen = Seen(reading, recorder.seen, stack, layer, position, heads, neuron, 0, answer)
    mlp = seen.shown_block.mlp
    if mlp is None:
        return replace(seen, entry=_largest_written(seen)[0])
    down = mlp.down.weight.detach().cpu()
    if neuron is None:
        neuron = int((seen.here(seen.block("mlp.post")).abs() * down.norm(dim=0)).argmax())
    return replace(seen, neuron=neuron, entry=int(down[:, neuron].abs().argmax()))


def _largest_written(seen: Seen) -> tuple[int, int]:
    """Where the shown head writes most, and the column of W_o that it writes there with."""
    size, h = seen.config.head_width, seen.heads["attn"]
    s = int(seen.here(seen.block("attn.z"))[h].abs().argmax())
    column = seen.shown_block.attn.out.weight.detach()[:, h * size + s]
    return int(column.abs().argmax()), h * size + s


def _default_weight(seen: Seen) -> str:
    at = f"{seen.stack}.{seen.layer}."
    if seen.neuron is None:
        row, column = _largest_written(seen)
        return f"{at}attn.out.weight[{row}, {column}]"
    return f"{at}mlp.down.weight[{seen.entry}, {seen.neuron}]"


def _forward(seen: Seen, classes: Sequence[str]) -> Iterator[Step]:
    block, layer = seen.shown_block, seen.layer
    yield from beginning(seen)
    yield from other_blocks(seen, "The blocks before", "Blocks before the one shown", range(layer))
    what = f"Block {layer}: "
    if block.pre:
        here = seen.here(seen.block("resid_pre"))
        yield norm_step(seen, f"{what}attention, head {seen.heads['attn']}", "The vector is brought to one size",
                        block.norm1, here, seen.block("ln1"))  # fmt: skip
    *attend, together = attention(seen)
    yield from attend
    yield together
    stream = "resid_pre"
    if not block.parallel:
        yield from residual(seen, together.section, ["attn_out"], "resid_pre", "resid_mid", "ln1")
        stream = "resid_mid"
    if block.cross is not None and block.norm_cross is not None:
        section = f"{what}cross-attention, head {seen.heads['cross_attn']}"
        if block.pre:
            yield norm_step(seen, section, "The vector is brought to one size", block.norm_cross,
                            seen.here(seen.block("resid_mid")), seen.block("ln_cross"), again=True)  # fmt: skip
        yield from attention(seen, "cross_attn")
        yield from residual(seen, section, ["cross_attn_out"], "resid_mid", "resid_mid_cross", "ln_cross")
        stream = "resid_mid_cross"
    if block.norm2 is not None and block.mlp is not None:
        section = f"{what}feed-forward, neuron {seen.neuron}"
        if block.pre:
            here = seen.here(seen.block(stream))
            yield norm_step(seen, section, "The vector is brought to one size", block.norm2, here, seen.block("ln2"),
                            again=True)  # fmt: skip
        yield from feedforward(seen, "ln2.normalized" if block.pre else stream)
        added = ["attn_out", "mlp_out"] if block.parallel else ["mlp_out"]
        yield from residual(seen, section, added, stream, "resid_post", "ln2")
    later = range(layer + 1, seen.config.layers)
    yield from other_blocks(seen, "The blocks after", "Blocks after the one shown", later)
    yield from answer_steps(seen, tuple(classes))


def _backward(
    seen: Seen, name: str, index: tuple[int, ...], rate: float, classes: Sequence[str]
) -> Iterator[Step]:
    answer, position, of_classes = seen.answer, seen.position, seen.config.head == "classes"
    assert answer is not None

    def loss_of(logits: Tensor) -> Tensor:
        scores = logits[0] if of_classes else logits[0, position]
        return -wide(scores).log_softmax(-1)[answer]

    place = "class_logits" if of_classes else "logits"
    whole = not of_classes and not seen.config.head_transform
    places = [place, seen.last_vectors] if whole else [place]
    gradient = differentiate(seen.reading, name, index, loss_of, places)
    names = [quoted(each) for each in classes] or [f"class {i}" for i in range(seen.config.classes or 0)]
    yield first_error(seen, gradient, place, names.__getitem__ if of_classes else seen.quoted)
    if whole and seen.last_vectors in gradient.arriving:
        yield through_the_head(seen, gradient)
    yield from way_back(seen.reading, name, index, loss_of, rate, lambda source: seen.words(source=source))
