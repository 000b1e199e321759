"""What a verb that uses a model begins with: a process that computes well, and the model in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer.cli.terminal import note
from glassformer.errors import UsageError
from glassformer.train.launch import prepare_process

Precision = Literal["fp32", "bf16"]
Top = Annotated[int, Parameter(validator=validators.Number(gte=1))]
"""How many rows are shown."""


@Parameter(name="*")
@dataclass(frozen=True)
class Device:
    """The options that say where a verb computes."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """Threads to compute with; as many as there are cores."""

    def prepare(self) -> str:
        """Settle threads and memory, and say which device it is."""
        prepare_process(self.threads)
        from glassformer.train.engine import pick_device

        return pick_device(self.device)

    def open(self, path: Path) -> gf.Loaded:
        """The model, ready to use; what is to be known about it goes to stderr."""
        return self._open(path, "fp32")

    def _open(self, path: Path, precision: Precision) -> gf.Loaded:
        device = self.prepare()
        loaded = gf.load(path, precision=precision, device=device)
        _warn(loaded.warnings)
        return loaded


@Parameter(name="*")
@dataclass(frozen=True)
class Computing(Device):
    """The same, and how exactly."""

    precision: Precision = "fp32"
    """bf16 is faster and differs in the third digit."""

    def open(self, path: Path) -> gf.Loaded:
        return self._open(path, self.precision)

    def open_network(self, path: Path) -> gf.Predictor:
        """A plain network, which computes in float32 on the CPU."""
        if (self.precision, self.device) != ("fp32", "auto"):
            raise UsageError(
                "--precision and --device have no effect on a plain network.", do="Leave them out."
            )
        prepare_process(self.threads)
        network = gf.load_network(path)
        _warn(network.warnings)
        return network

    def open_any(self, path: Path) -> gf.Loaded | gf.Predictor:
        """A model, or a plain network where the path holds one."""
        from glassformer.use.load import is_network

        return self.open_network(path) if is_network(path) else self.open(path)


DEVICE, COMPUTING = Device(), Computing()
"""What holds where nothing is said."""


def warn_not_finite(loaded: gf.Loaded) -> None:
    """Says on stderr which weights are not finite, for verbs whose answer does not."""
    from glassformer.look.trace import not_finite

    _warn(not_finite(loaded.model))


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        note(f"warning: {warning}")
