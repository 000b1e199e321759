from pathlib import Path

import pytest

from glassformer.errors import TextError
from glassformer.text.config import DataConfig
from glassformer.text.corpus import read
from glassformer.text.split import is_held_out, split, survey


def sides(base: Path, data: DataConfig) -> tuple[list[str], list[str], list[bytes]]:
    found = survey(data, base=base)
    parts = list(split(read(data, base=base), data, found))
    train = [document.name for _, document, border in parts if border > 0]
    validation = [document.name for _, document, border in parts if border < len(document.data)]
    halves = [
        half for _, document, border in parts for half in (document.data[:border], document.data[border:])
    ]
    return train, validation, [half for half in halves if half]


def write(base: Path, count: int) -> None:
    for number in range(count):
        (base / f"{number:04}.txt").write_text(f"document {number}")


def test_documents_are_held_out_in_the_share_asked_for(tmp_path: Path) -> None:
    held_out = sum(is_held_out(b"%d" % number, 0.2) for number in range(10_000))
    assert abs(held_out - 2000) < 4 * 40  # four standard deviations of a binomial


def test_adding_files_moves_no_document_to_the_other_side(tmp_path: Path) -> None:
    data = DataConfig(paths=(".",), validation=0.2)
    write(tmp_path, 60)
    train, validation, _ = sides(tmp_path, data)
    write(tmp_path, 90)
    more_train, more_validation, _ = sides(tmp_path, data)
    assert set(train) < set(more_train)
    assert set(validation) < set(more_validation)


def test_the_tail_of_every_source_is_held_out_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("0123456789" * 10)
    (tmp_path / "two").mkdir()
    for number in range(4):
        (tmp_path / f"two/{number}.txt").write_text("é" * 5)
    data = DataConfig(paths=("one.txt", "two"), validation=0.1, split="tail")
    train, validation, parts = sides(tmp_path, data)
    assert train == ["one.txt", "0.txt", "1.txt", "2.txt", "3.txt"]
    assert validation == ["one.txt", "3.txt"]
    assert [len(part) for part in parts] == [90, 10, 10, 10, 10, 6, 4]


def test_one_document_is_split_by_its_tail_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("word " * 1000)
    data = DataConfig(paths=("one.txt",), validation=0.05)
    found = survey(data, base=tmp_path)
    assert found.tail
    assert found.warnings == (
        "Splitting 1 document by hash would hold out 0; the last 5.0% of each source is held out instead "
        "(data.split = 'tail').",
    )
    assert [len(part) for part in sides(tmp_path, data)[2]] == [4750, 250]


def test_the_digest_follows_content_and_order_and_not_names(tmp_path: Path) -> None:
    data = DataConfig(paths=(".",))
    write(tmp_path, 5)
    digest = survey(data, base=tmp_path).digest
    (tmp_path / "0004.txt").rename(tmp_path / "9999.txt")
    assert survey(data, base=tmp_path).digest == digest
    (tmp_path / "0003.txt").write_text("changed")
    assert survey(data, base=tmp_path).digest != digest


def test_moving_bytes_between_documents_changes_the_digest(tmp_path: Path) -> None:
    digests = set()
    for first, second in (("ab", "c"), ("a", "bc")):
        (tmp_path / "1.txt").write_text(first)
        (tmp_path / "2.txt").write_text(second)
        digests.add(survey(DataConfig(paths=(".",)), base=tmp_path).digest)
    assert len(digests) == 2


def test_no_text_at_all_is_refused_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(TextError, match=r"There is no text: 2 documents, all empty"):
        survey(DataConfig(paths=(".",)), base=tmp_path)


def test_holding_out_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path, 3)
    assert survey(DataConfig(paths=(".",), validation=0), base=tmp_path).warnings == (
        "data.validation is 0: nothing is held out, so there is no validation loss.",
    )
