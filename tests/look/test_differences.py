"""Gradients against finite differences, for every kind of model; and a wrong gradient is found."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from blame_models import FAMILY, IDS, NETWORKS, ROWS, TARGETS, member, network
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.look.blame import check_gradients
from glassformer.look.differences import Differences, compare_with_differences
from glassformer.look.per_token import PerToken


def holds_for_every_tensor(found: Differences, names: set[str]) -> None:
    """L15: relative error at most 1e-5 where |g| > 1e-6, absolute at most 1e-8 elsewhere."""
    assert found.right and len(found.tested) >= 200
    assert {row["weight"] for row in found.rows()} == names and found.num_tensors == len(names)
    for row in found.rows():
        error = abs(row["gradient"] - row["difference"])
        if abs(row["gradient"]) > 1e-6:
            assert error <= 1e-5 * abs(row["gradient"]) * 1.0001, row
        else:
            assert error <= 1e-8, row
    assert sum(abs(row["gradient"]) > 1e-6 for row in found.tested) > 100  # most have something to compare


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_of_every_tensor_are_those_of_finite_differences(name: str) -> None:
    model = member(name, torch.float32)  # the check makes its own copy in float64
    found = check_gradients(PerToken.of(model, IDS, target=TARGETS.get(name)))
    holds_for_every_tensor(found, {each for each, _ in model.named_parameters()})


@pytest.mark.parametrize("head", NETWORKS)
def test_so_are_those_of_a_plain_network(head: str) -> None:
    model = network(head, torch.float32)
    found = check_gradients(PerToken.of(model, ROWS, target=NETWORKS[head]), samples=90)
    assert found.right and {row["weight"] for row in found.tested} == {
        name for name, _ in model.named_parameters()
    }


def cubes(weights: Mapping[str, Tensor]) -> Tensor:
    return weights["a"].pow(3).sum() + 5 * weights["b"].sin().sum() + weights["idle"].sum() * 0


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((4, 5), (7,), (2, 2))]
    return dict(zip(("a", "b", "idle"), draw, strict=True))


def test_a_known_derivative_is_met_to_ten_digits_and_nothing_is_changed(weights: dict[str, Tensor]) -> None:
    before = {name: weight.clone() for name, weight in weights.items()}
    gradients = {"a": 3 * weights["a"] ** 2, "b": 5 * weights["b"].cos(), "idle": torch.zeros(2, 2)}
    found = compare_with_differences(cubes, weights, gradients, samples=31)
    assert found.right and len(found.tested) == 31 and found.worst["relative"] < 1e-8
    assert all(weight.equal(before[name]) for name, weight in weights.items())
    indexed = {(row["weight"], tuple(row["index"])) for row in found.tested}
    assert len(indexed) == 31  # every weight once


def test_one_wrong_gradient_is_found_and_named(weights: dict[str, Tensor]) -> None:
    gradients = {"a": 3 * weights["a"] ** 2, "b": 5 * weights["b"].cos(), "idle": torch.zeros(2, 2)}
    gradients["b"][3] *= 1 + 1e-4
    found = compare_with_differences(cubes, weights, gradients, samples=31)
    assert not found.right and [
        (row["weight"], row["index"]) for row in found.tested if not row["right"]
    ] == [("b", [3])]
    assert "1 of 31 gradients are wrong" in found.verdict and "b[3]" in found.verdict
    assert found.to_dict()["tested"][0]["weight"] == "b"
    gradients["idle"][0, 0] = 1e-7  # wrong by more than 1e-8 where nothing should be
    assert not compare_with_differences(cubes, weights, gradients, samples=31).rows()[1]["right"]


def test_a_gradient_that_is_no_number_is_wrong(weights: dict[str, Tensor]) -> None:
    gradients = {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}
    assert not compare_with_differences(cubes, weights, gradients, samples=3).right


def test_float32_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UsageError, match="need float64"):
        compare_with_differences(cubes, {name: each.float() for name, each in weights.items()}, weights)
