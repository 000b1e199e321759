"""Every optimiser against its formula, written out here in NumPy, or against torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.train.config import OptimizerConfig
from glassformer.train.optimizers import (
    Muon,
    build_optimizers,
    orthogonal,
    restore_state,
    set_rates,
    state_tensors,
)

KINDS = list(get_args(OptimizerConfig.model_fields["kind"].annotation))
SHAPES = {
    "embed.weight": (7, 5),
    "blocks.0.attn.q.weight": (4, 6),
    "blocks.0.mlp.up.weight": (8, 4),
    "ln.weight": (5,),
}
RATES = [0.25, 1.0, 0.5, 0.1, 0.75, 1.0]
"""The schedule's factor at each step."""
Array = NDArray[np.float64]
Rule = Callable[[Array, Array, float, int, dict[str, Array]], Array]
"""`rule(weight, gradient, rate, step from 1, state) -> weight`"""


def start() -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def go(
    optimizers: list[torch.optim.Optimizer], weights: dict[str, nn.Parameter], steps: Iterator[int] | range
) -> None:
    for step in steps:
        for name, gradient in gradients(step).items():
            weights[name].grad = gradient
        set_rates(optimizers, RATES[step % len(RATES)])
        for optimizer in optimizers:
            optimizer.step()


def config(**settings: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"learning_rate": 0.01, **settings})


def decay_of(w: Array) -> float:
    return 0.1 if w.ndim == 2 else 0.0


def sgd(w: Array, g: Array, r: float, t: int, s: dict[str, Array]) -> Array:
    s["m"] = 0.9 * s.get("m", np.zeros_like(w)) + g + decay_of(w) * w
    return w - r * s["m"]


def adam(w: Array, g: Array, r: float, t: int, s: dict[str, Array], decoupled: bool = False) -> Array:
    if not decoupled:
        g = g + decay_of(w) * w
    s["m"] = 0.9 * s.get("m", np.zeros_like(w)) + 0.1 * g
    s["v"] = 0.95 * s.get("v", np.zeros_like(w)) + 0.05 * g**2
    moved = (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.95**t)) + 1e-8)
    return w * (1 - r * decay_of(w) * decoupled) - r * moved


def adamw(w: Array, g: Array, r: float, t: int, s: dict[str, Array]) -> Array:
    return adam(w, g, r, t, s, decoupled=True)


def lion(w: Array, g: Array, r: float, t: int, s: dict[str, Array]) -> Array:
    m = s.get("m", np.zeros_like(w))
    s["m"] = 0.95 * m + 0.05 * g
    return w - r * (np.sign(0.9 * m + 0.1 * g) + decay_of(w) * w)


def adafactor(w: Array, g: Array, r: float, t: int, s: dict[str, Array]) -> Array:
    """Shazeer and Stern, algorithms 4 and 5, with the step relative to the weight's own size."""
    keep = 1 - t**-0.8
    size = max(1e-3, np.sqrt((w**2).mean()))
    w = w * (1 - r * decay_of(w))
    if w.ndim == 2:
        s["row"] = keep * s.get("row", np.zeros(w.shape[0])) + (1 - keep) * (g**2).mean(1)
        s["column"] = keep * s.get("column", np.zeros(w.shape[1])) + (1 - keep) * (g**2).mean(0)
        v = np.outer(s["row"], s["column"]) / s["row"].mean()
    else:
        v = s["v"] = keep * s.get("v", np.zeros_like(w)) + (1 - keep) * g**2
    moved = g / np.sqrt(v)
    moved /= max(1.0, np.sqrt((moved**2).mean()))
    return w - min(r, t**-0.5) * size * moved


@pytest.mark.parametrize("rule", [sgd, adam, adamw, lion, adafactor])
def test_an_optimiser_follows_its_formula_and_decays_matrices_only(rule: Rule) -> None:
    weights = start()
    by_hand = {name: w.detach().double().numpy().copy() for name, w in weights.items()}
    go(build_optimizers(config(kind=rule.__name__, momentum=0.9), weights), weights, range(6))
    states: dict[str, dict[str, Array]] = {name: {} for name in weights}
    for step in range(6):
        for name, gradient in gradients(step).items():
            g = gradient.double().numpy()
            by_hand[name] = rule(by_hand[name], g, 0.01 * RATES[step], step + 1, states[name])
    for name, w in weights.items():
        np.testing.assert_allclose(w.detach().numpy(), by_hand[name], rtol=2e-5, atol=2e-6)


def test_muon_moves_matrices_as_torchs_own_muon_does() -> None:
    weights = start()
    theirs = {
        name: nn.Parameter(w.detach().clone()) for name, w in weights.items() if name.startswith("blocks")
    }
    optimizer = torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.95)
    go([optimizer], theirs | {k: w for k, w in start().items() if k not in theirs}, range(6))
    go(build_optimizers(config(kind="muon", matrix_learning_rate=0.02), weights), weights, range(6))
    for name, w in theirs.items():  # each computes five products of bfloat16, in another order
        assert (weights[name] - w).abs().max() < 0.02 * sum(RATES) * 0.02


def test_muon_leaves_what_is_not_a_blocks_matrix_to_adamw() -> None:
    one, other = start(), start()
    go(build_optimizers(config(kind="muon"), one), one, range(4))
    go(build_optimizers(config(kind="adamw"), other), other, range(4))
    for name in SHAPES:
        assert torch.equal(one[name], other[name]) != name.startswith("blocks")


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 32), (3, 32, 8), (4, 1, 7)])
def test_orthogonal_keeps_the_directions_and_makes_all_singular_values_near_one(
    shape: tuple[int, ...],
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = orthogonal(matrices).float()
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    stretched = u.mT @ found @ v.mT  # diagonal where the singular vectors are the same
    diagonal = stretched.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.5 and diagonal.max() < 1.3
    assert (stretched - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_orthogonal_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "model", [{}, {"layers": 0}, {"norm": "layernorm", "bias": True, "qk_norm": True, "tied": False}]
)
def test_every_weight_belongs_to_exactly_one_optimiser_and_only_matrices_decay(
    kind: str, model: dict[str, Any]
) -> None:
    small = ModelConfig.model_validate(
        {"vocab": 11, "width": 8, "layers": 2, "heads": 2, "context": 4, **model}
    )
    weights = dict(build(small).named_parameters())
    optimizers = build_optimizers(config(kind=kind), weights)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [id(w) for group in groups for w in group["params"]]
    assert sorted(owned) == sorted(map(id, weights.values()))
    for group in groups:
        assert all((group["weight_decay"] > 0) == (w.ndim >= 2) for w in group["params"])
    if kind == "muon":
        hidden = {
            id(w)
            for o in optimizers
            if isinstance(o, Muon)
            for group in o.param_groups
            for w in group["params"]
        }
        wanted = {id(w) for name, w in weights.items() if w.ndim == 2 and name.startswith("blocks.")}
        assert hidden == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_optimiser_remembers_survives_a_save_to_the_bit(kind: str) -> None:
    weights = start()
    optimizers = build_optimizers(config(kind=kind), weights)
    go(optimizers, weights, range(3))
    saved = {name: tensor.clone() for name, tensor in state_tensors(optimizers, weights).items()}
    assert saved and all(name.rpartition(".")[0] in SHAPES for name in saved)
    again = {name: nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    resumed = build_optimizers(config(kind=kind), again)
    restore_state(resumed, again, saved)
    go(optimizers, weights, range(3, 6))
    go(resumed, again, range(3, 6))
    assert all(torch.equal(weights[name], again[name]) for name in SHAPES)
    one, other = state_tensors(optimizers, weights), state_tensors(resumed, again)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_comes_from_the_disk_goes_to_the_weights_own_device() -> None:
    weights = start()
    optimizers = build_optimizers(config(kind="lion"), weights)
    go(optimizers, weights, range(1))
    elsewhere = {name: nn.Parameter(w.detach().to("meta")) for name, w in weights.items()}
    resumed = build_optimizers(config(kind="lion"), elsewhere)
    restore_state(resumed, elsewhere, state_tensors(optimizers, weights))
    assert all(value.device.type == "meta" for value in state_tensors(resumed, elsewhere).values())


def test_rates_are_always_a_factor_of_the_recipes_own() -> None:
    weights = start()
    optimizers = build_optimizers(config(kind="muon", matrix_learning_rate=0.5, learning_rate=0.25), weights)
    for factor in (0.5, 0.1, 1.0):
        set_rates(optimizers, factor)
        assert [group["lr"] for o in optimizers for group in o.param_groups] == pytest.approx(
            [0.5 * factor, 0.25 * factor, 0.25 * factor]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_asks_for_no_gradient_stays_as_it_is_and_does_not_decay(kind: str) -> None:
    weights = start()
    for name in ("embed.weight", "blocks.0.attn.q.weight"):
        weights[name].requires_grad_(False)
    before = {name: w.detach().clone() for name, w in weights.items()}
    go(build_optimizers(config(kind=kind, weight_decay=0.5), weights), weights, range(3))
    assert [name for name, w in weights.items() if torch.equal(w, before[name])] == [
        "embed.weight",
        "blocks.0.attn.q.weight",
    ]


def test_muon_updates_the_matrices_of_a_plain_networks_hidden_layers() -> None:
    network = Network(NetworkConfig(inputs=3, outputs=2, hidden=(4, 4)))
    muon, adamw = build_optimizers(config(kind="muon"), dict(network.named_parameters()))
    inside = [layer.weight for layer in network.layers]
    assert isinstance(muon, Muon) and all(
        a is b for a, b in zip(muon.param_groups[0]["params"], inside, strict=True)
    )
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4  # head, and three biases
