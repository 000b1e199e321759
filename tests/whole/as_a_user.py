"""The program as a user has it: a folder of text, a tiny recipe, a command, and what it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = """\
name = "tiny"

[data]
paths = ["texts"]

[tokenizer]
kind = "bytes"

[model]
width = 16
layers = 1
heads = 2
context = 16

[train]
steps = 6
batch = 2
checkpoint_every = 2
save_beside = false
log_every = 1
sample_tokens = 4

[engine]
precision = "fp32"
compile = "off"
attention = "explicit"
"""


@dataclass(frozen=True)
class Answer:
    """What came of a command."""

    exit_code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def program(*arguments: str, cwd: Path, **environment: str) -> Answer:
    """`python -m glassformer` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "glassformer", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def write_project(folder: Path) -> Path:
    """A folder with some text and a recipe."""
    (folder / "texts").mkdir(parents=True)
    for number in range(30):
        line = f"In room {number} the cat sat on mat {number * 7 % 30}; nobody knew why.\n"
        (folder / "texts" / f"{number}.txt").write_text(line * 3, encoding="utf-8")
    (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    return folder
