"""One GGUF file -> a model that is ready to use, and back. The names inside are `model/gguf_names.py`'s business,
the container `use/gguf_file.py`'s, the number formats `use/quantised.py`'s.

Reading takes any mixture of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K. The header is judged first: what is
missing, too much, of another shape or larger than the file is named before memory is taken. Then one tensor after
the other is read, so that a second copy of the model never exists.

Writing follows llama.cpp's own conversion: vectors and positions stay F32; of the matrices each is in the format
asked for, except that Q8_0 needs rows of a multiple of 32 numbers and other matrices are F16. The head of a tied
model is not written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.model import gguf_names
from glassformer.model.hub_family import Part
from glassformer.model.shapes import shapes as shapes_of
from glassformer.run.folder import Run
from glassformer.text.gguf_vocabulary import read_tokenizer, write_tokenizer
from glassformer.use.gguf_file import GgufFile, Written, write_gguf
from glassformer.use.load import DTYPES, Loaded, Precision, absurd, compare, empty, fill, load, misfit
from glassformer.use.quantised import FORMATS, Floats, Format

GgufType = Literal["f32", "f16", "bf16", "q8_0"]

_FILE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""`general.file_type`: the format of most tensors, for people."""
_QUANTISATION = 2
"""`general.quantization_version`: of ggml's block formats."""


def open_gguf(
    path: str | Path, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> Loaded:
    """The model and tokenizer in a GGUF file: Llama (Mistral, SmolLM), Qwen2, Qwen3, Arcee, GPT-2, GPT-NeoX."""
    if precision not in get_args(Precision):
        raise UsageError(f"There is no precision {precision!r}.", expected="It can be 'fp32' or 'bf16'.")
    path = Path(path).expanduser()
    with GgufFile(path) as file:
        architecture = gguf_names.architecture_of(file.metadata, origin=str(path))
        tokens = file.metadata.get("tokenizer.ggml.tokens")
        num_tokens = len(tokens) if isinstance(tokens, list) else 0
        config = gguf_names.read_config(file.metadata, file.tensors, num_tokens, origin=str(path))
        tokenizer, warnings = read_tokenizer(file.metadata, origin=str(path))
        file.metadata.clear()  # the lists of tokens and merges weigh tens of megabytes
        if problems := absurd(config, tokenizer, len(file.tensors)):
            raise misfit(str(path), problems)
        parts = {part.ours: part for part in gguf_names.parts(architecture, config)}
        expected = {name: shape for part in parts.values() for name, shape in part.theirs.items()}
        if problems := compare(expected, {name: one.shape for name, one in file.tensors.items()}):
            raise misfit(str(path), problems)

        def read(ours: str) -> Tensor:
            part = parts[ours]
            return part.join([torch.from_numpy(file.read(name)) for name in part.theirs])

        model = empty(config, tokenizer, shapes_of(config), origin=str(path))
        fill(model, read, DTYPES[precision], device)
    return Loaded(model, tokenizer, config, path, tuple(warnings))


def save_gguf(source: Loaded | Run | str | Path, path: str | Path, *, dtype: GgufType = "f16") -> Path:
    """Write a model as one file that llama.cpp opens, in one step.

    `f32` keeps every bit; `f16` rounds to 11 significant bits, `bf16` to 8; `q8_0` keeps 8 bits for each number
    and a common factor for 32.
    """
    if dtype not in get_args(GgufType):
        raise UsageError(
            f"There is no format {dtype!r} to write.", expected=f"It can be {', '.join(get_args(GgufType))}."
        )
    path = Path(path).expanduser()
    if path.suffix.lower() != ".gguf" or path.is_dir():
        raise UsageError(f"{path} is no name for a GGUF file.", expected="Expected one that ends in .gguf.")
    loaded = (
        source if isinstance(source, Loaded) else load(source.path if isinstance(source, Run) else source)
    )
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", do="Make it first.")
    architecture, values = gguf_names.write_config(loaded.config)
    metadata: dict[str, Any] = {
        **values, "general.type": "model", "general.name": path.stem, "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": _QUANTISATION,
        **write_tokenizer(loaded.tokenizer, loaded.config.vocab_size),
    }  # fmt: skip
    weights = dict(loaded.model.named_parameters())
    tensors = [
        Written(name, shape, _format(name, shape, dtype), _numbers(part, number, weights[part.ours]))
        for part in gguf_names.parts(architecture, loaded.config)
        for number, (name, shape) in enumerate(part.theirs.items())
    ]
    return write_gguf(path, metadata, tensors)


def _format(name: str, shape: tuple[int, ...], dtype: GgufType) -> Format:
    if len(shape) == 1 or name == gguf_names.POSITIONS:
        return FORMATS["F32"]
    form = FORMATS[dtype.upper()]
    return FORMATS["F16"] if shape[-1] % form.block else form


def _numbers(part: Part, number: int, weight: Tensor) -> Callable[[], Floats]:
    """What gives one of their tensors when its turn comes."""

    def read() -> Floats:
        found: Floats = part.split(weight.detach())[number].float().cpu().numpy()
        return np.ascontiguousarray(found)

    return read
