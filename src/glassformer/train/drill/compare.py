"""Two runs of one recipe, compared to the bit: what they learned, what they would go on with, what they wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import CheckpointError
from glassformer.files import sha256
from glassformer.run import checkpoints
from glassformer.run.folder import Run

if TYPE_CHECKING:
    from torch import Tensor

STEP_KEYS = ("step", "loss", "grad_norm", "learning_rate", "tokens")
_TIMES = ("event", "time", "seconds")


@dataclass(frozen=True, slots=True)
class Same:
    """One thing that must be the same."""

    what: str
    identical: bool
    found: str
    """How much was compared, or the first difference."""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def compare(clean: Path, other: Path) -> list[Same]:
    """Everything in which two finished runs could differ, but for the time they took."""
    found = [_losses(Run.open(clean), Run.open(other))]
    for kind in ("validation", "sample"):
        found += _measurements(Run.open(clean), Run.open(other), kind)
    try:
        left, right = (
            checkpoints.load_newest(Run.open(path).checkpoints, set_aside=False) for path in (clean, other)
        )
    except CheckpointError as error:
        return [*found, Same("checkpoints", False, str(error).splitlines()[0])]
    if left is None or right is None or left.step != right.step:
        steps = " and ".join("none" if one is None else str(one.step) for one in (left, right))
        return [*found, Same("checkpoints", False, f"the last are of step {steps}")]
    for stem in sorted(left.tensors.keys() | right.tensors.keys()):
        what = {"model": "weights", "optimizer": "optimiser"}.get(stem, stem)
        found.append(_tensors(what, left.tensors.get(stem, {}), right.tensors.get(stem, {})))
    one, two = ({key: side.state.get(key) for key in ("consumed", "tokens")} for side in (left, right))
    told = f"{one['tokens']:,} {Run.open(clean).unit}s, digest {str(one['consumed'])[:12]}"
    found.append(_equal("samples seen", one, two, told))
    exported = [_exported(run) for run in (clean, other)]
    found.append(_equal("finished model", exported[0], exported[1], f"SHA-256 {exported[0][:12]}"))
    return found


def _exported(run: Path) -> str:
    path = run / "model" / "model.safetensors"
    return sha256(path) if path.exists() else "none"


def _tensors(what: str, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Same:
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        return Same(what, False, f"{odd[0]} is only in one of them")
    different = [name for name in sorted(left) if not _same_bits(left[name], right[name])]
    if not different:
        numbers = sum(tensor.numel() for tensor in left.values())
        return Same(what, True, f"{numbers:,} numbers in {len(left)} tensors")
    name = different[0]
    return Same(what, False, f"{len(different)} of {len(left)} tensors differ, {name} first")


def _same_bits(left: Tensor, right: Tensor) -> bool:
    import torch

    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return bool(torch.equal(one, other))


def _losses(clean: Run, other: Run) -> Same:
    left, right = ([[row[key] for key in STEP_KEYS] for row in run.rows()] for run in (clean, other))
    for one, two in zip(left, right, strict=False):
        if one != two:
            return Same("losses", False, f"step {one[0]}: loss {one[1]!r} and {two[1]!r}")
    return _equal("losses", left, right, f"loss and gradient of {len(left)} steps")


def _measurements(clean: Run, other: Run, kind: str) -> list[Same]:
    left, right = (
        [{key: value for key, value in row.items() if key not in _TIMES} for row in run.events.curve(kind)]
        for run in (clean, other)
    )
    return [_equal(kind, left, right, f"{len(left)}")] if left or right else []


def _equal(what: str, left: Any, right: Any, found: str) -> Same:
    if left == right:
        return Same(what, True, found)
    return Same(what, False, f"{left} and {right}" if len(str(left)) < 200 else "they differ")
