"""The search over layouts: what it counts, that it orders by time, and that it ranks layouts as they were measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from glassformer.errors import UsageError
from glassformer.plan.architecture import Architecture
from glassformer.plan.flops import training
from glassformer.plan.hardware import accelerator
from glassformer.plan.layout import CHOICES, Job, Layout
from glassformer.plan.memory import memory, total_bytes
from glassformer.plan.precision import PRECISIONS
from glassformer.plan.rows import Row, measured_rows
from glassformer.plan.search import Search, divisions, in_words, search
from glassformer.plan.steptime import step_time

LLAMA = Architecture(
    name="8B", layers=32, width=4096, heads=32, kv_heads=8, head_width=128, ff_width=14336, ff_matrices=3, vocab=128256,
    tied=False,
)  # fmt: skip
JOB = Job(LLAMA, accelerator("H100-SXM-80GB"), PRECISIONS["bf16"], Layout(), batch=64, length=8192)


@pytest.fixture(scope="module")
def found() -> Search:
    return search(JOB, 16)


def test_every_layout_uses_all_accelerators_and_the_whole_batch(found: Search) -> None:
    lay = found.layouts()
    assert np.all(np.asarray(lay.accelerators) == 16)
    assert np.all(JOB.batch % (np.asarray(lay.data) * np.asarray(lay.micro_batch)) == 0)
    assert np.all(LLAMA.heads % np.asarray(lay.tensor) == 0)
    assert np.all(np.asarray(lay.pipeline) * np.asarray(lay.interleave) <= 32)


def test_no_layout_is_there_twice(found: Search) -> None:
    numbers = np.stack([np.asarray(getattr(found.layouts(), name)) for name in CHOICES], axis=1)
    assert len(np.unique(numbers, axis=0)) == len(numbers)


def test_each_that_was_tried_fits_or_is_counted_by_its_reason(found: Search) -> None:
    assert found.tried == len(found.seconds) + sum(found.impossible.values())
    assert found.impossible["do not fit the memory"] > 0


def test_the_first_is_the_fastest_and_times_and_bytes_are_its_own(found: Search) -> None:
    assert np.all(np.diff(found.seconds) >= -1e-12 * found.seconds[1:])
    best = replace(JOB, layout=found.best)
    assert found.seconds[0] == pytest.approx(float(step_time(best).total))
    assert found.bytes[0] == pytest.approx(float(memory(best).total))
    assert found.bytes.max() <= 0.95 * JOB.accelerator.memory


def test_runners_up_say_where_they_lose_their_time(found: Search) -> None:
    for one in found.runners_up(3):
        gap = one["seconds"] - found.seconds[0]
        assert sum(one["lost"].values()) == pytest.approx(gap, abs=1e-9)
    said = found.explain(2)
    assert len(said) == 3
    assert "most of it on" in said[1]
    assert found.rows(3)[0]["slower"] == 0


def test_without_memory_only_sharded_layouts_are_left() -> None:
    whole = search(JOB, 8, size=lambda job: np.where(np.asarray(job.layout.sharding) == 3, 1.0, 1e30))
    assert set(np.asarray(whole.layouts().sharding)) == {3}


@pytest.mark.parametrize("experts", [0, 64])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp32"])
def test_stages_0_and_1_of_zero_need_no_look_since_2_is_as_quick_and_holds_no_more(
    experts: int, precision: str
) -> None:
    a = replace(LLAMA, experts=experts, active=8, dense_layers=2, expert_width=2048) if experts else LLAMA
    some = search(replace(JOB, architecture=a, precision=PRECISIONS[precision]), 64, room=np.inf).layouts()
    two = replace(some, sharding=np.where(np.asarray(some.sharding) > 0, 2, 0))
    best = replace(JOB, architecture=a, precision=PRECISIONS[precision], layout=two)
    shards = np.asarray(two.sharding) == 2
    for stage in (0, 1):
        other = replace(best, layout=replace(two, sharding=np.where(shards, stage, 0)))
        assert np.all(step_time(best).total <= step_time(other).total)
        assert np.all((total_bytes(best) < total_bytes(other)) | ~shards)


def test_no_context_rank_has_fewer_than_256_tokens() -> None:
    assert np.max(search(replace(JOB, length=2048, batch=256), 16).layouts().context) == 8


def test_where_nothing_fits_the_reasons_are_said() -> None:
    nothing = search(replace(JOB, batch=7), 8, size=lambda job: np.full(np.shape(job.layout.data), 1e30))
    with pytest.raises(UsageError, match="do not fit the memory"):
        _ = nothing.best


def test_usual_layouts_are_some_of_all_and_divide_by_powers_of_two(found: Search) -> None:
    usual = search(JOB, 16, usual=True)
    assert 0 < len(usual.seconds) < len(found.seconds)
    every, some = ({one.at(n) for n in range(len(one.seconds))} for one in (found, usual))
    assert some < every
    for name in ("tensor", "context", "expert", "micro_batch"):
        numbers = np.asarray(getattr(usual.layouts(), name))
        assert np.all(numbers & (numbers - 1) == 0)
    assert np.max(usual.layouts().tensor) <= JOB.accelerator.domain


def test_one_accelerator_has_layouts_without_messages() -> None:
    every, _ = divisions(JOB, 1)
    assert set(every["data"]) == {1}
    assert set(np.asarray(search(JOB, 1).layouts().sharding)) <= {0}


def test_no_accelerators_are_refused() -> None:
    with pytest.raises(UsageError, match="0 accelerators"):
        search(JOB, 0)


def test_a_layout_reads_as_a_sentence() -> None:
    assert (
        in_words(Layout(data=4, tensor=8, sharding=1))
        == "4 data, 8 tensor, ZeRO-1, micro-batch 1, recompute none"
    )


def sweep(group: str) -> list[Row]:
    return [row for row in measured_rows() if row.group.startswith(group) and row.job and row.seconds]


def test_bloom_layouts_are_ranked_as_they_were_measured() -> None:
    rows = sweep("BLOOM prequel")
    forecast = [float(step_time(row.job).total) for row in rows if row.job]
    assert len(rows) == 46
    assert spearmanr([row.seconds for row in rows], forecast)[0] > 0.8


@pytest.mark.parametrize(
    "group", ["BLOOM prequel 0220-200B", "BLOOM prequel 0220-187B", "BLOOM prequel 0221-181B"]
)
def test_the_layout_that_is_chosen_is_within_5_percent_of_the_best_that_was_measured(group: str) -> None:
    rows = sweep(group)
    flops = [training(row.job.architecture, row.job.length) * row.job.tokens for row in rows if row.job]
    per_rank = np.array(flops) / np.array([float(row.fields["n_accel"]) for row in rows])
    measured = per_rank / np.array([row.seconds for row in rows])
    forecast = per_rank / np.array([float(step_time(row.job).total) for row in rows if row.job])
    assert measured[np.argmax(forecast)] > 0.95 * measured.max()
