"""Bad text, each fault injected for real, numbered as in the project's list of faults."""

from __future__ import annotations

import gzip
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from glassformer.errors import TextError
from glassformer.text.batches import Batches
from glassformer.text.config import DataConfig, TokenizerConfig
from glassformer.text.corpus import Document, Skipped, read
from glassformer.text.shards import Prepared

Make = Callable[..., Prepared]
Python = Callable[..., subprocess.CompletedProcess[str]]


def read_all(
    base: Path, *paths: str, skipped: list[Skipped] | None = None, **settings: object
) -> list[Document]:
    data = DataConfig.model_validate({"paths": paths, **settings})
    return list(read(data, base=base, skipped=skipped))


# 31: forks, open files

FORK = """
import multiprocessing, os
from glassformer.text.config import TokenizerConfig
from glassformer.text.tokenizer import Tokenizer
text = [b"some words to learn from, and more of them"] * 2000
tokenizer = Tokenizer.train(TokenizerConfig(vocab=300), text)
tokenizer.encode_batch(text)  # starts the library's threads
def child(queue):
    queue.put(sum(map(len, tokenizer.encode_batch(text))))
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
assert queue.get(timeout=30) == sum(map(len, tokenizer.encode_batch(text)))
process.join(30)
assert process.exitcode == 0
assert "TOKENIZERS_PARALLELISM" not in os.environ
"""


def test_31_a_fork_after_encoding_on_threads_neither_hangs_nor_warns(python: Python) -> None:
    done = python(FORK)
    assert (done.returncode, done.stderr) == (0, "")


def test_31_more_files_than_may_be_open_at_once_are_read(tmp_path: Path, make: Make) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(300):
        (tmp_path / f"texts/{number}.txt").write_text(str(number))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        assert make(tmp_path, "texts").train.num_documents > 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# 32: shapes of documents


def test_32_empty_blank_and_one_line_documents_are_defined_and_counted(tmp_path: Path, make: Make) -> None:
    for name, data in {
        "empty": b"",
        "blank": b" \n\t ",
        "line": b"no line end",
        "long": b"word " * 500,
    }.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    made = make(tmp_path, "*.txt", validation=0)
    (row,) = made.report["sources"]
    assert (row["documents"], row["empty"], row["whitespace_only"], row["one_line"]) == (4, 1, 1, 2)
    assert made.train.names == ["blank.txt", "line.txt", "long.txt"]  # an empty one has nothing to learn from
    batch = Batches(made.train, batch=2, context=16, seed=0).batch(
        0
    )  # one document is longer than the context
    assert batch.ids.shape == (2, 16)


GIANT = """
import sys
from pathlib import Path
from glassformer.text.config import DataConfig
from glassformer.text.corpus import read
data = DataConfig(paths=("giant.txt",))
sizes = [len(document.data) for document in read(data, base=Path(sys.argv[1]))]
status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak before the exec
print(len(sizes), sum(sizes), status.split("VmHWM:")[1].split()[0])
"""


def test_32_a_line_of_one_gigabyte_is_read_in_parts_with_bounded_memory(
    tmp_path: Path, python: Python
) -> None:
    with (tmp_path / "giant.txt").open("wb") as file:
        file.write(b"x")
        file.truncate(2**30)  # the rest is a hole of NUL characters, valid UTF-8
    done = python(GIANT, str(tmp_path))
    documents, size, peak_kib = map(int, done.stdout.split())
    assert (documents, size) == (64, 2**30)
    assert peak_kib < 300 * 1024


# 33: encodings

ODD_TEXTS = {
    "nul": b"a\0b\0\0c",
    "crlf": b"one\r\ntwo\r\n\rthree\n\r",
    "marks": "a\u200bb\u200e\u202e\ufeffc".encode(),
    "unassigned": "\u0378\U000e0080\U0010ffff".encode(),
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪".encode(),
    "invalid": b"\xff\xfe\x80abc\xc3\n\xed\xa0\x80\xf4\x90\x80\x80",
    "latin": "Änderung für Größe".encode("latin-1"),
    "utf16": "utf-16 text".encode("utf-16"),
}


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_33_every_byte_comes_back_from_the_tokens(tmp_path: Path, kind: str, make: Make) -> None:
    for name, data in ODD_TEXTS.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    config = TokenizerConfig.model_validate({"kind": kind, "vocab": 300})
    made = make(tmp_path, "*.txt", tokenizer=config, encoding="bytes", validation=0)
    for number, name in enumerate(made.train.names):
        ids = made.train.ids[made.train.starts[number] : made.train.starts[number + 1]]
        assert made.tokenizer.decode_bytes(ids) == ODD_TEXTS[name.removesuffix(".txt")]


def test_33_invalid_text_is_refused_with_its_lines_or_replaced_as_the_policy_says(
    tmp_path: Path, make: Make
) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\ncaf\xe9\ngood\n\xff\n")
    with pytest.raises(
        TextError, match=r"a.txt is not valid UTF-8: byte 0xE9 on line 2, 0xFF on line 4.*encoding"
    ):
        read_all(tmp_path, "a.txt")
    (document,) = read_all(tmp_path, "a.txt", encoding="replace")
    assert document.data.decode() == "good\ncaf\ufffd\ngood\n\ufffd\n"
    assert make(tmp_path, "a.txt", encoding="bytes").report["encoding_errors"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_33_utf16_is_named_with_what_to_do(tmp_path: Path, suffix: str, encoding: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes('\ufeff{"text": "x"}\n'.encode(encoding))
    with pytest.raises(TextError, match=r"is UTF-16 text.*iconv -f UTF-16 -t UTF-8"):
        read_all(tmp_path, f"a{suffix}")


def test_33_invalid_text_inside_jsonl_follows_the_policy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(TextError, match=r"a.jsonl:2 is not valid UTF-8: byte 0xE9"):
        read_all(tmp_path, "a.jsonl")
    kept = read_all(tmp_path, "a.jsonl", encoding="bytes")
    assert [document.data for document in kept] == [b"ok", b"caf\xe9", b"\xed\xa0\xbd"]


# 34: broken files


def break_files(base: Path) -> dict[str, str]:
    """Files that cannot be read, and what each is called out for."""
    noise = np.random.default_rng(0).integers(32, 127, 300_000, np.uint8).tobytes()
    (base / "a-truncated.txt.gz").write_bytes(gzip.compress(noise)[:-20])
    (base / "b-truncated.txt.zst").write_bytes(zstandard.compress(noise)[:-20])
    pq.write_table(pa.table({"text": ["x"] * 100}), base / "c-truncated.parquet")
    whole = (base / "c-truncated.parquet").read_bytes()
    (base / "c-truncated.parquet").write_bytes(whole[: len(whole) // 2])
    (base / "d-not.txt.gz").write_bytes(b"plain text")
    (base / "e-really-gzip.txt").write_bytes(gzip.compress(b"text"))
    (base / "f-not.parquet").write_bytes(b"plain text" * 10)
    (base / "g-broken-link.txt").symlink_to(base / "nothing")
    (base / "h-not.jsonl").write_text("plain text\n")
    (base / "i-wide.csv").write_text('text,n\nx,1\n"x",2,3\n')
    return {
        "a-truncated.txt.gz": "Truncated compressed stream",
        "b-truncated.txt.zst": "Truncated compressed stream",
        "c-truncated.parquet": "Parquet magic bytes not found|corrupted",
        "d-not.txt.gz": "incorrect header",
        "e-really-gzip.txt": "holds gzip data, whatever its name says",
        "f-not.parquet": "Parquet",
        "g-broken-link.txt": "a link to nothing",
        "h-not.jsonl": "Line 1 of .* is not JSON",
        "i-wide.csv": "Expected 2 columns, got 3",
    }


def test_34_each_broken_file_is_named_and_stops_the_reading(tmp_path: Path) -> None:
    for name, reason in break_files(tmp_path).items():
        with pytest.raises(TextError, match=reason) as caught:
            read_all(tmp_path, name)
        assert name in str(caught.value)


def test_34_when_asked_the_others_are_read_and_the_broken_ones_recorded(tmp_path: Path, make: Make) -> None:
    (tmp_path / "texts").mkdir()
    broken = break_files(tmp_path / "texts")
    (tmp_path / "texts/z-good.txt").write_text("good " * 100)
    skipped: list[Skipped] = []
    found = read_all(tmp_path, "texts", skipped=skipped, on_error="skip")
    assert "z-good.txt" in [document.name for document in found]
    assert [s.name for s in skipped] == list(broken)
    made = make(tmp_path, "texts", on_error="skip", validation=0)
    # In a directory the disguised gzip file passes as one of the binary files that are left out by design.
    assert [s.name for s in skipped if not s.error] == ["e-really-gzip.txt"]
    assert any("8 files or documents could not be read" in warning for warning in made.warnings)
    assert len(made.report["skipped"]) == len(broken)


def test_34_a_directory_found_as_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(TextError, match=r"folder.txt cannot be read: Is a directory"):
        read_all(tmp_path, "*.txt")


def test_34_the_same_file_twice_is_refused_or_read_once(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("text")
    (tmp_path / "again.txt").symlink_to(tmp_path / "texts/a.txt")
    with pytest.raises(TextError, match=r"again.txt is the same file as a.txt, which was already read"):
        read_all(tmp_path, "texts", "again.txt")
    skipped: list[Skipped] = []
    assert len(read_all(tmp_path, "texts", "again.txt", skipped=skipped, on_error="skip")) == 1
    assert [s.name for s in skipped] == ["again.txt"]


UNREADABLE = """
import os, sys
from pathlib import Path
from glassformer.text.config import DataConfig
from glassformer.text.corpus import read
base = Path(sys.argv[1])
data = DataConfig(paths=(".",), on_error="skip")
list(read(data, base=base))  # imports what it needs while it may
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
skipped = []
print([document.name for document in read(data, base=base, skipped=skipped)])
for s in skipped:
    print(s.name, s.reason)
"""


def test_34_unreadable_files_and_folders_are_named(tmp_path: Path, python: Python) -> None:
    for parent in [tmp_path, *tmp_path.parents][:4]:  # pytest's own are closed to others; xdist adds one
        parent.chmod(0o755)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/inside.txt").write_text("text")
    (tmp_path / "open.txt").write_text("text")
    (tmp_path / "secret.txt").write_text("text")
    (tmp_path / "secret.txt").chmod(0)
    (tmp_path / "closed").chmod(0)
    done = python(UNREADABLE, str(tmp_path))
    (tmp_path / "closed").chmod(0o755)
    names, *reasons = done.stdout.splitlines()
    assert names == "['open.txt']", done.stderr
    assert [line.split()[0] for line in reasons] == ["secret.txt", "closed"]
    assert all("Permission denied" in line for line in reasons)
