"""The plain network: its formulas by hand, its gradients by finite differences, its places and its cost."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from glassformer import configs
from glassformer.errors import ConfigError, ModelError
from glassformer.model.mlp import Network, step
from glassformer.model.network import (
    NETWORK_PLACES,
    STEP_WARNING,
    Head,
    NetworkActivation,
    NetworkConfig,
    flops_per_row,
    network_places,
    parameters,
    shapes,
)

ACTIVATIONS = get_args(NetworkActivation)
HEADS = get_args(Head)


def small(**changes: object) -> NetworkConfig:
    given = {"inputs": 5, "outputs": 3, "hidden": (7, 4), "activation": "tanh", **changes}
    return NetworkConfig.model_validate(given)


def problem(config: NetworkConfig, rows: int = 6) -> tuple[Network, Tensor, Tensor]:
    """A network in float64 and random rows with targets for its head."""
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(rows, config.widths[0], generator=stream, dtype=torch.float64)
    targets = {
        "distribution": torch.randint(0, config.widths[-1], (rows,), generator=stream),
        "number": torch.randn(rows, config.widths[-1], generator=stream, dtype=torch.float64),
        "scores": torch.randint(0, 2, (rows, config.widths[-1]), generator=stream).double(),
    }
    return Network(config, seed=3).double(), x, targets[config.head]


class Keep(dict[str, Tensor]):
    """A `see` that records every place."""

    def __call__(self, name: str, y: Tensor, /) -> Tensor:
        self[name] = y
        return y


@pytest.mark.parametrize("seed", range(5))
def test_stacked_layers_without_activation_equal_one_matrix(seed: int) -> None:
    network = Network(small(hidden=(7, 9, 4), activation="none"), seed=seed).double()
    for bias in (p for p in network.parameters() if p.ndim == 1):
        torch.nn.init.normal_(bias)
    matrix, offset = torch.eye(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for layer in [*network.layers, network.head]:
        matrix, offset = layer.weight @ matrix, layer.weight @ offset + layer.bias
    x = torch.randn(50, 5, dtype=torch.float64)
    assert torch.allclose(network.scores(x), x @ matrix.T + offset, rtol=0, atol=1e-12)
    other = Network(small(hidden=(7, 9, 4)), seed=seed).double()  # with tanh no matrix does
    x = torch.randn(50, 5, dtype=torch.float64)
    y = other.scores(x)
    assert (x @ torch.linalg.lstsq(x, y).solution - y).abs().max() > 1e-3


def test_a_network_of_two_neurons_is_what_pencil_and_paper_say() -> None:
    network = Network(NetworkConfig(inputs=2, outputs=1, hidden=(2,), activation="relu", head="number"))
    values = [[[1.0, -1.0], [2.0, 0.5]], [0.5, -4.0], [[3.0, 10.0]], [0.25]]
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.data = torch.tensor(value)
    seen = Keep()
    # sums: 1 - 2 + 0.5 = -0.5 and 2 + 1 - 4 = -1 for (1, 2); 3 - 1 + 0.5 = 2.5 and 6 + 0.5 - 4 = 2.5 for (3, 1)
    found = network(torch.tensor([[1.0, 2.0], [3.0, 1.0]]), see=seen)
    assert seen["layers.0.pre"].tolist() == [[-0.5, -1.0], [2.5, 2.5]]
    assert seen["layers.0.post"].tolist() == [[0.0, 0.0], [2.5, 2.5]]
    assert found.tolist() == [[0.25], [0.25 + 7.5 + 25.0]]


def test_the_activations_are_their_formulas() -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    formulas = {
        "none": x,
        "step": torch.heaviside(x, torch.zeros((), dtype=torch.float64)),
        "sigmoid": 1 / (1 + torch.exp(-x)),
        "tanh": (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
        "relu": torch.maximum(x, torch.zeros_like(x)),
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2,
    }
    for name in ACTIVATIONS:
        network = Network(small(inputs=1, outputs=2, hidden=(1,), activation=name)).double()
        network.layers[0].weight.data.fill_(1.0)
        seen = Keep()
        network(x[:, None], see=seen)
        assert torch.allclose(seen["layers.0.post"][:, 0], formulas[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("relu", "step")])
def test_every_gradient_is_a_finite_difference(activation: str, head: str) -> None:
    network, x, targets = problem(small(activation=activation, head=head))
    network.loss(inputs=x, targets=targets).backward()
    for name, weight in network.named_parameters():
        flat, gradient = weight.data.view(-1), weight.grad.view(-1)
        for index in range(len(flat)):
            value, losses = flat[index].item(), []
            for moved in (value + 1e-5, value - 1e-5):
                flat[index] = moved
                losses.append(network.loss(inputs=x, targets=targets).item())
            flat[index] = value
            assert gradient[index].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-8), name


def test_relus_gradient_is_a_finite_difference_away_from_its_corner() -> None:
    network, x, targets = problem(small(activation="relu"))
    seen = Keep()
    network(x, see=seen)
    assert min(seen[f"layers.{n}.pre"].abs().min().item() for n in range(2)) > 1e-4
    parameters = tuple(network.parameters())

    def loss(*_: Tensor) -> Tensor:
        return network.loss(inputs=x, targets=targets)

    assert torch.autograd.gradcheck(loss, parameters, eps=1e-6, atol=1e-7)


def test_the_steps_gradient_is_exactly_zero_so_only_the_output_layer_learns() -> None:
    x = torch.tensor([-1e30, -1.0, -0.0, 0.0, 1e-30, 2.0], requires_grad=True)
    y = step(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 0, 1, 1] and x.grad.tolist() == [0.0] * 6
    network, inputs, targets = problem(small(activation="step"))
    network.loss(inputs=inputs, targets=targets).backward()
    for name, weight in network.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == name.startswith("head."), name


def test_settings_that_hinder_learning_are_said() -> None:
    assert small(activation="step").warnings == (STEP_WARNING,)
    assert "one matrix" in small(activation="none").warnings[0]
    assert small(activation="relu").warnings == small(hidden=(), activation="relu").warnings == ()


@pytest.mark.parametrize("head", HEADS)
def test_losses_are_torchs_own_and_add_up_over_micro_batches(head: str) -> None:
    network, x, targets = problem(small(head=head), rows=8)
    scores = network.scores(x)
    torchs = {
        "distribution": F.cross_entropy,
        "number": F.mse_loss,
        "scores": F.binary_cross_entropy_with_logits,
    }
    whole = network.loss(inputs=x, targets=targets)
    assert whole.item() == pytest.approx(torchs[head](scores, targets).item(), abs=1e-14)
    parts = [network.loss(inputs=x[r], targets=targets[r], num_targets=8) for r in (slice(3), slice(3, 8))]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-14)


def test_label_smoothing_moves_the_best_score_to_a_finite_place() -> None:
    """A yes with smoothing e is best scored at log((1 - e/2) / (e/2)): there the gradient is zero."""
    network = Network(NetworkConfig(inputs=1, outputs=1, hidden=(), head="scores")).double()
    network.head.weight.data.zero_()
    network.head.bias.data.fill_(torch.log(torch.tensor(0.95 / 0.05)).item())
    one = torch.ones(1, 1, dtype=torch.float64)
    network.loss(inputs=one, targets=one, label_smoothing=0.1).backward()
    assert network.head.bias.grad.item() == pytest.approx(0.0, abs=1e-7)
    network, x, targets = problem(small())
    found = network.loss(inputs=x, targets=targets, label_smoothing=0.2).item()
    assert found == pytest.approx(F.cross_entropy(network.scores(x), targets, label_smoothing=0.2).item())


@pytest.mark.parametrize("head", HEADS)
def test_a_loss_of_bfloat16_weights_is_summed_in_float32(head: str) -> None:
    network, x, targets = problem(small(head=head))
    found = network.bfloat16().loss(inputs=x.bfloat16(), targets=targets)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        network.float().loss(inputs=x.float(), targets=targets).item(), rel=0.02
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what its compiler loads
def test_the_loss_compiles_whole() -> None:
    network, x, targets = problem(small())
    compiled = torch.compile(network.loss, fullgraph=True, backend="aot_eager")
    given = {"inputs": x, "targets": targets, "num_targets": torch.tensor(6)}
    assert compiled(**given).item() == pytest.approx(network.loss(**given).item(), abs=1e-14)


def test_a_class_of_minus_100_carries_no_loss() -> None:
    network, x, targets = problem(small(), rows=4)
    padded = torch.cat([targets, torch.tensor([-100, -100])])
    rows = torch.cat([x, torch.ones(2, 5, dtype=torch.float64)])
    found = network.loss(inputs=rows, targets=padded)
    assert found.item() == pytest.approx(network.loss(inputs=x, targets=targets).item(), abs=1e-14)


@pytest.mark.parametrize(
    ("head", "setting"), [("number", "label_smoothing"), ("number", "z_loss"), ("scores", "z_loss")]
)
def test_a_loss_setting_without_effect_is_refused(head: str, setting: str) -> None:
    network, x, targets = problem(small(head=head))
    with pytest.raises(ModelError, match=f"{setting} 0.1 has no effect"):
        network.loss(inputs=x, targets=targets, **{setting: 0.1})


@given(
    hidden=st.lists(st.integers(1, 9), max_size=4), sizes=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    activation=st.sampled_from(ACTIVATIONS), head=st.sampled_from(HEADS), rows=st.integers(1, 5),
    training=st.booleans(),
)  # fmt: skip
def test_shapes_parameters_and_flops_are_torchs(hidden, sizes, activation, head, rows, training) -> None:
    config = NetworkConfig(
        inputs=sizes[0], outputs=sizes[1], hidden=tuple(hidden), head=head,
        activation=activation if hidden else "relu",
    )  # fmt: skip
    network, x, targets = problem(config, rows)
    assert list(shapes(config).items()) == [(n, tuple(p.shape)) for n, p in network.named_parameters()]
    assert parameters(config) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        loss = network.loss(inputs=x, targets=targets)
        if training:
            loss.backward()
    assert counter.get_total_flops() == rows * flops_per_row(config, training=training)


@pytest.mark.parametrize("head", HEADS)
def test_every_place_is_seen_once_in_order_with_its_axes_and_may_be_replaced(head: str) -> None:
    config = small(head=head)
    network, x, _ = problem(config)
    seen = Keep()
    assert network(x, see=seen).equal(network(x))
    assert list(seen) == network_places(config)
    sizes = {"row": {6}, "input": {5}, "neuron": {7, 4}, "output": {3}}
    for name, y in seen.items():
        general = name.replace(".0.", ".{layer}.").replace(".1.", ".{layer}.")
        (place,) = [place for place in NETWORK_PLACES if place.name == general]
        assert all(size in sizes[axis] for axis, size in zip(place.axes, y.shape, strict=True))
        changed = network(x, see=lambda here, y, name=name: y * 2 if here == name else y)
        assert not changed.equal(network(x)), name


def test_starting_weights_follow_the_stated_rule_and_each_tensor_its_own_stream() -> None:
    wide = {"inputs": 300, "hidden": (400, 200), "outputs": 100}
    for activation, spreads in {
        "relu": [(2 / 300), (2 / 400), 2 / 300],
        "tanh": [2 / 700, 2 / 600, 2 / 300],
    }.items():
        network = Network(small(**wide, activation=activation))
        weights = [layer.weight for layer in [*network.layers, network.head]]
        for weight, spread in zip(weights, spreads, strict=True):
            assert weight.std().item() == pytest.approx(spread**0.5, rel=0.03)
        assert not any(layer.bias.any() for layer in [*network.layers, network.head])
    one, same, other = (Network(small(**wide), seed=seed) for seed in (0, 0, 1))
    assert one.head.weight.equal(same.head.weight) and not one.head.weight.equal(other.head.weight)
    longer = Network(small(**{**wide, "hidden": (400, 200, 200)}))
    assert longer.layers[0].weight.equal(one.layers[0].weight)


def test_dropout_acts_in_training_only() -> None:
    network = Network(small(hidden=(4000,), dropout=0.25, activation="sigmoid"))
    x = torch.zeros(1, 5)
    network.head.weight.data.fill_(1.0)
    assert network.eval().scores(x)[0, 0].item() == pytest.approx(2000)
    network.train()
    found = network.scores(x)[0, 0].item()
    assert found != 2000 and found == pytest.approx(2000, rel=0.1)


def test_all_wrong_settings_are_reported_at_once() -> None:
    given = {"hidden": [], "activation": "tanh", "dropout": 0.1, "outputs": 1, "layers": 3}
    with pytest.raises(ConfigError) as caught:
        configs.build(NetworkConfig, given, origin="The recipe")
    text = str(caught.value)
    assert all(word in text for word in ("activation tanh has no", "dropout 0.1 has no", "always certain"))
    assert "layers" in text
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        configs.build(NetworkConfig, {"hidden": [4, 0]}, origin="The recipe")


def test_rows_and_targets_that_do_not_fit_are_refused() -> None:
    network, x, _ = problem(small(head="number"))
    with pytest.raises(ModelError, match="reads 5 numbers a row"):
        network(x[:, :4])
    with pytest.raises(ModelError, match="number for each output"):
        network.loss(inputs=x, targets=x[:, :2])
    with pytest.raises(ModelError, match="come from the data"):
        Network(NetworkConfig())


def test_settings_places_and_counts_need_no_torch() -> None:
    code = "import sys, glassformer.model.network; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
