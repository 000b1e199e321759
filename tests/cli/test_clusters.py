"""docs/clusters.md: the Slurm script runs, with Slurm's own commands played by a few lines of shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from test_docs import VERBS, options

from glassformer.train.world import World

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = DOCS / "slurm.sbatch"
SLURM = {
    "srun": 'shift; for p in 0 1 2 3; do SLURM_PROCID=$p SLURM_LOCALID=$((p % 2)) SLURM_NTASKS=4 "$@" & done; '
    "for job in $(jobs -p); do wait $job || code=$?; done; exit ${code:-0}",
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" > requeued; fi',
    "glassformer": 'env > "rank-$RANK"; echo "$@" > "asked-$RANK"; exit $EXIT',
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder whose commands are Slurm's."""
    (tmp_path / "bin").mkdir()
    for name, lines in SLURM.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{lines}\n", "utf-8")
        command.chmod(0o755)
    return tmp_path


def submitted(job: Path, code: int) -> int:
    given = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS_PER_NODE": "2",
             "SLURM_CPUS_PER_TASK": "3", "EXIT": str(code)}  # fmt: skip
    path = f"{job / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPT)], cwd=job, env={**os.environ, **given, "PATH": path}, timeout=60
    )
    return done.returncode


def test_each_task_of_the_slurm_job_is_one_rank_in_its_place(job: Path) -> None:
    assert submitted(job, 0) == 0
    for rank in range(4):
        lines = (job / f"rank-{rank}").read_text("utf-8").splitlines()
        world = World.here(dict(line.split("=", 1) for line in lines if "=" in line))
        assert world == World(rank, 4, rank % 2, "node7", 20000 + 123456 % 20000)
        assert (job / f"asked-{rank}").read_text("utf-8").split()[:4] == [
            "train",
            "recipe.toml",
            "--run",
            "runs/slurm",
        ]
    assert not (job / "requeued").exists()


def test_the_slurm_job_is_requeued_when_all_is_saved_and_fails_when_it_fails(job: Path) -> None:
    assert submitted(job, 75) == 0
    assert (job / "requeued").read_text("utf-8").split() == ["requeue", "123456"]
    (job / "requeued").unlink()
    assert submitted(job, 1) == 1 and not (job / "requeued").exists()


def test_the_slurm_script_and_the_page_of_clusters_use_options_that_there_are() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    page = (DOCS / "clusters.md").read_text("utf-8")
    commands = re.findall(r"glassformer train (.*)", SCRIPT.read_text("utf-8") + page)
    assert len(commands) == 3
    for command in commands:
        assert set(re.findall(r"(--[a-z-]+)", command)) <= options(VERBS["train"])
    (program,) = re.findall(r"```python\n(.*?)```", page, re.S)
    compile(program, "clusters.md", "exec")
    (ray,) = re.findall(r"command = (\[.*\])", program)
    assert {word for word in json.loads(ray) if word.startswith("--")} <= options(VERBS["train"])
