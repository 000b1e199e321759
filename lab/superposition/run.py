"""Five features in two dimensions: what a model keeps when it has more to remember than room (claim.md).

    h = W x        x' = ReLU(W^T h + b)        loss = mean over rows of sum_i I_i (x_i - x'_i)^2

x has n = 5 features, each 0 with probability S and else uniform in [0, 1]; W is 2 x 5, so column i is the
direction that stands for feature i; importance I_i = 0.9^i (Elhage et al. 2022, Toy Models of Superposition).

    python lab/superposition/run.py          writes result.json and superposition.svg beside this file
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer import charts

FEATURES, DIMENSIONS, MODELS = 5, 2, 8
HERE = Path(__file__).parent


def train(sparsity: float, *, seed: int = 0, steps: int = 3000, rows: int = 512) -> tuple[Tensor, float]:
    """(W of the best of MODELS starts (dimension, feature), its loss). The starts are trained side by side."""
    draw = torch.Generator().manual_seed(seed)
    weights = (torch.randn(MODELS, DIMENSIONS, FEATURES, generator=draw) * 0.5).requires_grad_()
    bias = torch.zeros(MODELS, 1, FEATURES, requires_grad=True)
    importance = 0.9 ** torch.arange(FEATURES)
    optimizer = torch.optim.Adam([weights, bias], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = torch.zeros(MODELS)
    for step in range(steps):
        x = torch.rand(rows, FEATURES, generator=draw) * (
            torch.rand(rows, FEATURES, generator=draw) >= sparsity
        )
        hidden = x @ weights.transpose(1, 2)  # (model, row, dimension)
        error = importance * (x - torch.relu(hidden @ weights + bias)).square()
        each = error.sum(-1).mean(-1)
        optimizer.zero_grad()
        each.sum().backward()
        optimizer.step()
        schedule.step()
        if step >= steps - 500:
            losses += each.detach() / 500
    best = int(losses.argmin())
    return weights[best].detach(), float(losses[best])


def measured(weights: Tensor) -> dict[str, Any]:
    """Each feature's squared norm |W_i|^2, and the angles between neighbours of those that are kept (> 0.5)."""
    norms = weights.square().sum(0)
    kept = weights[:, norms > 0.5]
    around = torch.atan2(kept[1], kept[0]).rad2deg().sort().values
    between = torch.diff(around, append=around[:1] + 360)
    return {
        "squared_norms": [round(value, 4) for value in norms.tolist()],
        "kept": int((norms > 0.5).sum()),
        "angles_between_neighbours": [round(value, 1) for value in between.tolist()],
    }


def picture(found: dict[str, Tensor]) -> charts.Spec:
    """Where each feature points, from the origin."""
    rows = [
        {"x": float(x), "y": float(y), "feature": f"{feature}", "inputs": name}
        for name, weights in found.items()
        for feature, (x, y) in enumerate(weights.T)
    ]
    return charts.points(
        rows, "x", "y", words="feature", series="inputs", from_origin=True, size=(360, 360),
        x_title="W, first dimension", y_title="second dimension",
        title="The direction that stands for each of five features",
    )  # fmt: skip


def main() -> dict[str, Any]:
    began = time.perf_counter()
    result: dict[str, Any] = {}
    found = {}
    for name, sparsity in (("dense", 0.0), ("sparse", 0.95)):
        weights, loss = train(sparsity)
        found[f"{name} ({sparsity:.0%} zeros)"] = weights
        result[name] = {"zeros": sparsity, "loss": round(loss, 5), **measured(weights)}
    charts.save(picture(found), HERE / "superposition.svg")
    result["seconds"] = round(time.perf_counter() - began, 1)
    assert not math.isnan(result["dense"]["loss"])
    return result


if __name__ == "__main__":
    answer = main()
    (HERE / "result.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(answer, indent=2))
