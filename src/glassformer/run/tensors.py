"""One safetensors file: written once, digested on the way, and checked down to the tensor that changed.

The format (https://huggingface.co/docs/safetensors) is

    8 bytes: n, little-endian | n bytes of JSON: name -> dtype, shape, data_offsets | the tensors' bytes

The library writes it too, but can neither flush to the disk nor tell the digest without reading everything
back, so the few lines of writing are ours (a test reads them with the library); reading is the library's.
Each tensor also gets a CRC-32: it costs a third of the SHA-256 and is enough to name the one that changed.

A tensor may also lie in parts in several files, as torch's distributed checkpoint writes them (`run/shards.py`): the
header's `DCP_SHARDING_INFO` says at which place of the whole a part begins.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import CheckpointError
from glassformer.files import durable, sha256

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}

PLACES = "DCP_SHARDING_INFO"
"""torch's name in a header for where each tensor's part begins."""

OTHER = "it is another file"

Record = dict[str, Any]
"""What a manifest keeps of a file: `bytes`, `sha256`, and for each tensor where it lies and its CRC-32."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> Record:
    """A new safetensors file, on the disk when this returns; `about` goes into its header as strings."""
    # Widest first, so that every tensor starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **about}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        kind = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    where: Record = {}
    with durable(path) as stream:
        stream.write(head)
        for name in order:  # one at a time, so that tensors on an accelerator never all exist here as well
            content = _bytes(tensors[name])
            stream.write(content)
            digest.update(content)
            begin, end = header[name]["data_offsets"]
            where[name] = {
                "begin": len(head) + begin,
                "end": len(head) + end,
                "crc32": f"{zlib.crc32(content):08x}",
            }
    return {"bytes": len(head) + end, "sha256": digest.hexdigest(), "tensors": where}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Anything that would have to be unpickled is refused."""
    import safetensors.torch

    with path.open("rb") as stream:
        start = stream.read(2)
    if path.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl"} or start in {b"PK", b"\x80\x02", b"\x80\x04"}:
        raise CheckpointError(
            f"{path.name} is a pickle, and reading a pickle runs whatever code its author put in it.",
            expected="Expected tensors in a .safetensors file, which holds numbers only.",
            do="If you trust it, convert it once: safetensors.torch.save_file("
            f"torch.load({path.name!r}, weights_only=True), '{path.stem}.safetensors').",
        )
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path.name} is not a safetensors file: {error}.", do="Check where it came from."
        ) from None


def read_parts(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The whole tensors of files that hold a part each. CheckpointError where a part is not there."""
    import safetensors
    import torch

    parts: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for path in paths:
        with safetensors.safe_open(path, framework="pt") as file:
            places = json.loads((file.metadata() or {}).get(PLACES, "{}"))
            for name in file.keys():  # noqa: SIM118 # no mapping
                part = file.get_tensor(name)
                place = places.get(name, {}).get("saved_offsets", [0] * part.ndim)
                parts.setdefault(name, []).append((place, part))
    whole: dict[str, torch.Tensor] = {}
    for name in sorted(parts):
        found = parts.pop(name)
        first = found[0][1]
        ends = [[begin + size for begin, size in zip(at, t.shape, strict=True)] for at, t in found]
        whole[name] = torch.empty([max(axis) for axis in zip(*ends, strict=True)], dtype=first.dtype)
        for at, part in found:
            whole[name][tuple(slice(b, b + n) for b, n in zip(at, part.shape, strict=True))] = part
        if sum(part.numel() for _, part in found) != whole[name].numel():
            raise CheckpointError(f"Of the tensor {name} a part is missing.", do="Use an older checkpoint.")
    return whole


def record_of(content: memoryview) -> Record:
    """The record of a safetensors file whose bytes are at hand."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    header.pop("__metadata__", None)
    where: Record = {}
    for name, about in header.items():
        begin, end = (start + place for place in about["data_offsets"])
        where[name] = {"begin": begin, "end": end, "crc32": f"{zlib.crc32(content[begin:end]):08x}"}
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "tensors": where}


def find_damage(path: Path, record: Record, about: Mapping[str, str]) -> list[tuple[str | None, str]]:
    """What is wrong with a file, as (tensor or None, problem); nothing when it is what its record says."""
    size = path.stat().st_size
    if size == record["bytes"] and (found := sha256(path)) == record["sha256"]:
        return []
    header = _header_about(path)
    if header and any(header.get(key, value) != value for key, value in about.items()):
        says = ", ".join(f"{key} {header[key]}" for key in about if key in header)
        return [(None, f"{OTHER}: its header says {says}; expected {_phrase(about)}")]
    if size != record["bytes"]:
        return [(None, f"it has {size:,} bytes, its manifest says {record['bytes']:,}")]
    problems: list[tuple[str | None, str]] = []
    with path.open("rb") as stream:
        for name, place in record.get("tensors", {}).items():
            stream.seek(place["begin"])
            crc = f"{zlib.crc32(stream.read(place['end'] - place['begin'])):08x}"
            if crc != place["crc32"]:
                problems.append((name, f"its CRC-32 is {crc}, its manifest says {place['crc32']}"))
    whole = f"its SHA-256 is {found}, its manifest says {record['sha256']}"
    return [(name, f"{problem} (file: {whole})") for name, problem in problems] or [(None, whole)]


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _header_about(path: Path) -> dict[str, str] | None:
    """The strings in a safetensors header, as far as there is one."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length < path.stat().st_size:
            return None
        try:
            about = json.loads(stream.read(length))["__metadata__"]
        except (ValueError, KeyError, TypeError):
            return None
    return about if isinstance(about, dict) else None


def _phrase(about: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())
