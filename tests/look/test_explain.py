"""Every number that `explain` shows is computed again from what it shows, and from the model by other means."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import glassformer as gf
from glassformer.errors import UsageError
from glassformer.look.arithmetic import Line, Vector, digits
from glassformer.look.explain import explain
from glassformer.look.explain_flows import flows
from glassformer.look.explain_gradient import way_back
from glassformer.look.explain_seen import Step
from glassformer.look.explanation import Explanation
from glassformer.look.reading import Reading
from glassformer.look.trace import look
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build

SMALL = {"vocab": 23, "width": 16, "layers": 3, "heads": 4, "context": 12}
FAMILY: dict[str, dict[str, Any]] = {
    "rope": {},
    "a part turned": {"rotary_fraction": 0.5},
    "learned, layernorm, biases": {"positions": "learned", "norm": "layernorm", "bias": True},
    "sinusoidal, post": {"positions": "sinusoidal", "norm_place": "post", "norm": "layernorm"},
    "sinusoidal halves, scaled": {"positions": "sinusoidal_halves", "scale_embeddings": True},
    "alibi": {"positions": "alibi", "activation": "gelu"},
    "none": {"positions": "none", "activation": "gelu_tanh", "tied": False, "head_bias": True},
    "gated, grouped": {"gated": True, "activation": "silu", "kv_heads": 2, "feedforward": 24},
    "qk norm": {"qk_norm": True, "qkv_bias": True},
    "qk norm without turn": {"qk_norm": True, "positions": "learned", "activation": "relu"},
    "parallel": {"parallel": True},
    "attention alone": {"feedforward": 0},
    "embed norm": {"embed_norm": True, "positions": "learned"},
    "encoder": {"kind": "encoder", "positions": "learned", "norm": "layernorm", "bias": True},
    "bert": {"kind": "encoder", "positions": "learned", "norm": "layernorm", "norm_place": "post", "bias": True,
             "token_types": 2, "embed_norm": True, "head_transform": True, "head_bias": True, "activation": "gelu"},
    "encoder with alibi": {"kind": "encoder", "positions": "alibi"},
    "classes": {"kind": "encoder", "head": "classes", "classes": 3, "tied": False},
    "classes by a pooler": {"kind": "encoder", "head": "classes", "classes": 3, "pooler": True, "tied": False},
    "pair": {"kind": "encoder-decoder", "positions": "sinusoidal", "norm_place": "post"},
    "pair, pre": {"kind": "encoder-decoder", "positions": "learned", "bias": True, "encoder_layers": 2},
    "pair, qk norm": {"kind": "encoder-decoder", "qk_norm": True, "kv_heads": 2},
}  # fmt: skip
IDS, SOURCE = [3, 7, 1, 7, 20, 5, 9], [4, 4, 11, 2, 19]


def drawn(config: ModelConfig | NetworkConfig, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose weights are large enough that an error shows."""
    model = Network(config) if isinstance(config, NetworkConfig) else build(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.normal_(around, 0.25, generator=generator)
    return model.to(dtype).eval()


def asked(name: str, dtype: torch.dtype = torch.float64, **choices: Any) -> tuple[Any, Explanation]:
    config = ModelConfig(**SMALL, **FAMILY[name])
    model = drawn(config, dtype)
    if config.kind == "encoder-decoder":
        return model, explain(model, SOURCE, target=IDS, **choices)
    if config.head == "classes":
        choices = {"target": 1, **choices}
    return model, explain(model, IDS, **choices)


def lines(steps: Any) -> Iterator[tuple[Step, Line]]:
    for step in steps:
        for line in step.lines:
            if isinstance(line, Line):
                yield step, line


NAMES = {"sqrt": math.sqrt, "exp": math.exp, "log": math.log, "sin": math.sin, "cos": math.cos, "erf": math.erf,
         "tanh": math.tanh, "max": max, "pi": math.pi, "inf": math.inf}  # fmt: skip


def computed(text: str) -> float:
    """The right side of a line as a reader computes it: school arithmetic, in Python's signs."""
    where = re.fullmatch(r"1 where (.*) > 0, else 0", text)
    if where:
        return float(computed(where[1]) > 0)
    text = re.sub(r"the other [\d,]+ terms: ", "", text)
    for sign, python in {"×": "*", "√": "sqrt", "e^(": "exp(", "ln(": "log(", "²": "**2", "³": "**3", "^": "**",
                         "π": "pi", "∞": "inf"}.items():  # fmt: skip
        text = text.replace(sign, python)
    assert not set(re.findall(r"[a-z_]{2,}", text)) - set(NAMES), text
    return float(eval(text, {"__builtins__": {}}, NAMES))


def exact(line: Line, changed: int = -1, to: float = 0.0) -> float:
    """The same from the numbers as they are kept; with one of them changed."""
    text = ""
    for at, piece in enumerate(line.right):
        text += piece if isinstance(piece, str) else f"({to if at == changed else float(piece)!r})"
    return computed(text)


def assert_computed_again(steps: Any, tolerance: float) -> int:
    count = 0
    for step, line in lines(steps):
        found = exact(line)
        table = step.title in ("The position turns query and key", "The position is added")  # float32 tables
        size = max([1.0, *(abs(p) ** 2 for p in line.right if isinstance(p, float)), abs(line.value)])
        near = max(tolerance, 2e-7) if table else tolerance
        assert found == line.value or abs(found - line.value) <= near * size, (step.title, line)
        shown = computed(line.numbers)  # and as printed, as far as four digits go
        slack = [
            abs(exact(line, at, float(digits(piece))) - found)
            for at, piece in enumerate(line.right)
            if isinstance(piece, float) and math.isfinite(piece)
        ]
        assert shown == found or abs(shown - found) <= 1.5 * sum(slack) + 1e-9 * size, (
            step.title,
            line.numbers,
        )
        count += 1
    return count


@pytest.mark.parametrize("name", FAMILY)
def test_every_line_is_computed_again_from_its_own_numbers_and_from_its_print(name: str) -> None:
    for layer in (0, 2):
        _, found = asked(name, layer=layer)
        assert assert_computed_again(found, 1e-12) > 25


@pytest.mark.parametrize("name", FAMILY)
def test_every_entry_shown_of_a_place_is_that_of_a_pass_recorded_by_itself(name: str) -> None:
    model, found = asked(name, layer=1)
    given = {"target": IDS} if model.config.kind == "encoder-decoder" else {}
    trace = look(model, SOURCE if given else IDS, "*", **given)
    position, heads, count = found.choices["position"], found.choices, 0
    for step, line in lines(found):
        entry = re.fullmatch(r"(\w+)\[(\d+)\]", line.left)
        if step.place is None or entry is None or step.place.rsplit(".", 1)[-1] != entry[1]:
            continue
        row = trace[step.place][0] if "batch" in trace.axes(step.place) else trace[step.place]
        if "head" in trace.axes(step.place):
            row = row[:, heads["cross_head" if "cross" in step.place else "head"]]
        row = row if step.place == "pooled" else row[position]
        assert line.value == pytest.approx(float(row[int(entry[2])]), rel=1e-10, abs=1e-12), step.title
        count += 1
    assert count >= 6
    for step in found:
        for line in step.lines:
            if isinstance(line, Vector) and step.place and line.left == step.place.rsplit(".", 1)[-1]:
                row = trace[step.place][0]
                if "head" in trace.axes(step.place):
                    row = row[:, heads["cross_head" if "cross" in step.place else "head"]]
                row = row if step.place == "pooled" else row[position]
                assert list(line.entries) == pytest.approx(row[: len(line.entries)].tolist(), rel=1e-10)
                assert line.count == len(row)


def loss_by_itself(model: Any, found: Explanation, weights: dict[str, Tensor] | None = None) -> Tensor:
    """The loss as plain torch has it."""
    inputs = (torch.tensor([SOURCE]),) if model.config.kind == "encoder-decoder" else ()
    args = (*inputs, torch.tensor([IDS]))
    out = model(*args) if weights is None else torch.func.functional_call(model, weights, args)
    row = out[0] if model.config.head == "classes" else out[0, found.choices["position"]]
    return F.cross_entropy(row[None], torch.tensor([found.choices["answer"]]))


@pytest.mark.parametrize("name", FAMILY)
def test_loss_gradient_and_the_loss_after_the_update_are_those_of_plain_torch(name: str) -> None:
    model, found = asked(name)
    loss = loss_by_itself(model, found)
    assert found["How wrong was it?"].lines[0].value == pytest.approx(loss.item(), abs=1e-12)
    loss.backward()
    weight, entries = re.fullmatch(r"(.+)\[(.+)\]", found.choices["weight"]).groups()
    index = tuple(map(int, entries.split(", ")))
    gradient = dict(model.named_parameters())[weight].grad[index].item()
    assert found["The gradient of one weight"].lines[0].value == pytest.approx(gradient, abs=1e-12)
    updated, forecast, measured = found["The weight takes a step downhill"].lines
    with torch.no_grad():
        old = dict(model.named_parameters())[weight]
        new = old.clone()
        new[index] -= 0.1 * gradient
        after = loss_by_itself(model, found, {weight: new}).item()
    assert updated.value == pytest.approx(new[index].item(), abs=1e-12)
    assert measured.value == pytest.approx(after - loss.item(), abs=1e-12)
    assert forecast.value == pytest.approx(-0.1 * gradient**2, abs=1e-15)


@pytest.mark.parametrize("name", FAMILY)
def test_the_terms_of_a_gradient_add_up_to_autograds_for_a_weight_of_every_tensor(name: str) -> None:
    """And the few whose terms are at no place are refused by name."""
    model, found = asked(name)
    loss_by_itself(model, found).backward()
    answer, position = found.choices["answer"], found.choices["position"]
    pair = model.config.kind == "encoder-decoder"
    reading = Reading.of(model, SOURCE, target=IDS) if pair else Reading.of(model, IDS)

    def loss_of(out: Tensor) -> Tensor:
        return -(out[0] if model.config.head == "classes" else out[0, position]).log_softmax(-1)[answer]

    refused = []
    for weight, values in model.named_parameters():
        largest = int((torch.zeros_like(values) if values.grad is None else values.grad).abs().argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(largest), values.shape))
        try:
            flows(reading, weight, index)
        except UsageError as error:
            assert weight in str(error)
            refused.append(weight)
            continue
        step, _ = way_back(
            reading, weight, index, loss_of, 0.1, lambda source: SOURCE_WORDS if source else WORDS
        )
        (line,) = step.lines
        gradient = 0.0 if values.grad is None else float(values.grad[index])
        assert line.value == pytest.approx(gradient, abs=1e-12), weight
        assert exact(line) == pytest.approx(gradient, rel=1e-10, abs=1e-12), weight
    hidden = [weight for weight in refused if not re.search(r"[qk]_norm|embed_norm|transform|pooler", weight)]
    of_head = (
        {"embed.weight", "head.weight", "head.bias"}
        if name in ("bert", "classes", "classes by a pooler")
        else set()
    )
    keys = {weight for weight in hidden if "cross.qkv" in weight} if name == "pair, qk norm" else set()
    assert set(hidden) <= of_head | keys


WORDS = [f"{i} at {at}" for at, i in enumerate(IDS)]
SOURCE_WORDS = [f"{i} at {at}" for at, i in enumerate(SOURCE)]


@pytest.mark.parametrize("name", ["rope", "bert", "pair", "gated, grouped"])
def test_in_float32_it_holds_as_far_as_float32_goes(name: str) -> None:
    _, found = asked(name, torch.float32)
    assert assert_computed_again(found, 3e-6) > 25


def test_every_step_names_the_line_of_code_that_holds_it() -> None:
    package, seen = Path(gf.__file__).parent, set()
    for name in FAMILY:
        for step in asked(name, layer=1)[1]:
            assert step.sources, step.title
            for source in step.sources:
                assert (package / source.path).read_text("utf-8").splitlines()[
                    source.line - 1
                ].strip() == source.code
                seen.add(str(source))
    assert len(seen) > 30


@pytest.mark.parametrize("name", ["rope", "pair, pre", "gated, grouped", "classes"])
def test_a_line_that_hands_out_a_place_is_the_one_on_which_the_model_calls_see(name: str) -> None:
    """Asked of the interpreter: the frame in which `see` was called."""
    model, found = asked(name, layer=1)
    called: dict[str, set[str]] = {}

    def see(place: str, y: Any) -> Any:
        frame = sys._getframe(1)
        while frame.f_code.co_filename.endswith("places.py") or frame.f_code.co_name == "_see_heads":
            frame = frame.f_back
        path = Path(frame.f_code.co_filename).relative_to(Path(gf.__file__).parent).as_posix()
        called.setdefault(place, set()).add(f"{path}:{frame.f_lineno}")
        return y

    pair = model.config.kind == "encoder-decoder"
    (Reading.of(model, SOURCE, target=IDS) if pair else Reading.of(model, IDS)).run(see)
    count = 0
    for step in found:
        for source in step.sources:
            last = "" if step.place is None else step.place.rsplit(".", 1)[-1]
            if f'see("{last}"' in source.code:
                assert str(source) in called[step.place], (step.title, source)
                count += 1
    assert count >= 6


def test_what_comes_later_is_masked_and_the_right_answer_is_among_it() -> None:
    _, found = asked("rope")
    (masked,) = found["What comes later is masked"].lines
    assert masked.value == -math.inf and "9 at 6" in masked.left.replace('"', "")
    titles = [step.title for step in asked("encoder")[1]]
    assert "What comes later is masked" not in titles


def test_the_choices_made_for_the_reader_are_the_largest_and_can_be_made_by_him() -> None:
    model, found = asked("rope", layer=1)
    post = look(model, IDS, "blocks.1.mlp.post")["blocks.1.mlp.post"][0, 5]
    written = post.abs() * model.blocks[1].mlp.down.weight.norm(dim=0)
    assert found.choices["neuron"] == int(written.argmax())
    _, other = asked(
        "rope", layer=2, head=3, neuron=7, position=2, weight="blocks.1.attn.qkv.weight[4, 5]", rate=0.5
    )
    assert {**other.choices, "entry": 0} == {
        "layer": 2, "head": 3, "position": 2, "neuron": 7, "entry": 0, "answer": IDS[3],
        "weight": "blocks.1.attn.qkv.weight[4, 5]", "rate": 0.5,
    }  # fmt: skip
    assert_computed_again(other, 1e-12)


def test_a_target_stands_after_the_text_as_if_it_were_part_of_it() -> None:
    config = ModelConfig(**SMALL)
    model = drawn(config)
    whole, apart = explain(model, IDS), explain(model, IDS[:-1], target=IDS[-1])
    assert whole.to_dict() == apart.to_dict()


@pytest.mark.parametrize("head", ["distribution", "number", "scores"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "gelu", "none"])
def test_a_plain_network_is_explained_from_the_row_to_the_update(head: Any, activation: Any) -> None:
    config = NetworkConfig(inputs=5, outputs=3, hidden=(6, 7), head=head, activation=activation)
    model = drawn(config)
    rows = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target: Any = 2 if head == "distribution" else [1.0, 0.0, 1.0]
    found = explain(model, rows, position=1, target=target, layer=1, neuron=3)
    assert assert_computed_again(found, 1e-12) >= 10
    wanted = torch.tensor([2]) if head == "distribution" else torch.tensor([target], dtype=torch.float64)
    loss = model.loss(inputs=rows[1:], targets=wanted)
    loss.backward()
    step = found["How wrong was it?"]
    assert step.lines[-1].value == pytest.approx(loss.item(), abs=1e-12)
    output = 2 if head == "distribution" else 0
    gradient = float(model.head.weight.grad[output, 3])
    assert found["The gradient of one weight"].lines[0].value == pytest.approx(gradient, abs=1e-12)
    deep = explain(model, rows, position=1, target=target, weight="layers.0.weight[1, 2]")
    assert deep["The gradient of one weight"].lines[0].value == pytest.approx(
        float(model.layers[0].weight.grad[1, 2]), abs=1e-12
    )
    without = explain(model, rows)
    assert without.steps[-1].section == "The answer"
