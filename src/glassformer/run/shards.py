"""Tensors that are divided over ranks, written and read by all of them at once: torch's distributed checkpoint.

    model-rank-00000.safetensors    optimizer-rank-00000.safetensors      what rank 0 wrote
    model-rank-00001.safetensors    optimizer-rank-00001.safetensors      what rank 1 wrote

torch.distributed.checkpoint (DCP) plans who writes what: a part that several ranks hold (copies of a group, HSDP) is
written by one of them. The files are safetensors, no pickles; a header says where in the whole each part begins, so
any number of ranks, or none (`run/tensors.py`), can read them, each only what it needs. A rank holds no whole tensor
at any time, but while it writes, one more copy of its own part.

What is ours: a file is digested while it is written, and what is written was copied before, so that training goes on.
All exchanges go over a gloo group of their own and never meet those of the training. DCP's `CheckpointException` is a
BaseException, which `except Exception` lets pass: here it becomes a RunError with the rank and what the disk said.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_together
from torch.distributed.checkpoint.state_dict_saver import save as save_together
from torch.distributed.tensor import DTensor

from glassformer.errors import CheckpointError, RunError
from glassformer.run.sealed import not_saved
from glassformer.run.tensors import Record, record_of

T = TypeVar("T")
Stems = Mapping[str, Mapping[str, Tensor]]
"""File stem (`model`, `optimizer`) -> tensor name -> tensor."""

_PATIENCE = timedelta(hours=1)
"""The longest that one rank may write while the others wait for it."""
_THEIR_NAME = re.compile(r"shard-(\d+)-model-(\d+)-of-\d+\.safetensors")


class Group:
    """The ranks of a save or a load, on a group of their own. All ranks make it, and use it, in the same order."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.handle = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def tell(self, make: Callable[[], T]) -> T:
        """What rank 0 makes of it, on all ranks; and if that is an error, the error."""
        box: list[Any] = [None]
        if self.rank == 0:
            try:
                box = [make()]
            except (OSError, RunError) as error:
                box = [error]
        dist.broadcast_object_list(box, src=0, group=self.handle)
        if isinstance(box[0], OSError | RunError):
            raise box[0]
        return cast(T, box[0])

    def hear(self, word: T) -> list[T]:
        """What each rank says, by rank."""
        words: list[Any] = [None] * self.count
        dist.all_gather_object(words, word, group=self.handle)
        return words


def write(folder: Path, final: Path, tensors: Stems, copied: Stems, group: Group) -> dict[str, Record]:
    """All ranks write their parts into `folder`; returns the records of all files, on every rank.

    `tensors` say how they are divided, `copied` holds this rank's parts, on the CPU. RunError, on all ranks alike,
    where the disk of any refuses; `final` is the name to call it by.
    """
    stems = list(tensors)
    names = {name: number for number, stem in enumerate(stems, 1) for name in tensors[stem]}
    files = _Files(stems)
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=names, save_distributed=True)
    writer.fs = files
    writer.per_thread_copy_ahead = 0  # all is on the CPU already; to copy ahead would wake up the first GPU
    flat = {name: tensor for stem in stems for name, tensor in tensors[stem].items()}
    planner = _Copied({name: copy for stem in stems for name, copy in copied[stem].items()})
    with _as_error(final):
        save_together(flat, storage_writer=writer, planner=planner, process_group=group.handle)
    records = {name: record for heard in group.hear(files.records) for name, record in heard.items()}
    return dict(sorted(records.items()))


def read(folder: Path, like: Mapping[str, Tensor], group: Group) -> dict[str, dict[str, Tensor]]:
    """Each rank's part of what is in `folder`, by file stem, whatever number of ranks wrote it.

    A tensor that has the name of one in `like`, or that name and a key, and its shape, is divided as that one is;
    others are read whole. CheckpointError, on all ranks alike, where one cannot read its part.
    """
    reader = HuggingFaceStorageReader(str(folder))
    about, problem = None, None
    try:
        about = reader.read_metadata()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        problem = f"{type(error).__name__}: {error}"
    for rank, heard in enumerate(group.hear(problem)):
        if heard is not None:
            raise _error(folder, heard, f" by rank {rank}", reading=True)
    assert about is not None  # no problem was heard
    with _as_error(folder, reading=True):
        found: dict[str, dict[str, Tensor]] = {}
        for index, place in about.storage_data.items():
            stem = Path(place.relative_path).name.partition("-rank-")[0]
            if index.fqn not in found.setdefault(stem, {}):
                whole = cast(TensorStorageMetadata, about.state_dict_metadata[index.fqn])
                found[stem][index.fqn] = _room_for(index.fqn, whole, like)
        flat = {name: tensor for named in found.values() for name, tensor in named.items()}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        load_together(flat, storage_reader=reader, planner=planner, process_group=group.handle)
    return found


def _room_for(name: str, whole: TensorStorageMetadata, like: Mapping[str, Tensor]) -> Tensor:
    weight = like.get(name, like.get(name.rpartition(".")[0]))
    dtype = whole.properties.dtype
    if isinstance(weight, DTensor) and weight.shape == whole.size:
        return torch.empty_like(weight.detach(), dtype=dtype)
    return torch.empty(whole.size, dtype=dtype)


class _Copied(DefaultSavePlanner):
    """Plans from how tensors are divided, and writes what was copied of them."""

    def __init__(self, copied: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._copied = copied

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._copied[index.fqn]


class _Files(FileSystem):
    """Where DCP writes: each file under a name that tells what is in it, and digested."""

    def __init__(self, stems: list[str]) -> None:
        self._stems = stems
        self.records: dict[str, Record] = {}

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> Path:
        theirs = _THEIR_NAME.fullmatch(suffix)
        if theirs:
            rank, stem = int(theirs[1]) - 1, self._stems[int(theirs[2]) - 1]
            suffix = f"{stem}-rank-{rank:05d}.safetensors"
        return Path(path) / suffix

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with Path(path).open(mode, buffering=0) as stream:
            digested = _Digested(stream)
            yield digested
        self.records[Path(path).name] = record_of(digested.content)


class _Digested(io.IOBase):
    """A file that is written in one piece, which DCP does; the piece stays at hand for its record."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.content = memoryview(b"")

    def write(self, content: bytes) -> int:
        assert not len(self.content), "DCP writes a safetensors file in one piece"
        self.content = memoryview(content)
        left = self.content
        while len(left):
            left = left[self._stream.write(left) :]
        return len(content)

    def tell(self) -> int:
        return len(self.content)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        number: int = self._stream.fileno()
        return number


@contextlib.contextmanager
def _as_error(path: Path, *, reading: bool = False) -> Iterator[None]:
    """What DCP raises, in our words: the first rank's that failed."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
        raise _error(path, cause, f" by rank {rank}", reading) from error
    except (OSError, AssertionError, KeyError, ValueError) as error:
        raise _error(path, error, "", reading) from error


def _error(path: Path, cause: BaseException | str, where: str, reading: bool) -> RunError:
    said = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
    if reading:
        return CheckpointError(
            f"{path.name} cannot be read{where}: {said}.",
            do="Every rank needs the run's folder on a file system that all share. See: glassformer runs verify",
        )
    if isinstance(cause, OSError):
        return not_saved(path, cause, where)
    return RunError(
        f"{path.name} was not saved{where}: {said}.",
        expected="Everything saved before is still there.",
    )
