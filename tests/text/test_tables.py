"""A table becomes numbers around 0 in three parts, and what cannot is refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassformer import configs
from glassformer.errors import ConfigError, TextError
from glassformer.text.columns import Columns
from glassformer.text.table_config import TableConfig
from glassformer.text.tables import PreparedTable, Table, prepare_table

HEADER = "height,weight,colour,kind"


def lines(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"{rng.normal(170, 10):.3f},{rng.normal(70, 5):.3f},{rng.choice(['red', 'green'])},"
        f"{rng.choice(['cat', 'dog', 'bee'])}"
        for _ in range(count)
    ]


def write(folder: Path, rows: list[str], header: str = HEADER, name: str = "rows.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder


def prepare(folder: Path, kind: Any = "classes", **settings: Any) -> PreparedTable:
    config = TableConfig.model_validate({"paths": "rows.csv", "target": "kind", **settings})
    return prepare_table(config, kind, base=folder)


def refused(folder: Path, kind: Any = "classes", **settings: Any) -> str:
    with pytest.raises(TextError) as caught:
        prepare(folder, kind, **settings)
    return str(caught.value)


def parts(data: PreparedTable) -> list[Table]:
    return [data.train, data.validation, data.test]


def test_numbers_text_and_classes_become_inputs_and_targets(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, ["1,10,red,dog", "3,10,blue,cat", "5,40,red,dog"]), validation=0)
    assert data.columns.input_names == ("height", "weight", "colour=blue", "colour=red")
    assert data.columns.outputs == ("cat", "dog") and data.train.targets.tolist() == [1, 0, 1]
    assert (data.num_inputs, data.num_outputs) == (4, 2)
    raw = np.array([[1, 10, 0, 1], [3, 10, 1, 0], [5, 40, 0, 1]], float)
    standard = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    assert np.allclose(data.train.inputs, standard, atol=1e-6) and data.train.inputs.dtype == np.float32
    plain = prepare(tmp_path, validation=0, standardise=False)
    assert plain.train.inputs.tolist() == raw.tolist()


def test_every_row_is_on_one_side_and_the_sides_have_about_the_shares_asked_for(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, lines(4000)), validation=0.25, test=0.1)
    rows = np.concatenate([part.rows for part in parts(data)])
    assert sorted(rows.tolist()) == list(range(4000))
    for part, share in zip(parts(data), (0.65, 0.25, 0.1), strict=True):
        assert abs(len(part) - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_the_side_of_a_row_is_the_hash_of_its_features(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, ["1.5,2,red,dog", "-0.0,3,red,cat", "7,8,red,cat"]), validation=0.5)
    for row, values in enumerate([[1.5, 2.0, 1.0], [0.0, 3.0, 1.0], [7.0, 8.0, 1.0]]):
        digest = hashlib.sha256(np.array(values).tobytes()).digest()
        held_out = int.from_bytes(digest[:8], "big") < 0.5 * 2**64
        assert (row in data.validation.rows) == held_out


def test_more_rows_move_no_other_and_equal_rows_stay_together(tmp_path: Path) -> None:
    rows = lines(200)
    few = prepare(write(tmp_path, rows))
    held_out = {rows[row] for row in few.validation.rows}
    more = prepare(write(tmp_path, lines(50, seed=1) + rows + rows))
    assert {row - 50 for row in more.validation.rows.tolist() if 50 <= row < 250} == set(few.validation.rows)
    both = {row - 250 for row in more.validation.rows.tolist() if row >= 250}
    assert both == set(few.validation.rows) and held_out


def test_means_and_deviations_are_those_of_the_training_rows(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, lines(500)), validation=0.3)
    assert np.allclose(data.train.inputs.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(data.train.inputs.std(axis=0), 1, atol=1e-5)
    assert np.abs(data.validation.inputs.mean(axis=0)).max() > 1e-3


def test_large_numbers_keep_their_small_differences(tmp_path: Path) -> None:
    """Seconds since 1970 differ by less than float32 can tell, until the mean is taken away."""
    rows = [f"{1_700_000_000 + n},1,red,{'cat' if n % 2 else 'dog'}" for n in range(8)]
    data = prepare(write(tmp_path, rows), validation=0)
    assert len(set(data.train.inputs[:, 0].tolist())) == 8


def test_target_numbers_are_standardised_and_turned_back(tmp_path: Path) -> None:
    data = prepare(write(tmp_path, lines(100)), "numbers", target=["weight", "height"], validation=0.2)
    assert data.train.targets.shape[1] == 2 and np.allclose(data.train.targets.std(axis=0), 1, atol=1e-5)
    written = (tmp_path / "rows.csv").read_text().splitlines()[1:]
    weights = [float(written[row].split(",")[1]) for row in data.validation.rows]
    assert np.allclose(data.columns.numbers(data.validation.targets)[:, 0], weights, atol=1e-3)


def test_marks_are_several_columns_of_yes_and_no(tmp_path: Path) -> None:
    write(tmp_path, ["1,0,1", "2,1,1", "4,0,0"], "x,funny,sad")
    data = prepare(tmp_path, "marks", target=["funny", "sad"], validation=0)
    assert data.train.targets.tolist() == [[0, 1], [1, 1], [0, 0]] and data.columns.outputs == (
        "funny",
        "sad",
    )
    write(tmp_path, ["1,0,1", "2,1,3"], "x,funny,sad")
    assert "'sad' holds 3 in row 2" in refused(tmp_path, "marks", target=["funny", "sad"])


def test_whole_numbers_as_classes_are_sorted_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, ["1,10", "2,9", "3,2"], "x,kind")
    assert prepare(tmp_path, validation=0).columns.classes == ("2", "9", "10")


def test_the_digits_are_images_with_one_mean_for_all_pixels() -> None:
    data = prepare_table(TableConfig(), "classes", base=Path())
    assert (data.num_inputs, data.num_outputs, data.columns.shape) == (64, 10, (8, 8))
    assert len(set(data.columns.mean)) == len(set(data.columns.scale)) == 1
    assert sum(map(len, parts(data))) == 1797 and data.warnings == ()
    assert data.origin(16) == "python:digits row 17"


def test_what_is_missing_is_named_with_its_column_and_rows(tmp_path: Path) -> None:
    rows = ["1,2,red,cat", ",2,red,cat", "nan,3,,dog", "inf,4,red,"]
    text = refused(write(tmp_path, rows))
    assert "'height' in 3 rows (2, 3, 4)" in text
    assert "'colour' in 1 row (3)" in text and "'kind' in 1 row (4)" in text and "data.features" in text
    assert "height" not in refused(tmp_path, features=["weight", "colour"]).split("expected")[0]


def test_text_with_many_values_is_refused_with_an_example(tmp_path: Path) -> None:
    rows = [f"{n},{n},name {n},{'cat' if n % 2 else 'dog'}" for n in range(40)]
    text = refused(write(tmp_path, rows))
    assert "'colour' is text with 40 different values, such as 'name 0' in row 1" in text
    rows = [f"{n},{n},{'three' if n == 3 else n},{'cat' if n % 2 else 'dog'}" for n in range(40)]
    assert "such as 'three' in row 4" in refused(write(tmp_path, rows))
    dates = [f"{n},{n},2024-01-{n + 1:02d},{'cat' if n % 2 else 'dog'}" for n in range(20)]
    assert "values of type date" in refused(write(tmp_path, dates))


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"target": []}, "classes", "One of the columns: height, weight, colour, kind"),
        ({"target": "kidn"}, "classes", "did you mean 'kind'"),
        ({"features": ["size"]}, "classes", "There is no column 'size'"),
        ({"target": "height"}, "classes", "which is no class"),
        ({"target": ["kind", "colour"]}, "classes", "names 2 columns"),
        ({}, "numbers", "'kind' holds 'cat' in row 1"),
        ({"target": ["height", "weight", "colour", "kind"]}, "numbers", "only columns are the target"),
        ({"validation": 0.999999}, "classes", "nothing is left to train on"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], kind: str, words: str
) -> None:
    rows = ["1.5,2,red,cat", "2.5,3,green,dog", "3.5,4,red,dog"]
    assert words in refused(write(tmp_path, rows), kind, **settings)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    assert "same value in every row: cat" in refused(write(tmp_path, ["1,2,red,cat", "2,3,red,cat"]))


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    (warning,) = prepare(write(tmp_path, lines(60)), validation=0).warnings
    assert "data.validation is 0" in warning
    same = prepare(write(tmp_path, [f"{n},7,red,{n % 2}" for n in range(50)]))
    assert "nothing is learnt from it: weight, colour=red" in same.warnings[0]
    assert same.train.inputs[:, 1].tolist() == [0.0] * len(same.train)
    many = prepare(write(tmp_path, [f"{n},{n},red,{n}" for n in range(50)]))
    assert "50 classes for 50 rows" in many.warnings[-1] and "without a training row" in many.warnings[-2]


def test_the_digest_follows_content_and_settings_only(tmp_path: Path) -> None:
    rows = lines(80)
    first = prepare(write(tmp_path, rows))
    (tmp_path / "elsewhere").mkdir()
    assert prepare(write(tmp_path / "elsewhere", rows)).digest == first.digest
    changed = rows.copy()
    changed[7] = changed[7].replace("cat", "dog") if "cat" in changed[7] else "1,2,red,cat"
    digests = {
        first.digest,
        prepare(write(tmp_path, changed)).digest,
        prepare(write(tmp_path, rows), validation=0.3).digest,
        prepare(tmp_path, test=0.1).digest,
        prepare(tmp_path, standardise=False).digest,
        prepare(tmp_path, features=["weight", "height", "colour"]).digest,
        prepare(write(tmp_path, rows[::-1])).digest,
    }
    assert len(digests) == 7


def test_columns_are_json_and_back_and_damage_is_named(tmp_path: Path) -> None:
    columns = prepare(write(tmp_path, lines(30))).columns
    values = json.loads(json.dumps(columns.model_dump(mode="json"), allow_nan=False))
    assert configs.build(Columns, values, origin="columns.json") == columns
    damaged = {**values, "mean": values["mean"][1:], "classes": ["cat"], "temperature": 0}
    with pytest.raises(ConfigError) as caught:
        configs.build(Columns, damaged, origin="columns.json")
    assert all(word in str(caught.value) for word in ("mean", "classes", "temperature"))


def test_settings_that_clash_are_refused_together() -> None:
    given = {"target": "a", "features": ["a", "b", "b"], "validation": 0.6, "test": 0.5}
    with pytest.raises(ConfigError) as caught:
        configs.build(TableConfig, given, origin="The recipe")
    assert len(caught.value.problems) == 3
