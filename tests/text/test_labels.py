"""Labelled texts: read from tables, split by their hash, numbered by name, batched as a pure function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glassformer.errors import TextError
from glassformer.text.batches import NO_LOSS
from glassformer.text.config import LabelConfig, TokenizerConfig
from glassformer.text.labels import (
    LabelBatches,
    PreparedLabels,
    label_validation_batches,
    packages,
    prepare_labels,
)

BYTES = TokenizerConfig(kind="bytes")


def prepared(folder: Path, lines: list[str], name: str = "x.tsv", validation: float = 0.2) -> PreparedLabels:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return prepare_labels(LabelConfig(paths=(name,), validation=validation), BYTES, base=folder)


LINES = [f"text number {number}\t{'good' if number % 3 else 'bad'}" for number in range(60)]


def test_texts_are_framed_classes_numbered_by_name_and_nothing_is_lost(tmp_path: Path) -> None:
    found = prepared(tmp_path, LINES)
    assert found.classes == ("bad", "good") and len(found.train) + len(found.validation) == 60
    assert len(found.validation) == len(found.texts) > 3
    for (ids, number), (text, label) in zip(found.validation, found.texts, strict=True):
        assert ids.tolist() == [256, *text] and found.classes[number] == label
    assert sum(found.report["classes"].values()) == len(found.train)


def test_each_kind_of_table_gives_the_same(tmp_path: Path) -> None:
    rows = [line.split("\t") for line in LINES]
    tsv = prepared(tmp_path, LINES)
    csv = prepared(tmp_path, ["label,text", *(f"{label},{text}" for text, label in rows)], "x.csv")
    jsonl = prepared(
        tmp_path, [f'{{"text": "{text}", "label": "{label}"}}' for text, label in rows], "x.jsonl"
    )
    assert tsv.digest == csv.digest == jsonl.digest
    again = prepared(tmp_path, list(reversed(LINES)))
    assert set(again.texts) == set(tsv.texts)  # held out by their own hash, whatever stands around


def test_an_epoch_shows_every_text_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    found = prepared(tmp_path, LINES, validation=0.0)
    batches = LabelBatches(found.train, batch=12, context=10, seed=1, end_of_text=256)
    epochs = [[batches.batch(5 * epoch + step) for step in range(5)] for epoch in (0, 1)]
    texts = [sorted(map(tuple, np.concatenate([b.ids for b in epoch]).tolist())) for epoch in epochs]
    expected = sorted(tuple(([*ids.tolist()] + [256] * 10)[:10]) for ids, _ in found.train)
    assert texts == [expected, expected]
    assert [b.targets.tolist() for b in epochs[0]] != [b.targets.tolist() for b in epochs[1]]
    again = batches.batch(3)
    assert np.array_equal(again.ids, epochs[0][3].ids) and "60 texts are longer" in batches.warnings[0]


def test_padding_is_marked_and_the_last_batch_is_filled_up(tmp_path: Path) -> None:
    found = prepared(tmp_path, LINES, validation=0.0)
    batches = list(label_validation_batches(found.train, batch=32, context=40, end_of_text=256))
    assert len(batches) == 2 and sum(batch.num_targets for batch in batches) == 60
    last = batches[-1]
    assert (last.targets[28:] == NO_LOSS).all() and (last.segments[28:] == -1).all()
    ids, _ = found.train[0]
    assert ((batches[0].segments[0] == 0) == (np.arange(40) < len(ids))).all()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a\tx", "b\t"], "Row 2 of x.tsv has an empty label"),
        (["a\tx", " \tx"], "Row 2 of x.tsv has an empty text"),
        (["a\tx", "b\tx"], "All texts are of the class 'x'"),
        ([], "holds no texts"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(TextError, match=says):
        prepared(tmp_path, lines, validation=0.0)


def test_a_held_out_class_that_training_has_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "held.tsv").write_text("a\tugly\n", encoding="utf-8")
    (tmp_path / "x.tsv").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    data = LabelConfig(paths=("x.tsv",), validation_paths=("held.tsv",))
    with pytest.raises(TextError, match="ugly"):
        prepare_labels(data, BYTES, base=tmp_path)


def test_pythons_packages_are_ten_each_with_its_functions() -> None:
    found = list(packages())
    names = {name for _, name in found}
    assert len(names) == 10 and len(found) > 2000
    assert all(b"def " in text[:20] for text, _ in found)
