"""What a verb that uses a model begins with: a process that computes well, and the model in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer.cli.terminal import note
from glassformer.train.launch import prepare_process

Precision = Literal["fp32", "bf16"]
Top = Annotated[int, Parameter(validator=validators.Number(gte=1))]
"""How many rows are shown."""


def open_model(path: Path, *, precision: Precision, device: str, threads: int | None) -> gf.Loaded:
    """The model, ready to use; what is to be known about it goes to stderr."""
    prepare_process(threads)
    from glassformer.train.engine import pick_device

    loaded = gf.load(path, precision=precision, device=pick_device(device))
    for warning in loaded.warnings:
        note(f"warning: {warning}")
    return loaded


def warn_not_finite(loaded: gf.Loaded) -> None:
    """Says on stderr which weights are not finite, for verbs whose answer does not."""
    from glassformer.look.trace import not_finite

    for warning in not_finite(loaded.model):
        note(f"warning: {warning}")


def open_any(
    path: Path, *, precision: Precision, device: str, threads: int | None
) -> gf.Loaded | gf.Predictor:
    """The same, or a plain network where the path holds one."""
    from glassformer.use.load import is_network

    if not is_network(path):
        return open_model(path, precision=precision, device=device, threads=threads)
    prepare_process(threads)
    network = gf.load_network(path)
    for warning in network.warnings:
        note(f"warning: {warning}")
    return network
