"""One optimiser step: by the papers' formulas, by torch, and by the loss before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.step_view import step_view
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.model.transformer import Transformer
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
from glassformer.train.config import OptimizerConfig
from glassformer.train.optimizers import build_optimizers
from glassformer.use.load import Loaded

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
    "sgd with all": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd damped": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, dampening=0.2, maximize=True),
    "adam": lambda w: torch.optim.Adam(w, lr=1e-3, weight_decay=0.1),
    "adamw": lambda w: torch.optim.AdamW(w, lr=1e-3, weight_decay=0.1),
    "adamw fused": lambda w: torch.optim.AdamW(w, lr=1e-3, betas=(0.8, 0.95), eps=1e-6, fused=True),
    "amsgrad": lambda w: torch.optim.AdamW(w, lr=1e-3, amsgrad=True),
    "rate as a tensor": lambda w: torch.optim.AdamW(w, lr=torch.tensor(1e-3)),
}
IDS = torch.randint(29, (2, 9), generator=torch.Generator().manual_seed(2))


def made(**changes: Any) -> Transformer:
    small = {"vocab": 29, "width": 16, "layers": 2, "heads": 2, "context": 16, "feedforward": 24}
    model = build(ModelConfig.model_validate(small | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.25, generator=generator)
    return model


@pytest.fixture
def loaded() -> Loaded:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [b""])
    model = made(vocab=257).eval().requires_grad_(False)
    return Loaded(model, tokenizer, model.config, Path("made"))


def walked(model: Transformer, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """A few real steps on other rows, so that the optimiser remembers something."""
    for step in range(steps):
        ids = (IDS + step + 1) % 29
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_formula_gives_the_real_change_of_every_weight_shown(name: str, steps: int) -> None:
    model = made(bias=True, norm="layernorm")
    optimizer = OPTIMIZERS[name](model.parameters())
    walked(model, optimizer, steps)
    view = step_view(model, IDS, optimizer, samples=400)
    off = view.check()
    assert off is not None and off <= 1e-7 and len(view.weights) == 400
    moved = [step for step in view.weights if abs(step.change) > 1e-8 * abs(step.before)]
    assert len(moved) > 200
    for step in moved:  # where the change is more than rounding, nothing is forgiven
        assert step.update == pytest.approx(step.change, rel=1e-7, abs=0), step.weight
    for step in view.weights:
        for key, value in step.state_by_hand.items():
            assert step.state[key] == pytest.approx(value, rel=1e-9, abs=1e-18), (step.weight, key)
        if "step" in step.state:
            assert step.state["step"] == steps + 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", "w - r g"),
        ("sgd with all", "w - r ((g + d w) + mu m),  m = mu m + (g + d w)"),
        ("sgd damped", "w - r m,  m = mu m + (1 - damping) g"),
        ("adam", "w - r m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t),  g = g + d w"),
        ("adamw", "w - r d w - r m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)"),
    ],
)
def test_the_formula_shown_has_the_terms_that_the_settings_leave_in_it(name: str, expected: str) -> None:
    model = made()
    assert step_view(model, IDS, OPTIMIZERS[name](model.parameters())).summary()["formula"] == expected


def test_single_precision_keeps_only_the_digits_that_a_weight_has_left() -> None:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    view = step_view(model, IDS, optimizer, samples=400, double=False)
    off = view.check()
    assert view.precision == "float32" and off is not None and off <= 1e-6
    raw = [abs((step.update or 0) - step.change) / abs(step.change) for step in view.weights if step.change]
    assert 1e-6 < max(raw) < 1e-3  # most of it is the weight's own rounding


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_first_order_foretells_the_change_of_the_loss_of_a_small_step(name: str) -> None:
    model = made()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    view = step_view(model, IDS, kind(model.parameters(), lr=1e-5))
    assert view.change < 0 and view.predicted_change == pytest.approx(view.change, rel=0.05)


def test_plain_descent_foretells_minus_the_rate_times_the_gradients_square() -> None:
    view = step_view(made(), IDS, rate=1e-4)
    length = view.summary()["gradient_length"]
    assert view.predicted_change == pytest.approx(-1e-4 * length**2, rel=1e-9)
    assert view.optimizers == ("SGD",) and view.precision == "float64"


def snapshot(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    state = [v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    return [each.detach().clone() for each in [*model.parameters(), *state]]


def test_model_and_optimiser_stay_as_they_are_to_the_bit() -> None:
    model = made(dropout=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    walked(model, optimizer, 2)
    next(model.parameters()).grad = kept = torch.ones(29, 16)
    before = snapshot(model, [optimizer])
    settings = copy.deepcopy(optimizer.param_groups[0] | {"params": None})
    views = [step_view(model, IDS, optimizer) for _ in range(2)]
    assert all(a.equal(b) for a, b in zip(before, snapshot(model, [optimizer]), strict=True))
    assert optimizer.param_groups[0] | {"params": None} == settings and model.training
    assert next(model.parameters()).grad is kept and all(w.requires_grad for w in model.parameters())
    assert views[0].to_dict() == views[1].to_dict()  # the same seed shows the same


@pytest.mark.parametrize("name", ["sgd", "adamw", "adamw fused"])
def test_an_applied_step_is_the_one_shown_and_the_one_that_training_would_take(name: str) -> None:
    model, twin = made(), made()
    optimizer, other = (OPTIMIZERS[name](each.parameters()) for each in (model, twin))
    for each, its in ((model, optimizer), (twin, other)):
        walked(each, its, 2)
    twin.loss(IDS[:, :-1], IDS[:, 1:]).backward()
    other.step()
    view = step_view(model, IDS, optimizer, apply=True, samples=50)
    assert view.applied and view.precision == "float32"
    ours, theirs = snapshot(model, [optimizer]), snapshot(twin, [other])
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    weights = dict(model.named_parameters())
    for step in view.weights:
        tensor, _, index = step.weight.rstrip("]").partition("[")
        assert weights[tensor][tuple(map(int, index.split(",")))].item() == step.after
    assert all(weight.grad is None for weight in model.parameters())


def test_our_own_optimisers_show_what_they_remember_and_change() -> None:
    model = made()
    optimizers = build_optimizers(OptimizerConfig(kind="muon"), dict(model.named_parameters()))
    view = step_view(model, IDS, optimizers, weights=["blocks.0.attn.qkv.weight[1, 2]", "embed.weight[3, 4]"])
    matrix, embedding = view.weights
    assert view.optimizers == ("Muon", "AdamW")
    assert matrix.update is None and matrix.change and set(matrix.state) == {"momentum"}
    assert set(embedding.state) == {"m", "v", "step"} and (view.check() or 0) <= 1e-7
    assert len(view.tensors) == len(list(model.parameters()))
    real = copy.deepcopy(model).double()  # the same step, taken by hand on the outside
    its = build_optimizers(OptimizerConfig(kind="muon"), dict(real.named_parameters()))
    for state in (s for o in its for s in o.state.values()):
        state.update({k: v.double() for k, v in state.items() if k != "step"})
    real.loss(IDS[:, :-1], IDS[:, 1:]).backward()
    for each in its:
        each.step()
    assert matrix.after == real.get_parameter("blocks.0.attn.qkv.weight")[1, 2].item()


def test_each_targets_loss_is_told_and_their_mean_is_the_loss(loaded: Loaded) -> None:
    view = step_view(loaded, ["the cat", "sat"], rate=0.5)
    assert [row["target"] for row in view.targets] == [*"he cat", *"at"]
    for side, loss in (("before", view.loss_before), ("after", view.loss_after)):
        assert sum(row[side] for row in view.targets) / 8 == pytest.approx(loss, rel=1e-12)
    alone = step_view(loaded, "sat")  # the same two whether beside a longer text or not
    pairs = zip(view.targets[6:], alone.targets, strict=True)
    assert all(a["before"] == pytest.approx(b["before"], rel=1e-12) for a, b in pairs)
    summary = view.summary()
    assert summary["targets"] == 8
    assert summary["targets_worse"] == sum(row["after"] > row["before"] for row in view.targets)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


LESSONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "decoder": ({}, {"ids": IDS[:, :-1], "targets": IDS[:, 1:].clone(), "segments": None}),
    "encoder": ({"kind": "encoder", "head_transform": True},
                {"ids": IDS, "places": torch.tensor([[1, 3], [0, 5]]), "targets": torch.tensor([[4, 7], [9, -100]])}),
    "classes": ({"kind": "encoder", "head": "classes", "classes": 3},
                {"ids": IDS, "targets": torch.tensor([2, 0]), "segments": None}),
    "pair": ({"kind": "encoder-decoder"},
             {"source": IDS, "ids": IDS[:, :4], "targets": IDS[:, 1:5], "source_segments": torch.zeros_like(IDS)}),
}  # fmt: skip


@pytest.mark.parametrize("name", LESSONS)
def test_every_member_learns_from_what_its_loss_takes(name: str) -> None:
    changes, arrays = LESSONS[name]
    model = made(**changes)
    view = step_view(model, arrays, torch.optim.AdamW(model.parameters(), lr=1e-5))
    counted = int((arrays["targets"] != -100).sum())
    assert len(view.targets) == counted
    assert sum(row["before"] for row in view.targets) / counted == pytest.approx(view.loss_before, rel=1e-9)
    assert view.loss_before == pytest.approx(
        model.loss(**{k: v for k, v in arrays.items() if v is not None}).item(), rel=1e-5
    )
    assert view.predicted_change == pytest.approx(view.change, rel=0.05) and (view.check() or 0) <= 1e-7


def test_an_encoder_decoder_learns_to_write_its_target() -> None:
    view = step_view(made(kind="encoder-decoder"), [1, 2, 3], target=[4, 5, 6])
    assert [row["target"] for row in view.targets] == ["5", "6"] and view.change < 0


@pytest.mark.parametrize("head", ["distribution", "number", "scores"])
def test_a_plain_network_learns_from_rows_and_targets(head: str) -> None:
    network = Network(NetworkConfig(inputs=3, outputs=2, hidden=(5,), activation="tanh", head=head))
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets = [0, 1, 1, 0] if head == "distribution" else [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    view = step_view(network, (rows, targets), torch.optim.SGD(network.parameters(), lr=1e-5), samples=40)
    assert [row["target"] for row in view.targets] == ["0", "1", "2", "3"]
    assert sum(row["before"] for row in view.targets) / 4 == pytest.approx(view.loss_before, rel=1e-9)
    assert len(view.weights) == 32 and (view.check() or 0) <= 1e-7  # it has no more than 32
    assert view.predicted_change == pytest.approx(view.change, rel=0.05)


def test_hidden_layers_behind_a_step_do_not_move_since_nothing_says_where_to() -> None:
    network = Network(NetworkConfig(inputs=3, outputs=2, hidden=(5,), activation="step"))
    network.requires_grad_(False)  # as gf.load_network gives it
    adamw = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    view = step_view(network, (torch.ones(1, 3), [0]), adamw)
    assert [row["tensor"] for row in view.tensors] == ["head.weight", "head.bias"]


def test_what_was_frozen_in_part_stays_and_cannot_be_asked_for() -> None:
    model = made()
    model.embed.requires_grad_(False)
    view = step_view(model, IDS)
    assert "embed.weight" not in [row["tensor"] for row in view.tensors]
    with pytest.raises(UsageError, match=r"changes no weight 'embed.weight'"):
        step_view(model, IDS, weights="embed.weight[0, 0]")


def test_weights_are_named_or_drawn_from_as_many_tensors_as_there_are() -> None:
    model = made()
    tensors = [name for name, _ in model.named_parameters()]
    view = step_view(model, IDS, samples=len(tensors))
    assert [step.weight.partition("[")[0] for step in view.weights] == tensors
    assert step_view(model, IDS, seed=1).rows() != step_view(model, IDS).rows()
    drawn = step_view(model, IDS, weights=["norm.weight[3]", "blocks.*.mlp.up.weight"], samples=4).weights
    assert drawn[0].weight == "norm.weight[3]" and len(drawn) == 5
    assert [each.weight[:22] for each in drawn[1::2]] == ["blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight"]


def test_what_makes_no_sense_is_refused_in_words() -> None:
    model = made()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    refused: list[tuple[str, dict[str, Any]]] = [
        (r"no entry \[3,99\].*\[72, 16\]|no entry \[3,99\]", {"weights": "blocks.0.mlp.up.weight[3,99]"}),
        (r"no entry \[1\]", {"weights": "embed.weight[1]"}),
        (r"'blocks.0.mlp.op.weight'.*mlp.up", {"weights": "blocks.0.mlp.op.weight"}),
        ("`samples` has no effect", {"weights": "norm.weight[0]", "samples": 3}),
        ("`rate` has no effect", {"optimizer": sgd, "rate": 0.1}),
        ("own precision", {"apply": True, "double": True}),
        ("are not the model's", {"optimizer": torch.optim.SGD(made().parameters(), lr=0.1)}),
        ("in two optimizers", {"optimizer": [sgd, torch.optim.SGD(model.parameters(), lr=0.1)]}),
    ]
    for message, settings in refused:
        with pytest.raises(UsageError, match=message):
            step_view(model, IDS, **settings)
    with pytest.raises(UsageError, match="no next one"):
        step_view(model, [1])
    with pytest.raises(UsageError, match=r"no lesson.*'encoder'.*by name"):
        step_view(made(kind="encoder"), IDS)
    with pytest.raises(UsageError, match="needs 'targets'"):
        step_view(model, {"ids": IDS})
    with pytest.raises(UsageError, match=r"\(rows, targets\)"):
        step_view(Network(NetworkConfig(inputs=3, outputs=2)), torch.ones(1, 3))


def test_the_picture_has_a_bar_for_each_target_even_where_texts_repeat() -> None:
    view = step_view(made(), [3, 3, 3, 3, 3], rate=0.1)
    bars = view.chart()["data"]["values"]
    assert len({bar["target"] for bar in bars}) == 4
    assert [bar["change"] for bar in bars] == [row["change"] for row in view.targets]
    assert all((bar["became"] == "worse") == (bar["change"] > 0) for bar in bars)
