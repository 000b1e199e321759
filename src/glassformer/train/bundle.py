"""A fault that ended a run, in one folder that reproduces it on any machine with glassformer: no data, no run.

runs/demo-1/faults/step-00000412/
  model.safetensors  optimizer.safetensors       as they were before the step, whatever is wrong with them
  batch.safetensors                              the arrays of the batch, and `sample_ids`
  rng.safetensors                                torch's generator when the step began
  fault.json                                     what was seen and decided; model, engine, rate, recipe, versions
  manifest.json                                  sizes and digests of all of it

found = gf.reproduce_fault("runs/demo-1/faults/step-00000412")
found.loss, found.grad_norm                      nan nan
found.same                                       True: to the bit what the run saw
found.place                                      {"pass": "forward", "place": "blocks.3.mlp.post", ...}
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glassformer.errors import RunError
from glassformer.model.config import ModelConfig
from glassformer.model.mlp import Network
from glassformer.model.network import NetworkConfig
from glassformer.model.stacks import build
from glassformer.run.events import plain
from glassformer.run.sealed import inspect, write_sealed
from glassformer.run.tensors import read_tensors
from glassformer.train.culprit import first_not_finite, row_losses
from glassformer.train.engine import Choice, pick_device, prepare_loss, threads_of
from glassformer.train.memory import not_finite
from glassformer.train.step import Update, update
from glassformer.train.task import Batch
from glassformer.train.weights import Weights

ABOUT = "fault.json"


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What came of a bundle's step when it was computed again."""

    loss: float
    grad_norm: float
    same: bool
    """Whether both are to the bit what the run saw."""
    place: dict[str, Any] | None
    """The first place with a number that is not finite."""
    tensors: list[dict[str, Any]]
    """The weights that are not finite."""
    samples: list[dict[str, Any]]
    """The samples with the highest loss."""
    fault: dict[str, Any] = field(repr=False)
    """What the run recorded."""


def write_bundle(
    folder: Path,
    step: int,
    batch: Batch,
    tensors: Mapping[str, Mapping[str, Tensor]],
    about: Mapping[str, Any],
) -> Path:
    """Write the bundle of a step (counted from 1) into `folder`; returns its path. `tensors` are those of a
    checkpoint, `about` all that a step is computed with."""
    arrays = {name: torch.from_numpy(a) for name, a in batch.arrays().items() if a is not None}
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    path = folder / f"step-{step:08d}"
    everything = {
        **tensors,
        "batch": {**arrays, "sample_ids": torch.from_numpy(np.asarray(batch.sample_ids))},
        "rng": rng,
    }
    text = json.dumps(plain({**about, "num_targets": batch.num_targets}), indent=1).encode()
    write_sealed(path, everything, {ABOUT: text}, {"kind": "fault", "step": step})
    return path


def reproduce_fault(path: str | Path, *, device: str | None = None) -> Reproduced:
    """Compute the step of a bundle again: the run's own engine, on its device unless another is named."""
    path = Path(path)
    if not (path / ABOUT).exists():
        raise RunError(
            f"{path} is no bundle of a fault.", expected="A folder such as RUN/faults/step-00000412."
        )
    about = json.loads((path / ABOUT).read_bytes())
    damage = inspect(path, {"kind": "fault", "step": about["step"]})
    if damage:
        raise RunError(f"{path} is not whole:\n" + "\n".join(f"  - {finding}" for finding in damage))
    choice = Choice(**about["choice"])
    choice = replace(choice, device=pick_device(device or choice.device))
    model = _model(about["model"], choice)
    weights = Weights(model, choice.precision)
    weights.load(read_tensors(path / "model.safetensors"))
    batch = _Saved(read_tensors(path / "batch.safetensors"), about["num_targets"])
    loss_of = prepare_loss(model, choice, label_smoothing=about["label_smoothing"], z_loss=about["z_loss"])
    rng = read_tensors(path / "rng.safetensors")
    before = torch.get_rng_state()
    torch.set_rng_state(rng["cpu"])
    if choice.device.startswith("cuda") and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"])
    try:
        with threads_of(choice):
            update(
                loss_of, weights, [], batch, rate=0.0, clip=None, accumulate=about["accumulate"],
                device=torch.device(choice.device), check=_stop,
            )  # fmt: skip
    except _Seen as seen:
        found = seen.found
    finally:
        torch.set_rng_state(before)
    fault = about["fault"]
    return Reproduced(
        found.loss, found.grad_norm, _same(found, fault),
        first_not_finite(model, batch, choice, accumulate=about["accumulate"]),
        not_finite(dict(weights.masters)), row_losses(model, batch, choice), fault,
    )  # fmt: skip


class _Seen(Exception):
    """The step has been computed, and changes nothing."""

    def __init__(self, found: Update) -> None:
        self.found = found


def _stop(found: Update) -> None:
    raise _Seen(found)


class _Saved:
    """The batch of a bundle."""

    def __init__(self, tensors: dict[str, Tensor], num_targets: int) -> None:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.sample_ids: NDArray[Any] = arrays.pop("sample_ids")
        self.num_targets = num_targets
        self._arrays: dict[str, NDArray[Any] | None] = dict(arrays)

    def arrays(self) -> dict[str, NDArray[Any] | None]:
        return self._arrays


def _model(config: Mapping[str, Any], choice: Choice) -> nn.Module:
    if config["kind"] == "network":
        return Network(NetworkConfig.model_validate(config)).to(choice.device)
    return build(ModelConfig.model_validate(config), seed=0, device=choice.device)


def _same(found: Update, fault: Mapping[str, Any]) -> bool:
    """NaN is the same as NaN here."""
    if fault["loss"] is None:  # weights were found not to be finite, between steps
        return not found.finite
    seen = [float(fault[name]) for name in ("loss", "grad_norm")]  # "NaN" and "Infinity" too
    return all(
        struct.pack("<d", a) == struct.pack("<d", b) or (a != a and b != b)
        for a, b in zip((found.loss, found.grad_norm), seen, strict=True)
    )
