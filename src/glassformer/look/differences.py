"""Is the gradient right? The same number from the loss alone, by changing one weight a little to either side.

    d L / d w  ~  D(h) = (L(w + h) - L(w - h)) / 2h        off by h^2 L'''/6, and by rounding / h

Plain D(1e-5) in float64 leaves some 1e-10 of rounding, which is too much where a gradient itself is near 1e-6.
Ridders' method (1982) therefore takes D for several h, each half of the one before, and extrapolates to h = 0:

    D_0k = D(h_k)        D_jk = (4^j D_(j-1)k - D_(j-1)(k-1)) / (4^j - 1)

and keeps the D_jk that agrees best with its neighbours. It never looks at the gradient that it is compared with.

The weights to test are drawn from every tensor in turn: of each first one whose gradient is not 0, then any. The
model is not changed: one entry of a copy in float64 is, and put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.seeds import generator

SMALL = 1e-6
"""Gradients up to here are compared absolutely, larger ones relative to their size."""
RELATIVE, ABSOLUTE = 1e-5, 1e-8
"""What is still called right."""
_STEP, _STEPS = 2e-3, 6
"""The first h, in units of max(1, |w|), and at most how many, each half of the one before."""
_ENOUGH = RELATIVE / 100
"""A derivative that agrees with its neighbours this well, relative to itself, is not refined."""


@dataclass(frozen=True, slots=True)
class Differences:
    """One row for each weight that was tested, the worst first."""

    tested: tuple[dict[str, Any], ...]
    num_tensors: int

    def rows(self) -> list[dict[str, Any]]:
        """`weight`, `index`, `gradient` (autograd), `difference` (from the loss alone), `error` (relative where the
        gradient is above 1e-6, else absolute), `right`."""
        return list(self.tested)

    @property
    def right(self) -> bool:
        """Whether every one is: relative error at most 1e-5 where |g| > 1e-6, absolute at most 1e-8 elsewhere."""
        return all(row["right"] for row in self.tested)

    @property
    def worst(self) -> dict[str, float]:
        """The largest error of each kind, 0 where no weight fell under it."""
        large = [row["error"] for row in self.tested if abs(row["gradient"]) > SMALL]
        small = [row["error"] for row in self.tested if abs(row["gradient"]) <= SMALL]
        return {"relative": max(large, default=0.0), "absolute": max(small, default=0.0)}

    @property
    def verdict(self) -> str:
        """In one sentence."""
        worst, wrong = self.worst, sum(not row["right"] for row in self.tested)
        where = self.tested[0]
        found = f"{wrong} of {len(self.tested)} gradients are wrong" if wrong else "The gradients are right"
        return (
            f"{found}: {len(self.tested)} weights of all {self.num_tensors} tensors against finite differences, worst "
            f"relative error {worst['relative']:.1e} (absolute {worst['absolute']:.1e} where |g| <= {SMALL:g}), at "
            f"{where['weight']}{where['index']}."
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "right": self.right,
            "num_weights": len(self.tested),
            "num_tensors": self.num_tensors,
            "worst": self.worst,
            "tested": self.rows(),
        }


def compare_with_differences(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    samples: int = 200,
    seed: int = 0,
) -> Differences:
    """Hold `gradients` against differences of `loss(weights)`, a number in float64 that must not have side effects.
    At least `samples` weights are tested, and at least one of every tensor."""
    if wrong := sorted({str(w.dtype) for w in weights.values()} - {"torch.float64"}):
        raise UsageError(f"The weights are {', '.join(wrong)}.", expected="Differences need float64.")
    changed = {name: weight.detach().clone() for name, weight in weights.items()}
    tested = []
    with torch.no_grad():
        for name, index in _drawn(gradients, samples, seed):
            weight = changed[name]
            start = float(weight[index])

            def at(value: float, weight: Tensor = weight, index: tuple[int, ...] = index) -> float:
                weight[index] = value
                return float(loss(changed))

            difference = _ridders(at, start)
            weight[index] = start
            tested.append(_compared(name, index, float(gradients[name][index]), difference))
    tested.sort(key=lambda row: -row["error"] / (RELATIVE if abs(row["gradient"]) > SMALL else ABSOLUTE))
    return Differences(tuple(tested), len(weights))


def _compared(name: str, index: Sequence[int], gradient: float, difference: float) -> dict[str, Any]:
    large = abs(gradient) > SMALL
    error = abs(gradient - difference) / (max(abs(gradient), abs(difference)) if large else 1)
    error = error if math.isfinite(error) else math.inf
    return {
        "weight": name,
        "index": list(index),
        "gradient": gradient,
        "difference": difference,
        "error": error,
        "right": error <= (RELATIVE if large else ABSOLUTE),
    }


def _ridders(loss: Callable[[float], float], start: float) -> float:
    """The derivative at `start` by extrapolation to h = 0 (Press et al., Numerical Recipes, 5.7)."""
    h = _STEP * max(1.0, abs(start))
    best, least = math.nan, math.inf
    before: list[float] = []
    for _ in range(_STEPS):
        high, low = start + h, start - h  # as they are in float64
        row = [(loss(high) - loss(low)) / (high - low)]
        for j, previous in enumerate(before, start=1):
            row.append((4**j * row[j - 1] - previous) / (4**j - 1))
            error = max(abs(row[j] - row[j - 1]), abs(row[j] - previous))
            if error < least:
                best, least = row[j], error
        if least <= _ENOUGH * max(abs(best), SMALL):
            break
        before, h = row, h / 2
    return best


def _drawn(gradients: Mapping[str, Tensor], samples: int, seed: int) -> list[tuple[str, tuple[int, ...]]]:
    """Weights of every tensor in turn until there are `samples`, none twice."""
    orders = {name: _order(name, gradient, samples, seed) for name, gradient in gradients.items()}
    found: list[tuple[str, tuple[int, ...]]] = []
    turn = 0
    while turn == 0 or (len(found) < samples and any(turn < len(order) for order in orders.values())):
        for name, order in orders.items():
            if turn < len(order):
                index = np.unravel_index(int(order[turn]), tuple(gradients[name].shape))
                found.append((name, tuple(int(i) for i in index)))
        turn += 1
    return found


def _order(name: str, gradient: Tensor, most: int, seed: int) -> list[int]:
    """A tensor's entries in the order they are drawn: one with a gradient, then any one, and so on."""
    rng = generator(seed, "differences", name)
    flat = gradient.detach().flatten()
    alive = (flat.abs() > SMALL).nonzero()[:, 0].cpu().numpy()
    any_one = rng.choice(len(flat), min(most, len(flat)), replace=False)
    chosen = rng.choice(alive, min(most, len(alive)), replace=False)
    mixed = [int(i) for pair in zip(chosen, any_one, strict=False) for i in pair]
    return list(dict.fromkeys([*mixed, *map(int, chosen), *map(int, any_one)]))[:most]
