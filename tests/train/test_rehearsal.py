"""A rehearsal says what real ranks hold and send: measured ones, and the formulas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from trainer import Trainer

import glassformer as gf
from glassformer.errors import ConfigError, UsageError
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.train.parallel.rehearsal import rehearse, tables
from glassformer.train.recipe import Recipe, load_recipe

HERE = Path(__file__).parent
MODEL = {
    "vocab": 509, "width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "context": 64, "activation": "silu",
    "gated": True, "tied": False,
}  # fmt: skip
PEAK = 0.005
"""Of the peak: kernels make some things otherwise than their shapes say (measured: up to 0.27%)."""
HELD = 1 / 6
"""Of the peak: an exchange that lasts holds its buffer past its use (measured: up to 11%)."""


def recipe(*, precision: str = "fp32", batch: int = 8, accumulate: int = 1, **tables: Any) -> dict[str, Any]:
    train = {"steps": 1, "batch": batch, "accumulate": accumulate}
    return {
        "model": MODEL, "train": train, "engine": {"precision": precision, "attention": "fused"}, **tables
    }  # fmt: skip


MESHES: dict[str, dict[str, Any]] = {
    "copies": recipe(),
    "copies in bfloat16, accumulating": recipe(precision="bf16", accumulate=2),
    "sharded, by lion": recipe(parallel={"shard": "all"}, optimizer={"kind": "lion"}),
    "sharded in bfloat16, accumulating": recipe(precision="bf16", accumulate=2, parallel={"shard": "all"}),
    "tensor": recipe(parallel={"tensor": 2}),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What two real ranks held and sent, for each mesh."""
    done = subprocess.run(
        [sys.executable, str(HERE / "measured_ranks.py"), str(tmp_path_factory.mktemp("ranks"))],
        input=json.dumps(list(MESHES.values())), capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(gf.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(MESHES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_rehearsed_rank_keeps_to_the_byte_what_a_real_one_keeps_and_exchanges_as_often(
    measured: dict[str, list[dict[str, Any]]], mesh: str
) -> None:
    copies = MESHES[mesh]["engine"]["precision"] == "bf16" and "parallel" not in MESHES[mesh]
    for rank, real in enumerate(measured[mesh]):
        found = rehearse(MESHES[mesh], ranks=2, rank=rank)
        most = {row["class"]: row["most_bytes"] for row in found.memory}
        assert (most["weights"], most["optimizer"]) == (real["kept"]["weights"], real["kept"]["optimizer"])
        assert copies or most["gradients"] == real["kept"]["gradients"]
        assert found.peak_bytes <= (1 + PEAK) * real["peak"] <= (1 + HELD) * found.peak_bytes
        sent = Counter({row["kind"]: row["count"] for row in found.exchanges})
        sent["all-reduce"] += sent.pop("reduce-scatter", 0)  # which gloo makes of it
        assert sent == {name.replace("_", "-"): times for name, times in real["counts"].items()}


def exchanges(values: dict[str, Any], ranks: int) -> dict[tuple[str, str], dict[str, Any]]:
    found = rehearse(values, ranks=ranks)
    return {(row["kind"], row["over"]): row for row in found.exchanges if row["payload_bytes"] > 100}


def config(values: dict[str, Any]) -> ModelConfig:
    loaded = load_recipe(values).recipe
    assert isinstance(loaded, Recipe)
    return loaded.model


def test_copies_sum_the_whole_gradient_once_however_many_micro_batches_there_are() -> None:
    total = count.parameters(config(recipe())).total
    for accumulate in (1, 4):
        found = exchanges(recipe(batch=64, accumulate=accumulate), 16)
        assert list(found) == [("all-reduce", "copies")]
        row = found["all-reduce", "copies"]
        assert row["payload_bytes"] == 4 * total + 4  # and the loss
        assert row["sent_bytes"] == pytest.approx(2 * 15 / 16 * 4 * total, abs=100)


@pytest.mark.parametrize("accumulate", [1, 5])
def test_sharded_weights_are_gathered_twice_and_their_gradient_is_summed_once_in_each_micro_batch(
    accumulate: int,
) -> None:
    values = recipe(precision="bf16", batch=40, accumulate=accumulate, parallel={"shard": 4})
    parameters = count.parameters(config(values))
    root = parameters.embedding + parameters.head + 64  # gathered once: it stays until its backward pass
    found = exchanges(values, 8)
    gathered, summed, copies = (
        found["all-gather", "shard"],
        found["reduce-scatter", "shard"],
        found["all-reduce", "copies"],
    )
    padded = 2 * 4 * 64 * 3  # 509 rows over 4 ranks are 512, of embedding and head
    assert gathered["count"] == 7 * accumulate and summed["count"] == 4 * accumulate
    assert gathered["payload_bytes"] == accumulate * 2 * (2 * parameters.total - root + padded // 4)
    assert summed["payload_bytes"] == accumulate * (4 * parameters.total + padded)
    assert summed["sent_bytes"] == summed["payload_bytes"] * 3 // 4
    assert (
        copies["payload_bytes"] == summed["payload_bytes"] // 4
    )  # an equal part's gradient, between two copies


def test_a_tensor_group_sums_two_activations_in_each_block_both_ways() -> None:
    for precision, size in (("fp32", 4), ("bf16", 2)):
        values = recipe(precision=precision, parallel={"tensor": 2})
        (row,) = (row for (_, over), row in exchanges(values, 2).items() if over == "tensor")
        rows = 8 * 64
        blocks, embedding, hidden = 3 * 4 * rows * 64 * size, rows * 64 * size, rows * 64 * size
        loss = rows * 4 * 4  # the largest logit, and three sums
        assert row["payload_bytes"] == pytest.approx(blocks + embedding + hidden + loss, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_one_rank_holds_what_the_arithmetic_of_the_model_says(precision: str, attention: str) -> None:
    values = recipe(precision=precision)
    values["engine"]["attention"] = attention
    model = config(values)
    kwargs: dict[str, Any] = {"precision": precision, "fused": attention == "fused"}
    told = count.memory(model, batch=8, **kwargs)
    found = rehearse(values, ranks=1)
    most = {row["class"]: row["most_bytes"] for row in found.memory}
    table = 4 * model.context * model.head_width  # cosines and sines
    master = told.copies if precision == "bf16" else 0
    assert most["weights"] == told.weights + master + table
    assert most["optimizer"] == pytest.approx(
        told.optimizer, abs=1000
    )  # and a number of steps for each weight
    copies = told.copies if precision == "autocast" else 0
    assert found.activation_bytes == pytest.approx(told.activations + copies, rel=0.05)


def test_uneven_parts_are_told_with_their_waste_and_the_last_rank_is_as_one_that_is_rehearsed() -> None:
    values = recipe(batch=12, parallel={"shard": 3, "tensor": 2})
    first, last = rehearse(values, ranks=6), rehearse(values, ranks=6, rank=5)
    assert first.uneven is not None and any(
        "do not divide into equal parts" in said for said in first.warnings
    )
    kept = {row["class"]: row["most_bytes"] for row in last.memory}
    assert (
        last.host["remembered"] + kept["gradients"]
        == first.uneven["last_rank_bytes"]
        < first.uneven["first_rank_bytes"]
    )
    assert first.uneven["waste_bytes"] > 0
    even = rehearse(recipe(parallel={"shard": 2}) | {"model": {**MODEL, "vocab": 512}}, ranks=4)
    assert even.uneven is None and even.warnings == []


def test_seventy_billion_parameters_on_sixteen_thousand_ranks_are_rehearsed_in_seconds() -> None:
    """Of 80 layers, 2: the time is theirs times 40, see docs/ranks.md."""
    model = {
        **MODEL,
        "vocab": 128256,
        "width": 8192,
        "layers": 2,
        "heads": 64,
        "kv_heads": 8,
        "context": 8192,
    }
    values = recipe(precision="bf16", batch=16384 // 8, parallel={"shard": 128, "tensor": 8}) | {
        "model": model
    }
    began = time.process_time()
    found = rehearse(values, ranks=16384, rank=12345)
    assert found.mesh == {"copies": 16, "shard": 128, "tensor": 8}
    assert found.largest == "activations" and found.peak_bytes > 2**32
    assert time.process_time() - began < 30


def test_what_cannot_be_divided_is_told_all_at_once_before_anything_is_opened(trainer: Trainer) -> None:
    with pytest.raises(ConfigError) as wrong:
        rehearse(recipe(batch=9, parallel={"shard": 3, "tensor": 4}), ranks=8)
    assert "parallel.shard 3 does not divide" in str(wrong.value) and "train.batch 9 does not" in str(
        wrong.value
    )
    assert "key and value heads" in str(wrong.value)
    with pytest.raises(UsageError, match="no rank 2 of 2"):
        rehearse(recipe(), ranks=2, rank=2)
    ended = trainer(None, "--dry-run", "--ranks", "3", "--data.paths", '["nowhere"]')
    assert ended.exit == 2 and "cannot be divided over 3 ranks" in ended.said and "nowhere" not in ended.said


def test_a_dry_run_on_ranks_is_one_document_and_starts_none(trainer: Trainer) -> None:
    ended = trainer("run", "--dry-run", "--ranks", "2048", "--train.batch", "4096", "--parallel.shard", "all")
    assert ended.exit == 0, ended.said
    (plan,) = ended.events
    assert plan["schema"] == "glassformer.plan" and plan["training_tokens"] > 0
    rehearsal = plan["rehearsal"]
    assert rehearsal["mesh"] == {"copies": 1, "shard": 2048} and rehearsal["rows"] == 1
    assert rehearsal["peak_bytes"] == sum(row["bytes"] for row in rehearsal["memory"])
    assert rehearsal["uneven"]["last_rank_bytes"] < rehearsal["uneven"]["first_rank_bytes"]
    assert not (trainer.folder / "run").exists()


def test_the_example_in_the_docs_is_what_a_dry_run_says(trainer: Trainer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ranks.md").read_text("utf-8").partition("## Rehearse")[2]
    (values,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (trainer.folder / "example.toml").write_text(values, "utf-8")
    ended = trainer(None, "--dry-run", "--ranks", "64", what="example.toml")
    assert ended.exit == 0, ended.said
    (plan,) = ended.events
    assert "rehearsed without the data: There is no file or directory far/away" in plan["warnings"][0]
    (shown,) = re.findall(r"```\n(recipe .*?)```", page, re.S)
    assert f"{plan['parameters']:,}" in shown
    for title, rows in tables(plan["rehearsal"]):
        assert title in shown
        for row in rows:
            cells = [f"{cell:,}" if isinstance(cell, int) else cell for cell in row.values()]
            assert " ".join(cells) in {" ".join(line.split()) for line in shown.splitlines()}
