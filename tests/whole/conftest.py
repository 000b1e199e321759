"""A project in which a tiny run was trained once, and the program to try on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from as_a_user import Answer, program, write_project

from glassformer.cli.main import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A project in which `glassformer train tiny.toml --json` came to its end, and what it answered."""
    project = write_project(tmp_path_factory.mktemp("project"))
    return project, program(
        "train", "tiny.toml", "--json", cwd=project, GLASSFORMER_HOME=str(project / "home")
    )


@pytest.fixture
def project(finished: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project to be in, with the run `runs/tiny-1`."""
    copy = tmp_path / "project"
    shutil.copytree(finished[0], copy)
    monkeypatch.setenv("GLASSFORMER_HOME", str(copy / "home"))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The program in this process, which has torch already."""

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        exit_code = main(list(arguments))
        captured = capsys.readouterr()
        return Answer(exit_code, captured.out, captured.err)

    return call
