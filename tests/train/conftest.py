"""Processes to train in, and where they keep their tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sessions import Breaker
from trainer import Trainer


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("forked_trainer.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout and process.stdin
        assert "ready" in process.stdout.readline()
        yield process
        process.stdin.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests of this room keep their tokens."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def trainer(server: subprocess.Popen[str], tmp_path: Path, home: Path) -> Trainer:
    return Trainer(server, tmp_path, home)


@pytest.fixture(scope="module")
def module_trainer(
    server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory, home: Path
) -> Trainer:
    """One folder for all tests of a file, so that what is trained once can be compared with often."""
    return Trainer(server, tmp_path_factory.mktemp("trained"), home)


@pytest.fixture(scope="module")
def breaker(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Breaker]:
    """Training in this process, its folder shared by the tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASSFORMER_HOME", str(home))
        patch.setitem(
            sys.modules, "vl_convert", None
        )  # as without the extra `plots`: reports take no seconds
        yield Breaker(tmp_path_factory.mktemp("broken"))
