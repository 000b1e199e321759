"""`glassformer convert IN OUT`: the same weights in another form of file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import glassformer as gf
from glassformer.cli.model import Device
from glassformer.cli.terminal import document, facts
from glassformer.errors import UsageError

To = Literal["huggingface", "glassformer"]
Dtype = Literal["f32", "f16", "bf16", "q8_0"]


def convert(
    source: Path, out: Path, /, *, to: To | None = None, dtype: Dtype | None = None, json: bool = False
) -> None:
    """Write a model in another form: one GGUF file, a folder for transformers, or a folder of our own.

    Args:
        source: A run, a model folder of ours or in Hugging Face's layout, or a .gguf file.
        out: A name that ends in .gguf, or a folder.
        to: For a folder: huggingface (left out, this) or glassformer.
        dtype: For a .gguf: f32, f16 (left out, this), bf16 or q8_0.
        json: One JSON document instead of a table.
    """
    single = out.suffix.lower() == ".gguf"
    if single and to is not None:
        raise UsageError("--to is for folders.", expected=f"{out} is one GGUF file; --dtype is its format.")
    if not single and dtype is not None:
        raise UsageError("--dtype is for GGUF files.", expected="A folder keeps the weights in float32.")
    loaded = Device("cpu").open(source)
    form = f"gguf {dtype or 'f16'}" if single else to or "huggingface"
    if single:
        gf.save_gguf(loaded, out, dtype=dtype or "f16")
    elif to == "glassformer":
        gf.save_model(out, loaded.model, loaded.tokenizer)
    else:
        gf.save_pretrained(loaded, out)
    size = sum(file.stat().st_size for file in ([out] if single else out.iterdir()))
    values = {"source": str(source), "out": str(out), "form": form, "bytes": size}
    document(values, "convert") if json else facts(values)
