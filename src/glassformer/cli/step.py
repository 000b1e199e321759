"""`glassformer step RUN "text"`: what one optimiser step on a text would change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import glassformer as gf
from glassformer.charts import save
from glassformer.cli.model import DEVICE, Device, warn_not_finite
from glassformer.cli.terminal import document, facts, note, table
from glassformer.errors import UsageError
from glassformer.look.visible import visible

if TYPE_CHECKING:
    import torch

Kind = Literal["adamw", "adam", "sgd"]


def step(
    model: Path,
    text: str,
    /,
    *,
    target: str | None = None,
    weight: list[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    optimizer: Kind = "adamw",
    rate: float = 1e-3,
    momentum: float | None = None,
    decay: float | None = None,
    show: Literal["weights", "tensors", "tokens"] = "weights",
    out: Path | None = None,
    device: Device = DEVICE,
    json: bool = False,
) -> None:
    """Show what one optimiser step on a text would change: weights, and the loss of each token. Nothing is saved.

    Args:
        model: A run, a folder with config.json, model.safetensors and tokenizer.json, or a .gguf file.
        text: What to learn from.
        target: What an encoder-decoder is to write for it.
        weight: `blocks.0.mlp.up.weight[3,5]`, or a tensor to draw from, or a pattern; may be given several times.
        samples: How many weights to draw; 10.
        seed: Of the draw.
        optimizer: adamw, adam or sgd, at its first step.
        rate: Its learning rate.
        momentum: Of sgd; 0.
        decay: Weight decay; 0.01 with adamw, otherwise 0.
        show: In the terminal: some weights, every tensor, or every token's loss before and after.
        out: Save a chart of each token's change of loss: .html, .svg, .png or .json.
        json: One JSON document instead of tables.
    """
    if momentum is not None and optimizer != "sgd":
        raise UsageError(f"--momentum has no effect with --optimizer {optimizer}.", do="Leave it out.")
    if not 0 < rate < math.inf:
        raise UsageError(f"--rate is {rate}.", expected="A learning rate above 0, and finite.")
    loaded = device.open(model)
    warn_not_finite(loaded)
    view = gf.step_view(
        loaded, text, _optimizer(loaded, optimizer, rate, momentum, decay),
        target=target, weights=weight or None, samples=samples, seed=seed,
    )  # fmt: skip
    if out is not None:
        save(view.chart(), out)
        note(f"The chart is in {out}.")
    if json:
        document(view.to_dict())
        return
    facts(view.summary())
    table({"weights": view.rows(), "tensors": view.tensors, "tokens": _seen(view.targets)}[show])


def _seen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With tokens whose spaces and line ends can be seen."""
    return [{**row, "target": visible(str(row["target"]))} for row in rows]


def _optimizer(
    loaded: gf.Loaded, kind: Kind, rate: float, momentum: float | None, decay: float | None
) -> torch.optim.Optimizer:
    import torch

    weights = list(loaded.model.parameters())
    match kind:
        case "sgd":
            return torch.optim.SGD(weights, lr=rate, momentum=momentum or 0.0, weight_decay=decay or 0.0)
        case "adam":
            return torch.optim.Adam(weights, lr=rate, weight_decay=decay or 0.0)
        case _:
            return torch.optim.AdamW(weights, lr=rate, weight_decay=0.01 if decay is None else decay)
