"""What is decided about a fault is decided alike on all ranks, wherever it was: none goes on alone, none waits.

Two processes with torch's gloo between them train one recipe after the other; what breaks, breaks in rank 1 alone.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_port
from safetensors.torch import load_file
from sessions import RECIPE, Breaker, Broken, scale_loss, spoil_activations

import glassformer as gf
from glassformer.run.folder import Run
from glassformer.train import start
from glassformer.train.interrupt import Interrupt
from glassformer.train.loop import Session
from glassformer.train.parallel.joining import joined
from glassformer.train.recipe import load_recipe
from glassformer.train.step import Diverged


def nothing(session: Session) -> None:
    pass


def spoil(session: Session) -> None:
    spoil_activations(session, 49, once=False, row=1)


def spoil_once(session: Session) -> None:
    spoil_activations(session, 49, once=True, row=1)


def spike(session: Session) -> None:
    scale_loss(session, range(60, 61), 50)


def damage(session: Session) -> None:
    """One weight is NaN after step 57, once."""
    whole, left = session._count, [1]

    def count(*given: Any, **named: Any) -> str | None:
        if session.guard.last == 56 and left[0]:
            left[0] = 0
            with torch.no_grad():
                session.ranks.mine(session.weights.masters)["blocks.0.mlp.up.weight"][0, 0] = torch.nan
        return whole(*given, **named)

    session._count = count  # type: ignore[method-assign] # a core that errs


WILD = {
    "optimizer.kind": "sgd", "optimizer.learning_rate": 1e30, "schedule.warmup": 0, "train.clip": False,
}  # fmt: skip
STEPS = 66
SHARDED = {"parallel.shard": "all"}
TENSOR = {"parallel.tensor": 2}
RUNS: dict[str, tuple[Callable[[Session], None], dict[str, Any]]] = {
    "whole": (nothing, {}),
    "damaged": (damage, {}),
    "damaged-disk": (damage, {"faults.remember_every": 0}),
    "damaged-early": (damage, {"faults.remember_every": 0, "train.checkpoint_every": 1000}),
    "once": (spoil_once, {}),
    "spoiled": (spoil, {}),
    "spike": (spike, {"faults.spike": "roll_back"}),
    "stopped": (spoil, {"faults.not_finite": "stop"}),
    "wild": (nothing, {**WILD, **SHARDED, "faults.not_finite": "stop"}),
    "sharded-whole": (nothing, SHARDED),
    "sharded-damaged": (damage, SHARDED),
    "sharded-damaged-disk": (damage, {**SHARDED, "faults.remember_every": 0}),
    "sharded-once": (spoil_once, SHARDED),
    "sharded-spoiled": (spoil, SHARDED),
    "sharded-spike": (spike, {**SHARDED, "faults.spike": "roll_back"}),
    "tensor-whole": (nothing, TENSOR),
    "tensor-damaged": (damage, TENSOR),
    "tensor-spoiled": (spoil, TENSOR),
}


def train(rank: int, folder: str, ports: dict[str, int]) -> None:
    """All runs, as one of two ranks; how each ended is in `NAME.RANK`."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, (deed, overrides) in RUNS.items():
        os.environ["MASTER_PORT"] = str(ports[name])
        ended = "done"
        try:
            one_run(Path(folder), name, deed if rank == 1 else nothing, overrides)
        except Diverged as error:
            ended = str(error)
        (Path(folder) / f"{name}.{rank}").write_text(ended, encoding="utf-8")


def one_run(folder: Path, name: str, deed: Callable[[Session], None], overrides: dict[str, Any]) -> None:
    recipe, _ = load_recipe(RECIPE, {"data.paths": ["texts"], "train.steps": STEPS, **overrides})
    with joined(recipe.parallel, "cpu") as ranks:
        task = ranks.in_turn(lambda: start.open_task(recipe, folder, lambda message: None))
        path = folder / name
        if ranks.is_first:
            run = start.open_run(task, path, fresh=False, accept_data=False)
        else:
            run = Run.unwritten(path, recipe.resolved())
        with run.lock() if ranks.is_first else contextlib.nullcontext():
            session = Session(task, run, lambda message: None, ranks)
            deed(session)
            for _ in session.events(Interrupt(), None):
                pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ranks")
    Breaker(folder)  # its texts
    ports = {name: free_port() for name in RUNS}
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=train, args=(rank, str(folder), ports)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    yield folder


def ends(folder: Path, name: str) -> tuple[str, str]:
    first, second = ((folder / f"{name}.{rank}").read_text(encoding="utf-8") for rank in range(2))
    return first, second


MESHES = pytest.mark.parametrize("mesh", ["", "sharded-"], ids=["copies", "sharded"])


@MESHES
def test_a_weight_of_one_rank_takes_all_back_and_the_steps_since_are_the_same_to_the_bit(
    folder: Path, mesh: str
) -> None:
    for name, step_back in (("damaged", 40), ("damaged-disk", 40)):
        assert ends(folder, mesh + name) == ("done", "done")
        found = Broken(folder / (mesh + name))
        assert [d[:3] for d in found.decisions] == [(58, "not_finite", "roll_back")]
        (fault,) = found.all("fault")
        assert fault["step_back"] == step_back
        assert [(row["tensor"], row["rank"]) for row in fault["tensors"]] == [("blocks.0.mlp.up.weight", 1)]
        assert fault["place"]["place"] == "blocks.0.mlp.pre"
        assert fault["place"]["rank"] == (0 if mesh else 1)  # gathered weights are everybody's
        assert found.story == Broken(folder / f"{mesh}whole").story


def test_where_there_is_nothing_to_go_back_to_all_stop(folder: Path) -> None:
    first, second = ends(folder, "damaged-early")
    assert first.startswith("Step 58 not finite") and second.startswith("Step 58 not finite")
    (fault,) = Broken(folder / "damaged-early").all("fault")
    assert fault["decision"] == "stop"


@MESHES
def test_a_step_that_one_rank_erred_in_is_computed_again_by_all(folder: Path, mesh: str) -> None:
    assert ends(folder, f"{mesh}once") == ("done", "done")
    found = Broken(folder / f"{mesh}once")
    assert found.decisions == [(50, "not_finite", "again", None)] and "the machine erred" in found.warned
    assert found.story == Broken(folder / f"{mesh}whole").story


@MESHES
def test_a_batch_that_one_rank_cannot_take_is_left_out_by_all_with_its_sample_named(
    folder: Path, mesh: str
) -> None:
    assert ends(folder, f"{mesh}spoiled") == ("done", "done")
    found = Broken(folder / f"{mesh}spoiled")
    assert [d[2:] for d in found.decisions] == [("again", None), ("skip", 50)]
    fault = found.all("fault")[-1]
    assert len(fault["sample_ids"]) == 8 and fault["place"]["rank"] == 1
    assert fault["place"]["sample_id"] == fault["sample_ids"][5]  # row 1 of rank 1's four
    tokens = [row["tokens"] for row in found.run.rows()]
    assert tokens[-1] == (STEPS - 1) * 8 * 16


@MESHES
def test_a_spike_in_the_rows_of_one_rank_is_one_of_all(folder: Path, mesh: str) -> None:
    assert ends(folder, f"{mesh}spike") == ("done", "done")
    found = Broken(folder / f"{mesh}spike")
    assert [d[:3] for d in found.decisions] == [(61, "loss_spike", "again"), (61, "loss_spike", "skip")]
    assert found.all("fault")[-1]["samples"]


def test_what_befalls_one_rank_of_a_tensor_group_is_one_fault_of_all(folder: Path) -> None:
    assert ends(folder, "tensor-damaged") == ends(folder, "tensor-spoiled") == ("done", "done")
    damaged, spoiled = Broken(folder / "tensor-damaged"), Broken(folder / "tensor-spoiled")
    assert [d[:3] for d in damaged.decisions] == [(58, "not_finite", "roll_back")]
    (fault,) = damaged.all("fault")
    assert [(row["tensor"], row["rank"]) for row in fault["tensors"]] == [("blocks.0.mlp.up.weight", 1)]
    assert (fault["place"]["rank"], fault["place"]["place"]) == (
        0,
        "blocks.0.mlp_out",
    )  # where it has it from rank 1
    assert damaged.story == Broken(folder / "tensor-whole").story
    assert [d[2:] for d in spoiled.decisions] == [("again", None), ("skip", 50)]
    last = spoiled.all("fault")[-1]
    assert last["place"]["sample_id"] == last["sample_ids"][1]  # both have the same rows


def test_a_stop_ends_all_ranks_alike_with_a_bundle_that_is_whole(folder: Path) -> None:
    first, second = ends(folder, "stopped")
    assert first.startswith("Step 50 not finite") and second.startswith("Step 50 not finite")
    (fault,) = Broken(folder / "stopped").all("fault")
    found = gf.reproduce_fault(folder / "stopped" / fault["bundle"])
    assert found.loss > 0 and found.place is None  # what was wrong was rank 1's activations, not the numbers


def test_sharded_weights_that_diverge_stop_all_ranks_with_a_bundle_of_the_whole_model(folder: Path) -> None:
    first, second = ends(folder, "wild")
    assert "no weight was changed" in first and "no weight was changed" in second
    (fault,) = Broken(folder / "wild").all("fault")
    assert fault["decision"] == "stop" and fault["tensors"][0]["tensor"].startswith("gradient of ")
    bundle = folder / "wild" / fault["bundle"]
    whole = load_file(folder / "whole" / "model" / "model.safetensors")
    saved = load_file(bundle / "model.safetensors")
    assert {name: t.shape for name, t in saved.items()} == {name: t.shape for name, t in whole.items()}
    assert not math.isfinite(gf.reproduce_fault(bundle).grad_norm)
