"""Configuration and environment as they are on other people's machines (faults 41 and 46)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from as_a_user import RECIPE, Answer, program, write_project


def test_every_typo_of_a_recipe_is_listed_before_any_text_is_read(tmp_path: Path) -> None:
    write_project(tmp_path)
    wrong = (
        RECIPE.replace("width", "widht")
        .replace("batch = 2", 'batch = "two"')
        .replace("heads = 2", "heads = 3")
    )
    (tmp_path / "wrong.toml").write_text(wrong, encoding="utf-8")
    answer = program("train", "wrong.toml", "--model.layrs", "2", cwd=tmp_path)
    assert answer.exit_code == 2 and answer.out == ""
    for told in ("model.widht", "'width'", "model.layrs", "'layers'", "train.batch", "'two'", "3 heads"):
        assert told in answer.err
    assert "Traceback" not in answer.err and "reading the text" not in answer.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("home", ["none", "read-only"])
def test_a_windows_recipe_in_an_awkward_folder_without_a_home_works(tmp_path: Path, home: str) -> None:
    project = write_project(tmp_path / "Zoë's Texte – 日本語")
    recipe = project / "mein rezept.toml"
    recipe.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "GLASSFORMER_HOME")}
    kept = {name: value for name, value in kept.items() if not name.startswith("XDG_")}
    kept |= {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    if home == "read-only":
        kept["HOME"] = "/dev/null"  # nothing can be made in there, not even by root
    command = [sys.executable, "-m", "glassformer", "train", recipe.name, "--run", "läufe/erster lauf"]
    done = subprocess.run(command, cwd=project, env=kept, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert (project / "läufe/erster lauf/report.html").exists()
    verified = program("runs", "verify", "läufe/erster lauf", cwd=project)
    assert verified == Answer(0, "läufe/erster lauf: whole\n", "")


def test_a_reader_that_has_seen_enough_is_no_error(finished: tuple[Path, Answer]) -> None:
    command = f"{shlex.quote(sys.executable)} -m glassformer runs show runs/tiny-1 --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=finished[0], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{" and done.stderr == ""
