"""A ladder whose rungs are processes of their own, here and on a Ray cluster: killed, stopped, and gone on with.

Most rungs of these ladders are there already, copied from one that was trained in this process; those that are not
must come to the same losses, whoever trains them and however often they are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_ladder import BUDGET, RULES, Here, recipe

import glassformer as gf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent
CLIMB = """
import sys
sys.modules["vl_convert"] = None
import json, pathlib
import glassformer as gf
from glassformer.cli.main import _fail
from glassformer.errors import GlassformerError
from tiny_ladder import BUDGET, RULES, recipe

base, folder, on = sys.argv[1:4]
try:
    found = gf.ladder(recipe(pathlib.Path(base)), folder=folder, budget=BUDGET, rules=RULES, on=on, workers=2,
                      threads=int(sys.argv[4]))
except GlassformerError as error:
    sys.exit(_fail(str(error), error.exit_code))
print(json.dumps(found.to_dict()))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture(scope="module")
def done(base: Path) -> gf.Ladder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vl_convert", None)
        return gf.ladder(recipe(base), folder=base / "whole", budget=BUDGET, rules=RULES, on=Here())


@contextlib.contextmanager
def climbing(base: Path, folder: Path, on: str) -> Iterator[subprocess.Popen[str]]:
    """`gf.ladder` in a process of its own."""
    command = [sys.executable, "-c", CLIMB, str(base), str(folder), on, str(torch.get_num_threads())]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def without_the_top(base: Path, done: gf.Ladder, name: str) -> tuple[Path, Path]:
    """The ladder without the rung held back, and where that will be trained."""
    folder = base / name
    shutil.copytree(done.folder, folder / "tiny")
    run = folder / "tiny" / "runs" / done.design.held_back.name
    shutil.rmtree(run)
    return folder, run


def wait_for(seen: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    for _ in range(4000):
        if seen():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.03)
    raise AssertionError("it never came")


def has_a_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*/manifest.json"))


def who_trains(run: Path) -> int:
    """The process that holds the run's lock."""
    return int(json.loads((run / "run.lock").read_text())["pid"])


def times_resumed(run: Path) -> int:
    return sum(event["event"] == "resumed" for event in gf.Run.open(run).events.read())


def test_whatever_is_killed_or_stopped_the_ladder_goes_on_to_the_same_result_to_the_bit(
    base: Path, done: gf.Ladder
) -> None:
    folder, top = without_the_top(base, done, "killed")
    with climbing(base, folder, "local") as process:
        wait_for(lambda: has_a_checkpoint(top), process)
        psutil.Process(who_trains(top)).send_signal(signal.SIGKILL)
        wait_for(lambda: times_resumed(top), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 75, err
        assert "the same command goes on" in err
    with climbing(base, folder, "local") as process:
        wait_for(lambda: times_resumed(top) == 2, process)
        rung = psutil.Process(who_trains(top))
        process.kill()
        rung.wait(timeout=60)  # a rung whose ladder is gone stops by itself
    found = gf.ladder(recipe(base), folder=folder, budget=BUDGET, rules=RULES, on=Here())
    assert dict(found.losses) == dict(done.losses)
    assert found.forecast.loss == done.forecast.loss


def test_on_ray_a_killed_worker_is_replaced_and_the_ladder_ends_with_the_same_results(
    base: Path, done: gf.Ladder
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra `cluster`)")
    folder, top = without_the_top(base, done, "ray")
    with climbing(base, folder, "ray") as process:
        wait_for(lambda: has_a_checkpoint(top), process)
        worker = psutil.Process(who_trains(top))
        assert "ray::" in " ".join(worker.cmdline())
        worker.send_signal(signal.SIGKILL)
        found = answer(process)
    assert found["truth"] == done.truth
    assert found["forecast"] == done.forecast.loss
    assert not found["failed"]
    assert times_resumed(top) == 1
