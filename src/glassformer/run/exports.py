"""The `model/` folder: a finished model as others expect it, sealed like a checkpoint.

    config.json   model.safetensors   tokenizer.json   manifest.json

Replacing one is a single swap of folders, so a reader never sees the new weights with the old tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.run.sealed import MANIFEST, About, Finding, inspect, write_sealed

if TYPE_CHECKING:
    import torch

_ABOUT: About = {"kind": "model"}


def save_model(
    folder: Path, *, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer: bytes | None
) -> Path:
    """Write or replace an exported model; `tokenizer` is the content of its tokenizer.json."""
    others = {"config.json": json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"}
    if tokenizer is not None:
        others["tokenizer.json"] = tokenizer
    return save_files(folder, {"model": tensors}, others)


def save_files(
    folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], others: Mapping[str, bytes]
) -> Path:
    """The same for weights in several files: `<stem>.safetensors` for each stem, and the files beside them."""
    write_sealed(folder, tensors, others, _ABOUT)
    return folder


def verify_model(folder: Path) -> list[Finding]:
    """Everything wrong with an exported model; one from elsewhere has no manifest to hold it against."""
    return inspect(folder, _ABOUT) if (folder / MANIFEST).exists() else []
