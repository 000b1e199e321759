"""One rank of several computes wrong numbers, or holds a wrong copy: found within an interval, named, and gone round.

Processes with torch's gloo between them train one recipe after the other; what errs, errs in one rank alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_port
from sessions import RECIPE, Breaker, Broken, at_pass, flip, wrong_product

from glassformer.run.folder import Run
from glassformer.train import start
from glassformer.train.interrupt import Interrupt
from glassformer.train.loop import Session
from glassformer.train.optimizers import build_optimizers
from glassformer.train.parallel.joining import joined
from glassformer.train.recipe import load_recipe
from glassformer.train.silent import MachineErred

HOST = socket.gethostname()
WEIGHT = "blocks.0.mlp.up.weight"
PLACE = 5 * 16 + 3
Deed = Callable[[Session], None]


def nothing(session: Session) -> None:
    pass


def once(session: Session) -> None:
    """The step's own pass, in a step whose replay is of this rank's rows."""
    wrong_product(session, at_pass(session, 19, 2))


def in_the_replay(session: Session) -> None:
    """Only this rank's replay of the other's rows."""
    wrong_product(session, at_pass(session, 29, 1, rows_of=0))


def always(session: Session) -> None:
    wrong_product(session, lambda: (session.guard.last or 0) >= 22)


def at(session: Session, done: int, deed: Callable[[], None], *, times: int = 1) -> None:
    """When so many updates have been done, and again whenever they are."""
    whole, left = session._count, [times]

    def count(*given: Any, **named: Any) -> str | None:
        if session.guard.last == done - 1 and left[0]:
            left[0] -= 1
            deed()
        return whole(*given, **named)

    session._count = count  # type: ignore[method-assign] # a memory that errs


def turn(bit: int, done: int = 23, times: int = 1, also: str = "") -> Deed:
    def deed(session: Session) -> None:
        def turned() -> None:
            weight = session.weights.masters[WEIGHT]
            average = session.optimizers[0].state[weight]["exp_avg"]
            flip(session.ranks.mine({"": average if also == "optimiser" else weight})[""], PLACE, bit)
            if also == "memory":
                flip(session.guard.memory._model[WEIGHT], PLACE, bit)

        at(session, done, turned, times=times)

    return deed


def otherwise(session: Session) -> None:
    """Another machine: it adds in another order, and rounds an update otherwise."""
    session.model.use_attention("fused")
    optimizer = session.recipe.optimizer.model_copy(update={"epsilon": 1.0001e-8})
    session.recipe = session.recipe.model_copy(update={"optimizer": optimizer})
    session.optimizers = build_optimizers(optimizer, session.weights.masters)
    session.guard.optimizers = session.optimizers


DIGESTS = {"faults.replay_every": 0}
SHARDED = {"parallel.shard": "all"}
RUNS: dict[str, tuple[int, Deed, dict[str, Any]]] = {
    "whole": (2, nothing, {"faults.replay_every": 0, "faults.digest_every": 0, "model.dropout": 0.1}),
    "watched": (2, nothing, {"model.dropout": 0.1}),
    "undisturbed": (2, nothing, {}),
    "once": (2, once, {}),
    "in the replay": (2, in_the_replay, {}),
    "always": (2, always, {}),
    "turned": (2, turn(18), DIGESTS),
    "optimiser": (2, turn(20, done=28, also="optimiser"), DIGESTS),
    "memory": (2, turn(18, also="memory"), DIGESTS),
    "stuck": (2, turn(18, times=9), DIGESTS),
    "saved": (2, turn(12), DIGESTS | {"faults.digest_every": 1000, "faults.remember_every": 0}),
    "otherwise": (2, otherwise, {}),
    "always 3": (3, always, {"train.batch": 6}),
    "turned 3": (3, turn(18), {"train.batch": 6}),
    "sharded": (2, nothing, SHARDED),
    "sharded once": (2, once, SHARDED),
    "copies of shards": (4, nothing, SHARDED | {"parallel.shard": 2}),
    "copies of shards turned": (4, turn(18), SHARDED | {"parallel.shard": 2}),
}
SETTINGS = {
    "data.paths": ["texts"], "train.steps": 30, "train.checkpoint_every": 15, "faults.replay_every": 10,
    "faults.digest_every": 10, "faults.remember_every": 10,
}  # fmt: skip


def train(rank: int, folder: str, ports: dict[str, int]) -> None:
    torch.set_num_threads(1)
    for name, (count, deed, overrides) in RUNS.items():
        if rank >= count:
            continue
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(ports[name]),
        }  # fmt: skip
        ended = "done"
        try:
            one_run(Path(folder), name, deed if rank == 1 else nothing, overrides)
        except MachineErred as error:
            ended = str(error)
        (Path(folder) / f"{name}.{rank}").write_text(ended, encoding="utf-8")


def one_run(folder: Path, name: str, deed: Deed, overrides: dict[str, Any]) -> None:
    recipe, _ = load_recipe(RECIPE, {**SETTINGS, **overrides})
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
    folder = tmp_path_factory.mktemp("silent ranks")
    Breaker(folder)  # its texts
    ports = {name: free_port() for name in RUNS}
    server = multiprocessing.get_context("forkserver")  # which loads torch once for all
    server.set_forkserver_preload(["torch._dynamo", "glassformer.train.loop", "pytest"])
    processes = [server.Process(target=train, args=(rank, str(folder), ports)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    yield folder


def ends(folder: Path, name: str) -> list[str]:
    return [(folder / f"{name}.{rank}").read_text(encoding="utf-8") for rank in range(RUNS[name][0])]


def found_in(folder: Path, name: str) -> Broken:
    assert set(ends(folder, name)) == {"done"}
    return Broken(folder / name)


def test_computing_twice_and_comparing_copies_changes_no_number(folder: Path) -> None:
    found = found_in(folder, "watched")
    assert found.decisions == [] and found.warned == "" and found.story == found_in(folder, "whole").story
    for name in ("undisturbed", "sharded", "copies of shards"):
        assert found_in(folder, name).decisions == [] and found_in(folder, name).warned == ""


@pytest.mark.parametrize(("name", "step"), [("once", 20), ("in the replay", 30)])
def test_a_product_that_was_wrong_once_on_one_rank_costs_nothing_and_the_rank_is_named(
    folder: Path, name: str, step: int
) -> None:
    found = found_in(folder, name)
    assert found.decisions == [(step, "silent", "again", None)]
    (fault,) = found.all("fault")
    assert fault["ranks"] == [{"rank": 1, "host": HOST}]
    assert fault["tensors"][0]["tensor"] == "loss" and fault["tensors"][1]["rank"] == 1
    assert found.story == found_in(folder, "undisturbed").story


@pytest.mark.parametrize("name", ["always", "always 3"])
def test_a_rank_that_always_multiplies_wrongly_is_named_and_the_run_does_not_go_on_with_it(
    folder: Path, name: str
) -> None:
    """Of three, two agree; of two, the one that float64 does not bear out."""
    said = ends(folder, name)
    assert len(set(said)) == 1 and f"rank 1 ({HOST}) erred and does so again, in loss first" in said[0]
    assert (
        "Step 30 gave two answers" in said[0] and f"Test memory and processor of rank 1 ({HOST})" in said[0]
    )
    found = Broken(folder / name)
    assert found.decisions == [(30, "silent", "stop", None)]
    assert [event["step"] for event in found.all("checkpoint")] == [15]


@pytest.mark.parametrize(
    ("name", "step", "back"),
    [("turned", 30, 20), ("optimiser", 30, 20), ("memory", 30, 15), ("saved", 30, 15), ("turned 3", 29, 20)],
)
def test_one_bit_of_one_copy_is_found_within_an_interval_and_the_run_is_as_if_it_had_not_been(
    folder: Path, name: str, step: int, back: int
) -> None:
    """Before a checkpoint is saved; by the replay too, which then shows other answers of other weights."""
    found = found_in(folder, name)
    (fault,) = found.all("fault")
    assert (fault["step"], fault["kind"], fault["decision"]) == (step, "copies_differ", "roll_back")
    assert fault["step_back"] == back
    named = [row["tensor"] for row in fault["tensors"]]
    assert named == ([WEIGHT, f"{WEIGHT}.exp_avg"] if name == "optimiser" else [WEIGHT])
    values = fault["tensors"][0]["values"]
    if name == "turned 3":
        assert fault["ranks"] == [{"rank": 1, "host": HOST}] and values[0] == values[2] != values[1]
    else:
        assert len(values) == 2 and values[0] != values[1]
        assert f"step {step} done again: rank 1 ({HOST}) held the wrong copy" in found.warned
        assert found.story == found_in(folder, "undisturbed").story


def test_a_bit_that_turns_again_and_again_ends_the_run(folder: Path) -> None:
    said = ends(folder, "stuck")
    assert len(set(said)) == 1 and "copies differ" in said[0] and "the run stops" in said[0]
    assert "Every checkpoint was the same on all ranks" in said[0]


def test_machines_that_round_otherwise_are_told_apart_from_such_that_err(folder: Path) -> None:
    found = found_in(folder, "otherwise")
    assert "the ranks' machines differ in the last digits" in found.warned and found.decisions == []
    assert "their copies of the weights drift apart in the last digits: they are not compared" in found.warned


def test_of_sharded_weights_a_wrong_product_and_a_wrong_copy_of_a_part_are_found(folder: Path) -> None:
    found = found_in(folder, "sharded once")
    assert found.decisions == [(20, "silent", "again", None)]
    assert found.all("fault")[0]["ranks"] == [{"rank": 1, "host": HOST}]
    for row in found.all("fault")[0]["tensors"][1:]:  # of this rank's own parts
        assert abs(row["lengths"][0] - row["lengths"][1]) < 0.1 * row["lengths"][1]
    assert found.story == found_in(folder, "sharded").story
    turned = found_in(folder, "copies of shards turned")
    (fault,) = turned.all("fault")
    assert (fault["step"], fault["kind"], fault["step_back"]) == (30, "copies_differ", 20)
    values = fault["tensors"][0]["values"]
    assert values[0] is None and values[2] is None and values[1] != values[3]
    assert turned.story == found_in(folder, "copies of shards").story
