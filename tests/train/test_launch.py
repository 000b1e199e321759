"""The process is settled before torch is loaded, and never against the user's own settings."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from glassformer.run.manifest import num_cores
from glassformer.train.launch import cores, keep_pages, thread_settings

SETTLE = """
import json, os, sys
{before}
from glassformer.train.launch import prepare_process
prepare_process({threads})
assert ("torch" in sys.modules) == {loaded}
print(json.dumps({{name: value for name, value in os.environ.items() if name.startswith("OMP_")}}))
{after}
"""


def settled(threads: str = "", before: str = "", after: str = "", **environment: str) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "PYTEST", "LOCAL_WORLD"))}
    program = SETTLE.format(threads=threads, before=before, after=after, loaded="torch" in before)
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain | environment, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[0])
    return found


def test_one_thread_a_core_each_bound_to_its_own() -> None:
    places = ",".join(f"{{{core}}}" for core in sorted(os.sched_getaffinity(0)))
    assert settled() == {"OMP_NUM_THREADS": str(cores()), "OMP_PROC_BIND": "true", "OMP_PLACES": places}


def test_what_the_user_set_is_left_as_it_is() -> None:
    assert settled(OMP_NUM_THREADS="1", OMP_PROC_BIND="false") == {
        "OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "false", "OMP_PLACES": settled()["OMP_PLACES"],
    }  # fmt: skip


def test_what_is_begun_on_all_cores_is_not_bound_to_one() -> None:
    program = (
        "from glassformer.train.launch import on_all_cores, prepare_process; prepare_process(); "
        "import os, torch; torch.ones(300, 300) @ torch.ones(300, 300)\n"
        "bound = os.sched_getaffinity(0)\n"
        "with on_all_cores(): inside = os.sched_getaffinity(0)\n"
        "print(len(bound), len(inside), os.sched_getaffinity(0) == bound)"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "PYTEST", "LOCAL_WORLD"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", str(len(os.sched_getaffinity(0))), "True"]


def test_once_torch_is_loaded_nothing_is_changed() -> None:
    assert settled(before="import torch") == {}


def test_torch_then_computes_with_that_many_threads() -> None:
    settled(threads="1", after="import torch; assert torch.get_num_threads() == 1")


def test_ranks_on_one_machine_are_not_bound_to_the_same_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert thread_settings(3) == {"OMP_NUM_THREADS": "3"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not know affinity")
def test_cores_are_those_of_the_processs_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_cores_are_cut_by_the_control_groups_quota(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (tmp_path / "sys/fs/cgroup/box").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/box/cpu.max").write_text("50000 100000\n")
    assert num_cores(tmp_path) == 1


def test_glibc_keeps_its_pages_and_no_other_library_is_asked_to() -> None:
    assert keep_pages() == (platform.libc_ver()[0] == "glibc")


def test_the_first_use_from_python_settles_the_process_before_torch_is_loaded() -> None:
    program = (
        "import os, sys, glassformer as gf\n"
        "before = 'OMP_NUM_THREADS' in os.environ\n"
        "gf.load\n"
        "print(before, 'torch' in sys.modules, os.environ['OMP_NUM_THREADS'])"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "PYTEST", "LOCAL_WORLD"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True", str(cores())]
