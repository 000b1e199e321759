"""The same rows from every format, images from folders, and refusals that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from glassformer.errors import TextError
from glassformer.text.table_config import TableConfig
from glassformer.text.table_files import Source, read_sources
from glassformer.text.tables import prepare_table

ROWS = {
    "size": [1.5, 2.0, -3.25],
    "count": [1, 2, 3],
    "tame": [True, False, True],
    "kind": ["cat", "dog", "cat"],
}


def read(folder: Path, *paths: str) -> Source:
    return read_sources(paths, folder)


def lists(source: Source) -> dict[str, list[object]]:
    return {name: column.tolist() for name, column in source.columns.items()}


def write_table(path: Path) -> None:
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    if separator:
        rows = [ROWS.keys(), *zip(*ROWS.values(), strict=True)]
        path.write_text("\n".join(separator.join(map(str, row)) for row in rows), "utf-8-sig")
    elif path.suffix == ".parquet":
        table = pa.table({**ROWS, "kind": pa.array(ROWS["kind"]).dictionary_encode()})
        parquet.write_table(table, path)
    else:
        np.savez(path, **{name: np.array(values) for name, values in ROWS.items()})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npz"])
def test_every_format_gives_the_same_columns(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"rows{suffix}")
    source = read(tmp_path, f"rows{suffix}")
    assert lists(source) == {**ROWS, "tame": [1, 0, 1]}
    assert source.names == [(f"rows{suffix}", 3)] and source.target is None


def test_several_files_and_globs_lie_one_below_the_other(tmp_path: Path) -> None:
    for name, rows in {"b.csv": "1,x\n2,y\n", "a.csv": "3,4\n", "c.csv": "5,6\n"}.items():
        (tmp_path / name).write_text(f"size,kind\n{rows}")
    source = read(tmp_path, "b.csv", "[ac].csv")
    assert lists(source) == {"size": [1, 2, 3, 5], "kind": ["x", "y", "4", "6"]}
    assert source.names == [("b.csv", 2), ("a.csv", 1), ("c.csv", 1)]
    config = TableConfig(paths=("b.csv", "[ac].csv"), target=("kind",), validation=0)
    assert prepare_table(config, "classes", base=tmp_path).origin(2) == "a.csv row 1"
    (tmp_path / "d.csv").write_text("size,sort\n1,x\n")
    with pytest.raises(TextError, match="only one of them has kind, sort"):
        read(tmp_path, "b.csv", "d.csv")


def test_numbers_kept_as_text_are_refused_as_features_when_they_are_many(tmp_path: Path) -> None:
    table = pa.table({"code": [str(n) for n in range(50)], "kind": ["a", "b"] * 25})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(TextError, match="'code' is text with 50 different values, such as '0' in row 1"):
        prepare_table(TableConfig(paths=("rows.parquet",), target=("kind",)), "classes", base=tmp_path)


def test_arrays_x_and_y_are_inputs_and_target(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.arange(8.0).reshape(4, 2), y=np.array([0, 1, 1, 0]))
    data = prepare_table(TableConfig(paths=("rows.npz",), validation=0), "classes", base=tmp_path)
    assert data.columns.features == ("x[0]", "x[1]") and data.columns.shape is None
    assert data.train.targets.tolist() == [0, 1, 1, 0]


def test_an_array_of_images_keeps_its_shape(tmp_path: Path) -> None:
    x = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    np.savez(tmp_path / "rows.npz", x=x, y=np.array(["a", "b", "a", "b"]))
    config = TableConfig(paths=("rows.npz",), validation=0, standardise=False)
    data = prepare_table(config, "classes", base=tmp_path)
    assert data.columns.shape == (2, 3) and data.columns.features[-1] == "x[1,2]"
    assert np.array_equal(data.train.inputs.reshape(x.shape), x)


@pytest.mark.parametrize(("suffix", "shape"), [(".png", (3, 5)), (".png", (3, 5, 3)), (".pgm", (3, 5))])
def test_a_folder_of_images_is_a_row_for_each(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, shape, np.uint8) for name in ("bee/1", "bee/2", "ant/1")}
    for name, pixels in pictures.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}{suffix}")
    (tmp_path / "photos" / "readme.txt").write_text("hello")
    (tmp_path / "photos" / ".hidden").write_text("hello")
    config = TableConfig(paths=("photos",), validation=0, standardise=False)
    data = prepare_table(config, "classes", base=tmp_path)
    assert data.columns.shape == shape and data.columns.classes == ("ant", "bee")
    assert data.train.targets.tolist() == [0, 1, 1]
    assert np.array_equal(data.train.inputs[0].reshape(shape), pictures["ant/1"])
    assert data.origin(2) == f"bee/2{suffix} row 1" and "passed over: readme.txt" in data.warnings[0]


def test_images_of_another_size_or_kind_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("L", (4, 3)).save(tmp_path / "photos" / "cat" / "1.png")
    other = tmp_path / "photos" / "cat" / "2.png"
    for image, words in (
        (Image.new("L", (5, 3)), "cat/2.png is 5x3 8-bit grey; cat/1.png is 4x3"),
        (Image.new("RGB", (4, 3)), "cat/2.png is 4x3 colour"),
        (Image.new("RGBA", (4, 3)), "cat/2.png is an image of kind 'RGBA'"),
    ):
        image.save(other)
        with pytest.raises(TextError, match=words):
            read(tmp_path, "photos")
    other.write_bytes(b"no image")
    with pytest.raises(TextError, match=r"cat/2\.png cannot be read as an image"):
        read(tmp_path, "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match="one sub-folder for each class"):
        read(tmp_path, "empty")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", b"a,a\n1,2\n", "several columns called a"),
        ("rows.csv", b"a,b\n1\n", "rows.csv cannot be read"),
        ("rows.csv", b"a,b\n1,caf\xe9\n", "column 'b' is not UTF-8 text"),
        ("rows.csv", b"", "rows.csv cannot be read"),
        ("rows.parquet", b"PAR1 and no more", "rows.parquet cannot be read"),
        ("rows.npz", b"PK\x03\x04 and no more", "rows.npz cannot be read"),
        ("rows.xlsx", b"", "ending in .csv, .tsv, .parquet, .npz"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=words):
        read(tmp_path, name)


def test_a_fraction_after_a_megabyte_of_whole_numbers_is_still_a_number(tmp_path: Path) -> None:
    values = [str(n) for n in range(300_000)]
    (tmp_path / "rows.csv").write_text("\n".join(["size", *values, "1.5"]))
    assert (tmp_path / "rows.csv").stat().st_size > 1.5 * 2**20
    assert read(tmp_path, "rows.csv").columns["size"].tolist() == [*range(300_000), 1.5]


def test_arrays_that_are_no_rows_are_refused_and_pickles_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    with pytest.raises(TextError, match=r"x \[3, 2\], y \[4\]"):
        read(tmp_path, "rows.npz")
    np.savez(tmp_path / "rows.npz", x=np.array([{}, {}], object))
    with pytest.raises(TextError, match="cannot be read"):
        read(tmp_path, "rows.npz")


def test_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    for path, words in {"none.csv": "no file or folder none.csv", "python:iris": "'python:digits'"}.items():
        with pytest.raises(TextError, match=words):
            read(tmp_path, path)


@pytest.mark.parametrize(
    ("package", "path", "extra"), [("sklearn", "python:digits", "digits"), ("PIL", "photos", "images")]
)
def test_without_the_optional_package_one_sentence_says_what_to_install(
    tmp_path: Path, package: str, path: str, extra: str
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"")
    program = f"""
import sys
from pathlib import Path
sys.modules[{package!r}] = None  # what an import finds when it is not installed
from glassformer.errors import TextError
from glassformer.text.table_files import read_sources
try:
    read_sources(({path!r},), Path(sys.argv[1]))
except TextError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert f"pip install 'glassformer[{extra}]'" in done.stdout
