"""`batch(step)` of a table: a pure function, every row once an epoch, and every sample found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glassformer.text.table_batches import TableBatches, validation_table_batches
from glassformer.text.table_config import TableConfig
from glassformer.text.tables import PreparedTable, prepare_table


@pytest.fixture
def data(tmp_path: Path) -> PreparedTable:
    np.savez(tmp_path / "rows.npz", x=np.arange(50.0), z=np.arange(50.0) ** 2, y=np.arange(50) % 3)
    config = TableConfig(paths=("rows.npz",), standardise=False)
    return prepare_table(config, "classes", base=tmp_path)


def test_an_epoch_is_every_training_row_once_in_an_order_of_its_own(data: PreparedTable) -> None:
    rows = len(data.train)
    batches = TableBatches(data, batch=1, seed=5)
    assert batches.num_samples == batches.steps_per_epoch == rows and 30 < rows < 50
    epochs = [[batches.batch(e * rows + n).inputs[0, 0].item() for n in range(rows)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == data.train.inputs[:, 0].tolist()
    assert epochs[0] != epochs[1] != sorted(epochs[1])


def test_a_batch_is_the_same_alone_and_after_others_and_differs_by_seed(data: PreparedTable) -> None:
    batches = TableBatches(data, batch=8, seed=1)
    for step in range(20):
        batches.batch(step)
    fresh, other = (TableBatches(data, batch=8, seed=seed).batch(13) for seed in (1, 2))
    assert all(np.array_equal(a, fresh.arrays()[name]) for name, a in batches.batch(13).arrays().items())
    assert not np.array_equal(fresh.inputs, other.inputs)


def test_batches_of_any_size_walk_through_the_same_samples(data: PreparedTable) -> None:
    one = np.concatenate([TableBatches(data, batch=6, seed=3).batch(step).inputs for step in range(4)])
    assert np.array_equal(one, TableBatches(data, batch=24, seed=3).batch(0).inputs)


def test_inputs_and_targets_belong_to_the_row_that_locate_names(data: PreparedTable) -> None:
    batches = TableBatches(data, batch=16, seed=0)
    batch = batches.batch(7)
    assert batch.num_targets == 16 and list(batch.arrays()) == ["inputs", "targets"]
    assert batch.targets.dtype == np.int64 and batch.inputs.dtype == np.float32
    for place, sample in enumerate(batch.sample_ids.tolist()):
        found = batches.locate(sample)
        assert batch.inputs[place].tolist() == [found["row"], found["row"] ** 2]
        assert batch.targets[place] == found["row"] % 3
        assert found["epoch"] == sample // len(data.train)
        assert found["origin"] == f"rows.npz row {found['row'] + 1}"


def test_validation_reads_every_held_out_row_once(data: PreparedTable) -> None:
    batches = list(validation_table_batches(data.validation, batch=4))
    rows = np.concatenate([batch.sample_ids for batch in batches])
    assert rows.tolist() == data.validation.rows.tolist()
    assert np.concatenate([batch.inputs for batch in batches])[:, 0].tolist() == rows.tolist()
    assert [batch.num_targets for batch in batches[:-1]] == [4] * (len(batches) - 1)


def test_a_batch_larger_than_the_table_is_said(data: PreparedTable) -> None:
    assert TableBatches(data, batch=8, seed=0).warnings == []
    (warning,) = TableBatches(data, batch=200, seed=0).warnings
    assert f"{200 / len(data.train):.1f} times" in warning
