"""Memory really runs out, because the process may not hold more: what is said and done, and that nothing changes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_port
from test_ranks import assert_same_curve, place
from test_step import Learner, a_batch
from torch import Tensor
from trainer import Ended, Trainer

import glassformer as gf
from glassformer.errors import ConfigError
from glassformer.model.count import Precision
from glassformer.train.out_of_memory import is_out_of_memory
from glassformer.train.recipe import load_recipe
from glassformer.train.step import update

MIB = 2**20
LARGE = (
    "--model.width", "64", "--model.heads", "32", "--model.layers", "2", "--model.context", "64",
    "--model.dropout", "0", "--train.batch", "32", "--train.steps", "2", "--train.checkpoint_every", "1",
    "--train.validate_every", "9", "--train.sample_every", "9", "--faults.replay_every", "0",
)  # fmt: skip
"""51 MiB of activations beside 7 MiB of everything else."""
ONCE = ("--train.accumulate", "1")
HALVE = (*LARGE, *ONCE, "--faults.out_of_memory", "halve")
BEGIN = "asks: open+tiny.toml"


def held(at: str, mib: int) -> dict[str, Any]:
    """From then on, the process may hold so much more than it does."""
    return {"at": at, "do": f"memory {mib * MIB}"}


def halvings(ended: Ended) -> list[tuple[int, int, int, int]]:
    return [(e["step"], e["rank"], e["rows"], e["accumulate"]) for e in ended.all("memory")]


@pytest.fixture(scope="module")
def whole(module_trainer: Trainer) -> Trainer:
    """A trainer on whose folder a run with all the memory it wants has ended."""
    ended = module_trainer("whole", *LARGE, *ONCE)
    assert ended.exit == 0, ended.said
    return module_trainer


def test_a_step_that_does_not_fit_ends_with_the_numbers_and_what_it_proposes_fits(whole: Trainer) -> None:
    assert whole("short", *LARGE, *ONCE, "--stop-after", "0s").exit == 75
    ended = whole("short", *LARGE, *ONCE, plans=(held(BEGIN, 30),))
    assert ended.exit == 1 and "Traceback" not in ended.said
    for words in (r"In the step after step 1 memory ran out \(RuntimeError: DefaultCPUAllocator: can't allocate",
                  r"The largest part is activations, 5\d\.\d MiB", r"micro-batches of 32 rows holds weights 4\d\d",
                  r"optimiser's memory [\d.]+ [KM]iB", r"logits 4\.0 MiB", r"\d MiB are free",
                  r"faults\.out_of_memory 'halve'", r"With --run short it goes on"):  # fmt: skip
        assert re.search(words, ended.said), (words, ended.said)
    assert whole.run("short").verify() == []
    proposed = re.search(r"train\.accumulate (\d+) \(micro-batches of (\d+) rows, the same math", ended.said)
    assert proposed and int(proposed[1]) * int(proposed[2]) == 32
    again = whole("short", *LARGE, "--train.accumulate", proposed[1], plans=(held(BEGIN, 30),))
    assert again.exit == 0 and again.all("resumed")[0]["step"] == 1, again.said
    assert_same_curve(whole, "whole", "short")


def test_a_micro_batch_is_halved_until_it_fits_and_a_run_that_goes_on_begins_there(whole: Trainer) -> None:
    ended = whole("halved", *HALVE, plans=(held(BEGIN, 30),))
    assert ended.exit == 0, ended.said
    assert halvings(ended)[0] == (1, 0, 16, 2) and halvings(ended)[-1][2] in (4, 8)
    assert "memory ran out" in ended.all("memory")[0]["message"]
    assert_same_curve(whole, "whole", "halved")
    kill = {"at": 'writes: "event": "checkpoint"+"step": 1,', "do": "SIGKILL"}
    assert whole("killed", *HALVE, plans=(held(BEGIN, 30), kill)).exit == -9
    went_on = whole("killed", *HALVE, plans=(held(BEGIN, 30),))
    assert went_on.exit == 0 and halvings(went_on) == [] and went_on.all("resumed")[0]["step"] == 1
    assert whole.story("killed") == whole.story("halved")


def test_all_ranks_halve_together_when_one_has_to(whole: Trainer) -> None:
    port, begun = free_port(), []
    for rank in (1, 0):
        plans = (
            (held(BEGIN, 900), held("asks: powercap", 22)) if rank == 1 else ()
        )  # where joules are looked for
        pid = whole.start("two", *HALVE, plans=plans, **place(rank, 2, port))
        begun.append((pid, whole.count - 1))
    second, first = (whole.end(*one) for one in begun)
    assert (first.exit, second.exit) == (0, 0), first.said + second.said
    assert halvings(first)[0] == (1, 1, 8, 2) and not second.events
    assert_same_curve(whole, "whole", "two")


def test_where_not_even_one_row_fits_that_is_said(whole: Trainer) -> None:
    ended = whole("hopeless", *HALVE, plans=(held(BEGIN, 900), held("writes: using fp32", 3)))  # fmt: skip
    assert ended.exit == 1 and "memory ran out" in ended.said and "a smaller model" in ended.said, ended.said


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_broke_off_half_way_leaves_nothing_behind(precision: Precision) -> None:
    straight, broken = Learner(precision=precision), Learner(precision=precision)
    calls, whole_loss = [0], broken.loss

    def loss(**given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole_loss(**given)

    def fit(compute: Any) -> Tensor:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            compute(4)
        assert is_out_of_memory(raised.value)
        found: Tensor = compute(8)
        return found

    expected = straight.step(a_batch(), accumulate=8)
    found = update(
        loss, broken.weights, broken.optimizers, a_batch(), rate=1.0, clip=None, device=torch.device("cpu"), fit=fit
    )  # fmt: skip
    assert found == expected
    assert all(map(torch.equal, straight.weights.masters.values(), broken.weights.masters.values()))


def test_what_is_about_memory_and_what_is_not() -> None:
    about = [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), OSError(12, "Cannot allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError("std::bad_alloc"),
    ]  # fmt: skip
    assert all(map(is_out_of_memory, about))
    others = [RuntimeError("shapes do not fit"), OSError(28, "No space left on device"), KeyboardInterrupt()]
    assert not any(map(is_out_of_memory, others))


def test_ranks_with_parts_of_the_weights_cannot_halve_which_is_said_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"'halve' cannot be done with parallel\.shard"):
        load_recipe("demo", {"parallel.shard": 2, "faults.out_of_memory": "halve"})


# Other things that there may be too few of (31; the tokenizer's threads and forks: tests/text/test_faults_text.py)


def test_with_no_file_left_to_open_the_limit_is_named_and_a_few_are_enough_for_a_run(
    trainer: Trainer,
) -> None:
    small = ("--train.steps", "2")
    few = trainer("few", *small, plans=({"at": BEGIN, "do": "files 3"},))
    assert few.exit == 1 and "Traceback" not in few.said, few.said
    assert "Too many open files" in few.said and "files open at once" in few.said, few.said
    enough = trainer("few", *small, plans=({"at": BEGIN, "do": "files 24"},))
    assert enough.exit == 0, enough.said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_no_room_in_shared_memory_is_none_of_a_runs_business(trainer: Trainer) -> None:
    port = free_port()
    begun = [
        (trainer.start("shm", "--train.steps", "2", plans=({"at": BEGIN, "do": "shm"},), **place(rank, 2, port)),
         trainer.count - 1) for rank in range(2)
    ]  # fmt: skip
    ended = [trainer.end(*one) for one in begun]
    assert [end.exit for end in ended] == [0, 0], ended[0].said


# The kernel, which asks nobody

KILLED = """
import os, subprocess, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from glassformer.run.manifest import free_memory_bytes, oom_kills
from glassformer.train.launch import why_killed
before = oom_kills()
assert free_memory_bytes() < 80 * 2**20
child = subprocess.run([sys.executable, "-c", "b = bytearray(300 * 2**20); print('alive')"])
assert child.returncode == -9
print(why_killed(before), why_killed(oom_kills()), sep="\\n", file=sys.stderr)
"""


@pytest.fixture
def small_group() -> Any:
    """A control group of 80 MiB."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        group = Path("/sys/fs/cgroup", controllers, path.lstrip("/"), "glassformer-test")
        try:
            group.mkdir()
        except OSError:
            continue
        limit = group / ("memory.limit_in_bytes" if controllers else "memory.max")
        if limit.exists() and os.access(limit, os.W_OK):
            limit.write_text(str(80 * MIB))
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("control groups cannot be made here")


def test_a_rank_that_the_kernel_killed_for_want_of_memory_is_told_from_others(small_group: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(gf.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(small_group)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "alive" not in done.stdout, done.stderr
    certain, unsure = done.stderr.splitlines()
    assert "the kernel did it because memory ran out" in certain
    assert "the kernel does that when memory runs out (dmesg tells)" in unsure
