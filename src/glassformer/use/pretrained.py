"""Folders in Hugging Face's layout, both ways. The names inside are `model/hub.py`'s business.

    config.json
    model.safetensors, or model.safetensors.index.json {"weight_map": {tensor: file}} and the files it names
    tokenizer.json

Names and shapes are read from the files' headers first: what is missing, too much or of another shape is
named in their words, before memory is taken. Then one tensor after the other is read, converted and kept,
so a second copy of the model never exists. An index may name files of its own folder only.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path, PureWindowsPath
from typing import Any, get_args

import safetensors
import torch
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.model import hub, hub_encoders
from glassformer.model.hub_family import Part
from glassformer.model.shapes import shapes as shapes_of
from glassformer.run import exports
from glassformer.run.folder import Run
from glassformer.run.tensors import read_tensors
from glassformer.text.tokenizer import Tokenizer
from glassformer.use.load import (
    CONFIG,
    DTYPES,
    TOKENIZER,
    WEIGHTS,
    Loaded,
    Precision,
    absurd,
    check_files,
    check_replaceable,
    compare,
    empty,
    fill,
    is_gguf,
    load,
    misfit,
)

INDEX = f"{WEIGHTS}.index.json"


def from_pretrained(
    path: str | Path, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
) -> Loaded:
    """The model of a folder in Hugging Face's layout, or of a `.gguf` file: GPT-2, Llama, Mistral, Qwen2, Qwen3,
    Arcee, GPT-NeoX; BERT and Marian from a folder. The tokenizer is its tokenizer.json: byte-level BPE, BERT's
    WordPiece, or one of ours."""
    if precision not in get_args(Precision):
        raise UsageError(f"There is no precision {precision!r}.", expected="It can be 'fp32' or 'bf16'.")
    folder = Path(path).expanduser()
    if is_gguf(folder):
        return load(folder, precision=precision, device=device)
    single = (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file()
    check_files(folder, WEIGHTS if single else INDEX)
    fields = _json(folder / CONFIG)
    if fields.get("model_type") == "glassformer":
        return load(folder, precision=precision, device=device)
    family = hub.family_of(fields)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    _check_ids(fields, tokenizer, str(folder))
    with ExitStack() as stack:
        files = [folder / WEIGHTS] if single else _shards(folder)
        opened = [stack.enter_context(_open(file)) for file in files]
        where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 # no mapping
        found = {name: list(file.get_slice(name).get_shape()) for name, file in where.items()}
        config = hub.read_config(fields, tensors=list(found), origin=str(folder / CONFIG))
        if problems := absurd(config, tokenizer, len(found)):
            raise misfit(str(folder), problems)
        parts = {part.ours: part for part in hub.parts(family, config)}
        expected = {name: shape for part in parts.values() for name, shape in part.theirs.items()}
        theirs = {
            hub.their_name(family, name, expected): name
            for name in found
            if not hub.is_computed(family, name, config)
        }
        shapes = {name: found[old] for name, old in theirs.items()}
        if problems := compare(expected, shapes):
            raise misfit(str(folder), problems)

        def read(ours: str) -> Tensor:
            names = [theirs[name] for name in parts[ours].theirs]
            return parts[ours].join([where[name].get_tensor(name) for name in names])

        model = empty(config, tokenizer, shapes_of(config), origin=str(folder))
        fill(model, read, DTYPES[precision], device)
    return Loaded(model, tokenizer, config, folder, classes=hub_encoders.class_names(fields, config))


def save_pretrained(
    source: Loaded | Run | str | Path, path: str | Path, *, shard_bytes: int | None = None
) -> Path:
    """Write a model so that `transformers` opens it, in the family that expresses it.

    `shard_bytes`: the most bytes of weights in one file; a tensor larger than that has a file of its own.
    """
    if shard_bytes is not None and shard_bytes < 1:
        raise UsageError(f"shard_bytes is {shard_bytes}.", expected="It is a number of bytes, at least 1.")
    loaded = (
        source if isinstance(source, Loaded) else load(source.path if isinstance(source, Run) else source)
    )
    folder = Path(path).expanduser()
    check_replaceable(folder)
    family, config = hub.write_config(loaded.config)
    config["dtype"] = str(loaded.dtype).removeprefix("torch.")
    config |= family.ids(loaded.tokenizer.end_of_text)
    if loaded.classes:
        config |= hub_encoders.named_classes(loaded.classes)
    weights = dict(loaded.model.named_parameters())
    parts = hub.parts(family, loaded.config)
    size = loaded.model.embed.weight.element_size()
    groups = _groups(parts, size, shard_bytes)
    stems = ["model"] if len(groups) == 1 else [
        f"model-{number:05d}-of-{len(groups):05d}" for number in range(1, len(groups) + 1)
    ]  # fmt: skip
    others = {CONFIG: _render(config), **_tokenizer_files(loaded.tokenizer)}
    if len(groups) > 1:
        names = {
            name: f"{stem}.safetensors" for stem, group in zip(stems, groups, strict=True) for name in group
        }
        total = sum(prod(shape) * size for part in parts for shape in part.theirs.values())
        others[INDEX] = _render({"metadata": {"total_size": total}, "weight_map": names})
    converted = {stem: _Converted(group, parts, weights) for stem, group in zip(stems, groups, strict=True)}
    return exports.save_files(folder, converted, others)


class _Converted(Mapping[str, Tensor]):
    """Our weights under their names, each converted when it is asked for and let go with the next."""

    def __init__(self, names: Sequence[str], parts: Sequence[Part], weights: Mapping[str, Tensor]) -> None:
        self._names, self._weights = list(names), weights
        self._part = {name: part for part in parts for name in part.theirs}
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            part = self._part[name]
            tensors = part.split(self._weights[part.ours].detach())
            self._last = (name, tensors[list(part.theirs).index(name)])
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _groups(parts: Sequence[Part], size: int, most: int | None) -> list[list[str]]:
    """Their names in order, cut wherever the next tensor would go beyond `most` bytes."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, shape in (item for part in parts for item in part.theirs.items()):
        need = prod(shape) * size
        if most is not None and groups[-1] and held + need > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += need
    return groups


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as beside:
        tokenizer.save(Path(beside) / TOKENIZER)
        return {file.name: file.read_bytes() for file in sorted(Path(beside).iterdir())}


def _render(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}.", do="Put back a copy.") from None
    if not isinstance(fields, dict):
        raise ModelError(f"{file} is not a JSON object.", do="Put back a copy.")
    return fields


def _shards(folder: Path) -> list[Path]:
    """The files that the index names: plain names in this folder, each there."""
    placed = _json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise ModelError(f"{folder / INDEX} has no weight_map from tensors to files.", do="Put back a copy.")
    problems = []
    for name in sorted(set(placed.values())):
        if name in ("", ".", "..") or "/" in name or PureWindowsPath(name).name != name:
            problems.append(f"{name!r} points outside the folder")
        elif not name.endswith(".safetensors"):
            problems.append(f"{name!r} is not a .safetensors file")
        elif not (folder / name).is_file():
            problems.append(f"{name!r} is missing")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ModelError(
            f"{folder / INDEX} names files that are not read:\n{listed}", do="\nGet the whole folder anew."
        )
    return [folder / name for name in sorted(set(placed.values()))]


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="pt")
    except safetensors.SafetensorError:
        read_tensors(file)  # says what is wrong with it
        raise


def _check_ids(fields: Mapping[str, Any], tokenizer: Tokenizer, origin: str) -> None:
    """A text that is written begins with the token that ends one; theirs may begin otherwise."""
    first = fields.get("decoder_start_token_id")
    if first is not None and first != tokenizer.end_of_text:
        raise ModelError(
            f"{origin} begins what it writes with token {first}.",
            expected=f"Here that is the token that ends a text, {tokenizer.end_of_text}.",
            do="Its first words would be other ones, so nothing was loaded.",
        )
