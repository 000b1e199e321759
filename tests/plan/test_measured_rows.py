"""Measured rows as jobs: conventions of FLOPs, what is assumed, and tables of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glassformer.errors import UsageError
from glassformer.plan.layout import Recompute
from glassformer.plan.rows import measured_rows, reported_flops

ROWS = {row.id: row for row in measured_rows()}


def test_seconds_from_reported_flops_agree_with_printed_seconds_where_a_source_has_both() -> None:
    checked = []
    for row in ROWS.values():
        printed = row.fields["step_time_s"] and row.fields["tflops_per_accel_reported"]
        said = row.fields["flop_convention"]
        if row.job and printed and said.startswith(("6N + 12", "hardware FLOPs incl")):
            flops = reported_flops(row.fields, row.job)
            rate = float(row.fields["tflops_per_accel_reported"]) * 1e12 * float(row.fields["n_accel"])
            checked.append(flops / rate / float(row.fields["step_time_s"]))
    assert len(checked) > 150
    assert np.median(checked) == pytest.approx(1, abs=0.01)
    assert min(checked) > 0.9 and max(checked) < 1.1


def test_seconds_that_are_not_printed_come_from_flops_with_the_layers_twice() -> None:
    row = next(
        row for row in ROWS.values() if row.source == "narayanan2021" and row.fields["model"] == "GPT-145B"
    )
    d, layers, vocab, length, rows = 12288, 80, 51200, 2048, 2304
    published = 96 * rows * length * layers * d**2 * (1 + length / (6 * d) + vocab / (16 * layers * d))
    assert row.seconds == pytest.approx(published / (148e12 * 1536), rel=0.02)


def test_what_nobody_published_is_listed_as_assumed() -> None:
    row = next(row for row in ROWS.values() if row.source == "narayanan2021")
    assert "micro_batch" in row.assumed
    assert "tp" not in row.assumed


def test_rows_whose_shape_nobody_published_have_no_job_and_say_why() -> None:
    without = [row for row in ROWS.values() if row.job is None]
    assert without
    assert all(row.why_none for row in without)


def test_layouts_use_the_accelerators_of_the_row() -> None:
    for row in ROWS.values():
        if row.job and row.fields["tp"]:
            exact = row.job.layout.accelerators == float(row.fields["n_accel"])
            assert exact or row.source.startswith(("bloom", "nemo_longseq", "llama3", "torchtitan")), row.id


def test_a_table_of_ones_own_needs_only_the_columns_it_has(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text(
        "model,layers,d_model,heads,d_ff,ffn_matrices,vocab,seq_len,accelerator,n_accel,micro_batch,global_batch_seqs,"
        "recompute,step_time_s\nmine,32,4096,32,14336,3,128256,8192,H100-SXM-80GB,8,1,64,full,7.5\n"
    )
    (row,) = measured_rows(table)
    assert row.seconds == 7.5
    assert row.job is not None
    assert row.job.layout.accelerators == 8
    assert row.job.fused_attention
    assert row.job.layout.recompute == Recompute.FULL


def test_a_number_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("layers,d_model,heads,d_ff,ffn_matrices,vocab,seq_len,accelerator,n_accel,global_batch_seqs\n"
                     "many,4096,32,14336,3,128256,8192,H100-SXM-80GB,8,64\n")  # fmt: skip
    with pytest.raises(UsageError, match="line 2"):
        measured_rows(table)
