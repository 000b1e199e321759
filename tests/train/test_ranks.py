"""Many ranks, one curve: the same as on one, whatever the mesh, and whatever befalls a rank.

Ranks are real processes with torch's gloo between them, begun as by hand (RANK, WORLD_SIZE, ...), by torchrun and by
`--ranks`. Tolerances are of float32: sums over ranks are taken in another order than sums over micro-batches.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from safetensors.numpy import load_file
from trainer import Ended, Trainer

import glassformer as gf
from glassformer.errors import ConfigError
from glassformer.train.world import World

SOURCE = Path(gf.__file__).parents[1]
AT_STEP_5 = 'writes: "event": "step"+"step": 5,'
PLAIN = (
    "--model.dropout",
    "0",
    "--model.heads",
    "4",
    "--train.batch",
    "8",
    "--train.validation_tokens",
    "100000",
)
ONE = (*PLAIN, "--train.accumulate", "4")
TOLERANCE = 2e-6
"""Of losses and gradients, relative: a few units in the last place of float32."""
IN_BFLOAT16 = 2e-3
"""With Muon, which rounds each momentum to bfloat16: a last digit more or less of the sum may round the other way."""


def place(rank: int, count: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} | {k: str(v) for k, v in numbers.items()}


def ranks(
    trainer: Trainer, count: int, run: str, *more: str, deed: str = "", at: str = AT_STEP_5
) -> list[Ended]:
    """Every rank's end. `deed` befalls the last rank at a moment of rank 0's, the only one that writes."""
    port, begun = free_port(), []
    for rank in reversed(range(count)):
        plans: tuple[dict[str, Any], ...] = ()
        if deed and rank == 0:
            plans = ({"at": at, "do": f"{deed} {begun[0][0]}"},)
        pid = trainer.start(run or None, *more, plans=plans, **place(rank, count, port))
        begun.append((pid, trainer.count - 1))
    return [trainer.end(pid, number) for pid, number in reversed(begun)]


def assert_same_curve(trainer: Trainer, run: str, other: str, tolerance: float = TOLERANCE) -> None:
    one, many = trainer.story(run), trainer.story(other)
    assert many["consumed"] == one["consumed"]  # the same samples, in the same order
    for kind in ("steps", "validation"):
        assert len(one[kind]) == len(many[kind])
        for expected, found in zip(one[kind], many[kind], strict=True):
            assert found == pytest.approx(expected, rel=tolerance)
    assert many["samples"] == one["samples"]
    left, right = (load_file(trainer.run(name).model / "model.safetensors") for name in (run, other))
    assert left.keys() == right.keys()
    for name in left:
        assert right[name] == pytest.approx(left[name], abs=max(2e-4, 5 * tolerance)), (
            name
        )  # see docs/ranks.md


@pytest.fixture(scope="module")
def one(module_trainer: Trainer) -> Trainer:
    """A trainer on whose folder one rank has trained with each optimiser."""
    for kind in ("adamw", "muon", "lion"):
        assert module_trainer(f"one-{kind}", *ONE, "--optimizer.kind", kind).exit == 0
    return module_trainer


@pytest.mark.parametrize(
    ("count", "shard", "tensor", "kind"),
    [
        (2, "1", 1, "adamw"),
        (2, "1", 1, "muon"),
        (2, "all", 1, "adamw"),
        (2, "all", 1, "lion"),
        (2, "all", 1, "muon"),
        (2, "1", 2, "adamw"),
        (4, "1", 1, "adamw"),
        (4, "2", 1, "adamw"),
        (4, "all", 1, "adamw"),
        (4, "1", 2, "adamw"),
        (4, "2", 2, "adamw"),
        (4, "1", 4, "adamw"),
    ],
)
def test_every_mesh_gives_the_curve_of_one_rank_with_more_accumulation(
    one: Trainer, count: int, shard: str, tensor: int, kind: str
) -> None:
    run = f"{count}-{shard}-{tensor}-{kind}"
    parallel = ("--parallel.shard", shard, "--parallel.tensor", str(tensor))
    accumulate = 4 // count if tensor == 1 else 1  # fewer, larger parts: tensor groups exchange in each
    options = ("--train.accumulate", str(accumulate), "--optimizer.kind", kind)
    ended = ranks(one, count, run, *PLAIN, *parallel, *options)
    assert [end.exit for end in ended] == [0] * count, ended[0].said
    assert not any(end.events for end in ended[1:])  # rank 0 alone tells
    assert "Warning" not in ended[0].said
    assert_same_curve(one, f"one-{kind}", run, IN_BFLOAT16 if kind == "muon" else TOLERANCE)


@pytest.mark.parametrize("shard", ["1", "all"])
def test_a_run_goes_from_one_rank_to_two_and_back_with_the_same_curve_and_order(
    one: Trainer, shard: str
) -> None:
    run, options = f"back-{shard}", (*PLAIN, "--parallel.shard", shard)
    stop = ({"at": 'writes: "event": "step"+"step": 3,', "do": "SIGTERM"},)
    assert one(run, *options, plans=stop).exit == 75
    stopped = ranks(one, 2, run, *options, deed="SIGTERM", at='writes: "event": "step"+"step": 7,')
    assert [end.exit for end in stopped] == [75, 75]
    last = one(run, *options)
    assert last.exit == 0 and 3 < stopped[0].all("resumed")[0]["step"] + 1 < last.all("resumed")[0]["step"]
    assert_same_curve(one, "one-adamw", run)


def test_a_run_goes_from_sharded_to_tensor_parallel_to_one_rank_with_the_same_curve(one: Trainer) -> None:
    at = 'writes: "event": "step"+"step": {},'
    sharded = ranks(one, 2, "goes", *PLAIN, "--parallel.shard", "all", deed="SIGTERM", at=at.format(3))
    tensor = ranks(one, 2, "goes", *PLAIN, "--parallel.tensor", "2", deed="SIGTERM", at=at.format(7))
    assert [end.exit for end in (*sharded, *tensor)] == [75] * 4
    last = one("goes", *PLAIN)
    assert last.exit == 0 and 3 < tensor[0].all("resumed")[0]["step"] + 1 < last.all("resumed")[0]["step"]
    assert_same_curve(one, "one-adamw", "goes")


def test_the_same_command_with_the_work_divided_otherwise_goes_on_in_the_same_folder(one: Trainer) -> None:
    assert one(None, *PLAIN, "--stop-after", "0s").exit == 75
    last = ranks(one, 2, "", *PLAIN, "--parallel.shard", "all")  # no --run: rank 0 finds the folder
    assert [end.exit for end in last] == [0, 0] and last[0].all("resumed")
    assert [path.name for path in (one.folder / "runs").iterdir()] == ["tiny-1"]


def test_a_signal_to_any_rank_stops_all_after_the_same_step_with_everything_saved(one: Trainer) -> None:
    first, second = ranks(one, 2, "asked", *PLAIN, deed="SIGUSR1")
    assert (first.exit, second.exit) == (75, 75)
    assert "SIGUSR1 was received" in first.said and first.events[-1]["event"] == "stopped"
    assert first.all("checkpoint")[-1]["step"] == first.all("step")[-1]["step"]
    assert one.run("asked").verify() == []


def test_the_error_of_one_rank_ends_the_others_within_seconds_as_their_cause(one: Trainer) -> None:
    began = time.monotonic()
    first, second = ranks(one, 2, "fails", *PLAIN, "--train.steps", "100000", deed="SIGPROF")
    assert time.monotonic() - began < 20
    assert (first.exit, second.exit) == (1, 1)
    assert "MemoryError: not even 3 bytes" in second.said
    assert "Rank 1 failed: " in first.said and "memory ran out (MemoryError: not even 3 bytes)" in first.said


def test_a_killed_rank_ends_the_others_and_the_same_command_goes_on_to_the_bit(one: Trainer) -> None:
    assert [end.exit for end in ranks(one, 2, "undisturbed", *PLAIN)] == [0, 0]
    began = time.monotonic()
    first, second = ranks(one, 2, "killed", *PLAIN, deed="SIGKILL")
    assert time.monotonic() - began < 20
    assert second.exit == -signal.SIGKILL and first.exit == 1
    assert (
        "Another rank ended without a word" in first.said and "goes on from the last checkpoint" in first.said
    )
    again = ranks(one, 2, "killed", *PLAIN)
    assert [end.exit for end in again] == [0, 0] and again[0].all("resumed")[0]["step"] == 3
    assert one.story("killed") == one.story("undisturbed")


def test_a_rank_says_in_seconds_what_it_cannot_begin_with(one: Trainer) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for rank, words in ((0, "the port is in use"), (1, "nobody answers as rank 0 would")):
            began = time.monotonic()
            ended = one("never", "--parallel.timeout", "2", **place(rank, 2, port))
            assert ended.exit == 2 and words in ended.said and f"localhost:{port}" in ended.said
            assert time.monotonic() - began < 10
    alone = one("never", "--parallel.timeout", "2", **place(0, 2, free_port()))
    assert alone.exit == 2 and "of 2 ranks, 1 is not here" in alone.said
    wrong = one("never", "--train.batch", "6", "--parallel.shard", "3", **place(0, 4, free_port()))
    assert wrong.exit == 2 and "train.batch 6 does not divide over 4 ranks with 2 micro-batches" in wrong.said
    assert "parallel.shard 3 does not divide 4 ranks" in wrong.said
    assert not (one.folder / "never").exists()


def test_ranks_meet_where_there_is_ipv6_alone_or_nothing_but_the_loopback(one: Trainer) -> None:
    try:
        with socket.socket(socket.AF_INET6) as taken:
            taken.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    port, begun = free_port(), []
    for rank in range(2):
        here = place(rank, 2, port) | {"MASTER_ADDR": "::1"}
        begun.append((one.start("six", *PLAIN, "--train.steps", "3", **here), one.count - 1))
    ended = [one.end(*started) for started in begun]
    assert [end.exit for end in ended] == [0, 0], ended[0].said
    if os.geteuid() != 0:
        pytest.skip("only root can take the network away")
    alone = "ip link set lo up && exec "
    train = f"{sys.executable} -m glassformer train tiny.toml --run lonely --ranks 2 --train.steps 3"
    here = {"GLASSFORMER_HOME": str(one.home), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", alone + train + " " + " ".join(PLAIN)],
        cwd=one.folder, env={**os.environ, **here}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "unshare failed" in done.stderr or "ip: not found" in done.stderr:
        pytest.skip("the network cannot be taken away here")
    assert done.returncode == 0, done.stderr


def test_all_that_is_wrong_with_the_environment_is_told_at_once() -> None:
    assert World.here({}) == World.here({"RANK": "0", "WORLD_SIZE": "1"}) == World()
    with pytest.raises(ConfigError) as missing:
        World.here({"RANK": "1"})
    assert len(missing.value.problems) == 4 and "WORLD_SIZE is not set" in str(missing.value)
    with pytest.raises(ConfigError) as wrong:
        World.here(place(2, 2, 70000) | {"LOCAL_RANK": "-1"})
    assert "of WORLD_SIZE 2 ranks the last is 1" in str(wrong.value)
    assert "LOCAL_RANK is '-1'" in str(wrong.value) and "70000, not a port" in str(wrong.value)


def test_what_needs_whole_matrices_is_not_sharded(one: Trainer) -> None:
    ended = one("never", "--parallel.shard", "all", "--optimizer.kind", "adafactor", "--engine.compile", "on")
    assert ended.exit == 2 and "'adafactor' needs whole matrices" in ended.said
    assert "engine.compile 'on' has no effect with parallel.shard" in ended.said


def test_what_does_not_divide_over_tensor_groups_is_told_at_once(one: Trainer) -> None:
    options = (
        "--model.kv_heads",
        "1",
        "--model.feedforward",
        "9",
        "--train.batch",
        "6",
        "--parallel.shard",
        "4",
    )
    ended = one("never", *options, "--parallel.tensor", "2", **place(0, 4, free_port()))
    assert ended.exit == 2 and "parallel.tensor 2 does not divide key and value heads (1)" in ended.said
    assert "parallel.tensor 2 does not divide model.feedforward (9)" in ended.said
    assert "train.batch 6 does not divide over 2 groups of 2 ranks with 2 micro-batches each" in ended.said
    assert "parallel.shard 4 does not divide 2 groups of 2 ranks" in ended.said
    alone = one("never", "--parallel.tensor", "2")
    assert alone.exit == 2 and "parallel.tensor 2 does not divide 1 rank" in alone.said


def test_few_files_know_torchs_distributed_engine() -> None:
    allowed = ("train/parallel/", "train/launch.py", "run/checkpoints.py", "run/shards.py")
    imports = re.compile(r"^\s*(from|import) torch(\.|\._C\._|.* import )distributed", re.M)
    files = [
        path for path in (SOURCE / "glassformer").rglob("*.py") if imports.search(path.read_text("utf-8"))
    ]
    names = [str(path.relative_to(SOURCE / "glassformer")) for path in files]
    assert names and all(name.startswith(allowed) for name in names)
