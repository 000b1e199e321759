"""A sealed folder: files, and a manifest.json written last that knows every byte of them.

    {"about": {"kind": "checkpoint", "step": 500}, "digest": "...", "format": 1,
     "files": {"model.safetensors": {"bytes": ..., "sha256": ..., "tensors": {...}}, ...}}

The folder is written beside its final name, every file is forced to the disk, and one rename publishes it.
So a folder under its final name without a whole manifest cannot come from a crash, only from damage. `digest`
is the SHA-256 of the manifest's text without it, so a flipped bit there is found as well. Checkpoints and
exported models are sealed folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import RunError
from glassformer.files import durable, free_bytes, publish, sha256
from glassformer.run.tensors import OTHER, Record, find_damage, write_tensors
from glassformer.units import show_bytes

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Raised when a manifest written before could no longer be read; its `digest` rule never changes."""
MANIFEST = "manifest.json"

About = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong in a sealed folder."""

    folder: str
    """Its name, such as `step-00000500`."""
    file: str
    tensor: str | None
    problem: str
    damaged: bool = True
    """False when the folder is whole but of a format that this version does not read."""

    def __str__(self) -> str:
        tensor = f", tensor {self.tensor}" if self.tensor else ""
        return f"{self.folder}/{self.file}{tensor}: {self.problem}"


def write_sealed(
    final: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    others: Mapping[str, bytes],
    about: About,
) -> None:
    """Write `<stem>.safetensors` for each stem, then `others`, then the manifest; publish as `final`.

    On any failure (full disk, quota, read-only, permission) nothing of it remains, and what was there before
    still is.
    """
    partial = partial_of(final)
    with nothing_left_of(partial, final):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files: dict[str, Record] = {}
        for stem, named in tensors.items():
            files[f"{stem}.safetensors"] = write_tensors(
                partial / f"{stem}.safetensors", named, _strings({**about, "file": stem})
            )
        seal(partial, final, files, others, about)


def seal(
    partial: Path, final: Path, files: Mapping[str, Record], others: Mapping[str, bytes], about: About
) -> None:
    """Add `others` to the `files` of tensors that are in `partial`, then the manifest; publish as `final`."""
    records = dict(files)
    for name, content in others.items():
        _write(partial / name, content)
        records[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _write(partial / MANIFEST, _render({"format": FORMAT, "about": about, "files": records}))
    publish(partial, final)


def partial_of(final: Path) -> Path:
    """Where this process writes what becomes `final`."""
    return final.with_name(f".{final.name}.partial-{os.getpid()}")


@contextlib.contextmanager
def nothing_left_of(partial: Path, final: Path) -> Iterator[None]:
    """Whatever goes wrong in the block, `partial` is gone after it, and what the disk refused is a RunError."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise not_saved(final, error) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def not_saved(final: Path, error: OSError, where: str = "") -> RunError:
    """What the disk refused, in words; `where` is the rank, of several."""
    return RunError(
        f"{final.name} was not saved{where}: {error.strerror or error} ({show_bytes(free_bytes(final))} free).",
        expected="Everything saved before is still there.",
        do="Free some space or mend the disk; the next save tries again.",
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None when it is missing or not to the byte what was written."""
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = json.loads(text)
        body = {key: value for key, value in manifest.items() if key != "digest"}
        return manifest if _render(body) == text else None
    except (OSError, ValueError, AttributeError):
        return None


def inspect(folder: Path, about: About, share: tuple[int, int] = (0, 1)) -> list[Finding]:
    """Everything wrong with a sealed folder, having read every byte of it; empty when it is whole.

    Of several processes that share the work, `share` (r, n) reads every n-th file from the r-th on; what all of them
    find together is what one would.
    """

    def finding(file: str, problem: str, tensor: str | None = None, damaged: bool = True) -> Finding:
        return Finding(folder.name, file, tensor, problem, damaged)

    manifest = read_manifest(folder)
    if manifest is None:
        state = "its text does not match its own digest" if (folder / MANIFEST).exists() else "it is missing"
        return [finding(MANIFEST, state)]
    if manifest["format"] != FORMAT:
        age = "newer" if manifest["format"] > FORMAT else "older"
        advice = (
            "update glassformer to read it" if age == "newer" else "read it with the version that wrote it"
        )
        return [
            finding(MANIFEST, f"format {manifest['format']} is {age} than {FORMAT}; {advice}", damaged=False)
        ]
    if manifest["about"] != about:
        return [finding(MANIFEST, f"it belongs to {_strings(manifest['about'])}, expected {_strings(about)}")]
    findings = []
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {MANIFEST}
    for number, (name, record) in enumerate(manifest["files"].items()):
        if name not in present:
            findings.append(finding(name, "it is missing"))
            continue
        if number % share[1] != share[0]:
            continue
        expected = _strings({**about, "file": name.removesuffix(".safetensors")})
        try:
            damage = find_damage(folder / name, record, expected)
        except OSError as error:
            damage = [(None, f"it cannot be read: {error.strerror}")]
        if damage and OTHER not in damage[0][1] and (found := _whose(folder, name, manifest)):
            damage = [(None, f"{OTHER}: {found}")]
        findings += [finding(name, problem, tensor) for tensor, problem in damage]
    findings += [
        finding(name, "it is not in the manifest") for name in sorted(present - set(manifest["files"]))
    ]
    return findings


def _whose(folder: Path, name: str, manifest: Mapping[str, Any]) -> str | None:
    """Which other file it is that lies under this name: of this folder, or of one beside it."""
    try:
        digest = sha256(folder / name)
    except OSError:
        return None
    beside = [path for path in sorted(folder.parent.iterdir()) if path.is_dir() and path != folder]
    for path, known in [(folder, manifest), *((path, read_manifest(path) or {}) for path in beside)]:
        for file, record in known.get("files", {}).items():
            if record["sha256"] == digest:
                return file if path == folder else f"{path.name}/{file}"
    return None


def _write(path: Path, content: bytes) -> None:
    with durable(path) as stream:
        stream.write(content)


def _render(body: Mapping[str, Any]) -> bytes:
    """The manifest's text, digest included: the same content always gives the same bytes."""
    plain = json.dumps(body, indent=1, sort_keys=True).encode()
    digest = hashlib.sha256(plain).hexdigest()
    return json.dumps({**body, "digest": digest}, indent=1, sort_keys=True).encode() + b"\n"


def _strings(about: About) -> dict[str, str]:
    return {key: str(value) for key, value in about.items()}
