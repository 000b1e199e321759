import gzip
import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import TextError
from glassformer.text import formats
from glassformer.text.config import DataConfig, SourceConfig
from glassformer.text.corpus import Document, Skipped, invalid_lines, read
from glassformer.text.formats import character_boundary


def texts(base: Path, *paths: str, **settings: object) -> dict[str, bytes]:
    data = DataConfig.model_validate({"paths": paths, **settings})
    return {document.name: document.data for document in read(data, base=base)}


def test_a_directory_is_read_in_order_without_hidden_and_binary_files(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.txt", "a/b/c.py", "no-suffix", ".hidden", ".git/config", "__pycache__/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "picture.png").write_bytes(b"text in a png")
    (tmp_path / "data.dat").write_bytes(bytes(range(4)) * 100 + bytes(200))
    skipped: list[Skipped] = []
    found = list(read(DataConfig(paths=(".",)), base=tmp_path, skipped=skipped))
    assert [document.name for document in found] == ["b.md", "no-suffix", "a/z.txt", "a/b/c.py"]
    assert found[0] == Document(".", "b.md", b"b.md")
    assert [(s.name, s.reason, s.error) for s in skipped] == [
        ("data.dat", "binary", False),
        ("picture.png", "binary", False),
    ]


def test_globs_files_and_sources_with_weights_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt", "deep/er/three.txt", "four.md", ".five.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(texts(tmp_path, "four.md", "*.txt")) == ["four.md", "one.txt", "two.txt"]
    assert list(texts(tmp_path, "**/*.txt")) == ["deep/er/three.txt", "one.txt", "two.txt"]
    assert list(texts(tmp_path, str(tmp_path / "four.md"))) == ["four.md"]
    sources = DataConfig(
        paths=(SourceConfig(path="four.md", weight=2), SourceConfig(path="one.txt", weight=1))
    )
    assert sources.weights == (2, 1)
    assert [document.source for document in read(sources, base=tmp_path)] == ["four.md", "one.txt"]


def test_the_standard_library_is_a_corpus_of_its_own_code_without_tests(tmp_path: Path) -> None:
    documents = list(read(DataConfig(), base=tmp_path))
    names = [document.name for document in documents]
    assert {"abc.py", "json/decoder.py"} <= set(names)
    assert not any({"test", "tests", "site-packages"} & set(Path(name).parts) for name in names)
    assert 5e6 < sum(len(document.data) for document in documents) < 30e6
    machine = sysconfig.get_path("stdlib").encode()
    assert not any(machine in document.data for document in documents)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_and_lines_of_json_and_tables_are_read_packed_or_not(tmp_path: Path, suffix: str) -> None:
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    rows = ["first", 'sec"ond,\nline two', "ünï"]
    files = {
        "a.txt": b"whole\nfile\n",
        "b.jsonl": "".join(json.dumps({"n": n, "text": row}) + "\n\n" for n, row in enumerate(rows)).encode(),
        "c.csv": ('n,text\r\n1,first\r\n2,"sec""ond,\nline two"\r\n3,ünï\r\n').encode(),
        "d.tsv": (b"n\ttext\n1\tfirst\n"),
    }
    for name, data in files.items():
        (tmp_path / (name + suffix)).write_bytes(packed(data))
    found = texts(tmp_path, ".")
    assert found[f"a.txt{suffix}"] == files["a.txt"]
    assert [found[f"b.jsonl{suffix}:{line}"].decode() for line in (1, 3, 5)] == rows
    assert [found[f"c.csv{suffix}:{row}"].decode() for row in (1, 2, 3)] == rows
    assert found[f"d.tsv{suffix}:1"] == b"first"


def test_parquet_is_read_over_row_groups(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(250)]
    pq.write_table(pa.table({"body": rows, "n": range(250)}), tmp_path / "d.parquet", row_group_size=60)
    assert [data.decode() for data in texts(tmp_path, "d.parquet", field="body").values()] == rows


def test_a_missing_field_is_answered_with_the_fields_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"body": "x", "n": 1}\n')
    (tmp_path / "b.csv").write_text("body,n\nx,1\n")
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "c.parquet")
    with pytest.raises(TextError, match=r"Line 2 of .*a.jsonl has no field 'text'. Its fields are: body, n"):
        texts(tmp_path, "a.jsonl")
    for name in ("b.csv", "c.parquet"):
        with pytest.raises(TextError, match=rf"{name} has no field 'bdy'.*body, n.*did you mean 'body'"):
            texts(tmp_path, name, field="bdy")
    (tmp_path / "d.jsonl").write_text('{"body": "x", "n": 1}\n')
    with pytest.raises(TextError, match=r"'n' is int, not text.*'body'"):
        texts(tmp_path, "d.jsonl", field="n")


def test_a_source_with_nothing_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/a.png").write_bytes(b"x")
    for path in ("empty", "binary", "*.none"):
        with pytest.raises(TextError, match="holds no text files"):
            texts(tmp_path, path)
    with pytest.raises(TextError, match=r"There is no file or directory absent\.txt"):
        texts(tmp_path, "absent.txt")
    with pytest.raises(TextError, match="There is no source 'python:numpy'"):
        texts(tmp_path, "python:numpy")


def test_a_long_file_becomes_documents_cut_at_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LONGEST_DOCUMENT", 100)
    data = b"".join(b"line %d\n" % number for number in range(60))
    (tmp_path / "long.txt").write_bytes(data)
    found = texts(tmp_path, "long.txt")
    assert b"".join(found.values()) == data
    assert list(found) == [f"long.txt#{number}" for number in range(1, len(found) + 1)]
    assert all(len(part) <= 100 and part.endswith(b"\n") for part in found.values())


def test_a_long_line_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_DOCUMENT", 101)
    data = "aé€😀".encode() * 100
    (tmp_path / "line.txt").write_bytes(data)
    found = texts(tmp_path, "line.txt")  # strict: a cut inside a character would be refused
    assert b"".join(found.values()) == data


@given(text=st.text(min_size=1), position=st.integers(0, 400))
def test_a_boundary_is_the_last_place_that_cuts_no_character(text: str, position: int) -> None:
    data = text.encode()
    position = min(position, len(data))
    boundary = character_boundary(data, position)
    assert position - 3 <= boundary <= position
    assert data[:boundary].decode() + data[boundary:].decode() == text
    for later in range(boundary + 1, position + 1):
        with pytest.raises(UnicodeDecodeError):
            data[:later].decode()


@given(data=st.binary())
def test_invalid_lines_are_empty_exactly_for_valid_text(data: bytes) -> None:
    try:
        data.decode()
        assert invalid_lines(data) == []
    except UnicodeDecodeError as error:
        line, byte = invalid_lines(data)[0]
        assert line == data[: error.start].count(b"\n") + 1
        assert byte == data[error.start]


def test_windows_line_ends_and_marks_are_kept_as_they_are(tmp_path: Path) -> None:
    data = "\ufeffone\r\ntwo\u200b\u200f\r\n".encode()
    (tmp_path / "windows.txt").write_bytes(data)
    assert texts(tmp_path, "windows.txt")["windows.txt"] == data


def test_the_standard_librarys_tests_are_its_other_half() -> None:
    library = {document.name for document in read(DataConfig(paths=("python:stdlib",)), base=Path())}
    data = DataConfig(paths=("python:tests",), on_error="skip")
    try:
        tests = {document.name for document in read(data, base=Path())}
    except TextError:
        pytest.skip("this Python is installed without its tests")
    assert not library & tests
    assert all({"test", "tests", "idle_test"} & set(Path(name).parts) for name in tests)
