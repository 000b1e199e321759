"""Tokens on disk: written once for each corpus, settings and tokenizer, then mapped into memory.

    cache/<key>/       key = SHA-256 of content digest, settings and tokenizer
      tokenizer.json   report.json   warnings.json
      train/   validation/      one TokenStore each:
        ids.npy        uint16, or uint32 when the vocabulary exceeds 65,536; each document ends in end_of_text
        starts.npy     int64, num_documents + 1: document d is ids[starts[d]:starts[d + 1]]
        sources.npy    int16: the source of each document
        names.txt      one JSON string a line
        manifest.json  sizes and SHA-256 of the four, digests of tokenizer and content; written last

The folder is written beside its place and renamed, so a killed writer leaves nothing that could be mistaken
for it, and of two writers the second finds the first one's. Nothing is forced to the disk: what a power cut
damages does not match its digest and is made again. A store checks its digests when it is opened and
its size before every use: a mapped file that shrinks would otherwise end the process with SIGBUS.
"""

from __future__ import annotations

import json
import os
import weakref
from array import array
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from glassformer.errors import TextError, TokenizerError
from glassformer.files import sha256
from glassformer.text.tokenizer import Ids, Tokenizer

FORMAT = 1
FILES = ("ids.npy", "starts.npy", "sources.npy", "names.txt")


class TokenStore:
    """One side of the split: all its documents as ids, end to end. Open with `TokenStore.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.num_tokens: int = manifest["num_tokens"]
        self.num_bytes: int = manifest["num_bytes"]
        self.num_documents: int = manifest["num_documents"]
        self.end_of_text: int = manifest["end_of_text"]
        self.vocab_size: int = manifest["vocab_size"]
        self.digest: str = manifest["files"]["ids.npy"]["sha256"]
        self.starts: NDArray[np.int64] = np.load(path / "starts.npy")
        self.sources: NDArray[np.int16] = np.load(path / "sources.npy")
        self._descriptor = os.open(path / "ids.npy", os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._stamp = self._state()
        # An empty mapping is not allowed; and the plain array is faster to index than its memmap.
        self.ids: NDArray[Any] = np.asarray(
            np.load(path / "ids.npy", mmap_mode="r" if self.num_tokens else None)
        )

    @classmethod
    def open(cls, path: Path, *, tokenizer: Tokenizer) -> TokenStore:
        """The store in `path`, refused when a file was changed or it was made with another tokenizer."""
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise _damaged(path, f"its manifest cannot be read ({error})") from None
        if manifest.get("format") != FORMAT:
            raise _damaged(path, f"its format is {manifest.get('format')}, this version reads {FORMAT}")
        if manifest["tokenizer"] != tokenizer.digest:
            raise TokenizerError(
                f"{path} was made with another tokenizer ({manifest['tokenizer'][:12]}, "
                f"{manifest['vocab_size']} tokens).",
                expected=f"Tokenizer {tokenizer.digest[:12]} with {tokenizer.vocab_size} tokens.",
                do="Prepare the text again with this tokenizer.",
            )
        for name in FILES:
            wanted = manifest["files"][name]
            file = path / name
            if not file.is_file():
                raise _damaged(path, f"{name} is missing")
            if file.stat().st_size != wanted["bytes"]:
                raise _damaged(path, f"{name} has {file.stat().st_size} bytes instead of {wanted['bytes']}")
            if sha256(file) != wanted["sha256"]:
                raise _damaged(path, f"the content of {name} has changed")
        return cls(path, manifest)

    @cached_property
    def names(self) -> list[str]:
        """The name of each document."""
        return [json.loads(line) for line in (self.path / "names.txt").read_text().splitlines()]

    def check(self) -> None:
        """Raise unless the mapped file is as it was when opened: one system call, made before every use."""
        if self._state() != self._stamp:
            raise _damaged(self.path, "ids.npy was changed, truncated or deleted while it was in use")

    def _state(self) -> tuple[int, int, bool]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns, state.st_nlink > 0


class StoreWriter:
    """Writes a TokenStore document by document; leaving its `with` block completes it, unless by an error."""

    def __init__(self, path: Path, tokenizer: Tokenizer, content: str) -> None:
        path.mkdir(parents=True)
        self._path, self._tokenizer, self._content = path, tokenizer, content
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._ids = (path / "ids.npy").open("wb")
        self._names = (path / "names.txt").open("w", encoding="utf-8")
        self._header_size = _write_header(self._ids, self._dtype, 0)
        self._starts = array("q", [0])
        self._sources = array("h")
        self.num_bytes = 0

    def add(self, name: str, source: int, ids: Ids, num_bytes: int) -> None:
        """Append one document; `end_of_text` is added after it."""
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self._tokenizer.vocab_size:
            raise TokenizerError(
                f"{name} holds token {int(ids.max())}.",
                expected=f"Ids from 0 to {self._tokenizer.vocab_size - 1}, as the tokenizer has no others.",
                do="Encode the text with the tokenizer that is given.",
            )
        self._ids.write(np.append(ids, self._tokenizer.end_of_text).astype(self._dtype).tobytes())
        self._names.write(json.dumps(name) + "\n")
        self._starts.append(self._starts[-1] + len(ids) + 1)
        self._sources.append(source)
        self.num_bytes += num_bytes

    @property
    def num_tokens(self) -> int:
        return self._starts[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._ids, self._names:
            if error is None:
                self._finish_arrays()
        if error is None:
            self._write_manifest()

    def _finish_arrays(self) -> None:
        # numpy pads the header so that a longer shape fits: writing it again moves nothing.
        self._ids.seek(0)
        size = _write_header(self._ids, self._dtype, self.num_tokens)
        assert size == self._header_size
        np.save(self._path / "starts.npy", np.array(self._starts, np.int64))
        np.save(self._path / "sources.npy", np.array(self._sources, np.int16))

    def _write_manifest(self) -> None:
        files = [self._path / name for name in FILES]
        manifest = {
            "format": FORMAT,
            "num_tokens": self._starts[-1],
            "num_bytes": self.num_bytes,
            "num_documents": len(self._sources),
            "vocab_size": self._tokenizer.vocab_size,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer": self._tokenizer.digest,
            "content": self._content,
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files},
        }
        (self._path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _write_header(file: BinaryIO, dtype: np.dtype[Any], length: int) -> int:
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    npy.write_array_header_1_0(file, header)
    return file.tell()


def _damaged(path: Path, reason: str) -> TextError:
    return TextError(
        f"The tokens in {path} cannot be used: {reason}.",
        expected="The files as they were written.",
        do="Run the same command again: they are made anew from the text.",
    )
