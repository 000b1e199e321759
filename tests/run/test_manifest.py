"""What a run was made with, and what a container really allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from glassformer.run.manifest import (
    cpu_model,
    describe,
    free_memory_bytes,
    memory_bytes,
    num_cores,
    oom_kills,
)


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_manifest_names_code_libraries_machine_and_digests_and_no_absolute_path() -> None:
    found = describe(data="d1", tokenizer="t1")
    assert found["glassformer"] and found["libraries"]["torch"] and found["python"]
    assert (found["data"], found["tokenizer"]) == ("d1", "t1")
    assert found["machine"]["cores"] >= 1 and found["machine"]["memory_bytes"] > 2**20
    assert str(Path.home()) not in json.dumps(found) and str(Path.cwd()) not in json.dumps(found)


def test_the_commit_is_that_of_our_own_checkout() -> None:
    head = subprocess.run(
        ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert describe()["commit"].removesuffix("+changes") == head.stdout.strip()


def test_describing_does_not_load_torch() -> None:
    look = "manifest.describe(); sys.exit('torch' in sys.modules)"
    program = f"import sys; from glassformer.run import manifest; {look}"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_smallest_limit_of_the_nested_control_groups_counts(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "proc/meminfo": "MemTotal:       16777216 kB\n",
            "proc/cpuinfo": "processor : 0\nmodel name\t: Abacus 9\n",
            "sys/fs/cgroup/outer/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/memory.max": "1073741824\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        },
    )
    assert num_cores(root) == 1
    assert memory_bytes(root) == 2**30
    assert cpu_model(root) == "Abacus 9"


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4096\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert num_cores(root) == 1
    assert memory_bytes(root) == 4096


def test_what_a_group_holds_is_not_free_but_cached_files_are_and_its_kills_are_counted(
    tmp_path: Path,
) -> None:
    second = {
        "proc/self/cgroup": "0::/job\n",
        "proc/meminfo": "MemTotal:       16777216 kB\nMemAvailable:   8388608 kB\n",
        "sys/fs/cgroup/job/memory.max": "1000000\n",
        "sys/fs/cgroup/job/memory.current": "700000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 500000\ninactive_file 150000\n",
        "sys/fs/cgroup/job/memory.events": "low 0\nhigh 0\nmax 31\noom 3\noom_kill 2\n",
    }
    assert free_memory_bytes(written(tmp_path / "2", second)) == 450_000
    assert oom_kills(tmp_path / "2") == 2
    first = {
        "proc/self/cgroup": "4:memory:/job\n",
        "proc/meminfo": "MemTotal:       16777216 kB\nMemAvailable:   8388608 kB\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "900000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "cache 100000\ntotal_inactive_file 50000\n",
        "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
    }
    assert free_memory_bytes(written(tmp_path / "1", first)) == 150_000
    assert oom_kills(tmp_path / "1") == 5
    assert oom_kills(tmp_path) is None and free_memory_bytes(tmp_path) is None


def test_a_system_that_says_nothing_gives_the_affinity_and_no_memory(tmp_path: Path) -> None:
    assert num_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert memory_bytes(tmp_path) is None
