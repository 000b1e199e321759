"""A tiny recipe, and processes that train it and may be killed at any moment (see forked_trainer.py)."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassformer.run.folder import Run

RECIPE = """\
name = "tiny"

[data]
paths = ["texts"]
validation = 0.2

[tokenizer]
kind = "bytes"

[model]
width = 16
layers = 1
heads = 2
context = 16
dropout = 0.1

[train]
steps = 12
batch = 4
accumulate = 2
checkpoint_every = 3
save_beside = false
validate_every = 4
validation_tokens = 200
sample_every = 4
sample_tokens = 4
log_every = 1

[engine]
device = "cpu"
precision = "fp32"
compile = "off"
attention = "explicit"

[faults]
most_crashes = 0  # tests kill one run again and again
"""


@dataclass(frozen=True)
class Ended:
    """What came of a process: its exit code (a signal's is negative), its events and what it said."""

    exit: int
    events: list[dict[str, Any]]
    said: str

    def all(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


class Trainer:
    """Starts `glassformer train tiny.toml --run RUN --json` in a process of its own, in a folder of its own."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, home: Path) -> None:
        self.server, self.folder, self.home = server, folder, home
        self.count = 0
        (folder / "texts").mkdir()
        for number in range(40):
            line = f"In room {number} the cat sat on mat {number * 7 % 30}; nobody in house {number % 9} knew why.\n"
            (folder / "texts" / f"{number}.txt").write_text(line * 2, encoding="utf-8")
        (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")

    def start(
        self,
        run: str | None,
        *more: str,
        what: str = "tiny.toml",
        plans: tuple[dict[str, Any], ...] = (),
        module: str | None = None,
        **environment: str,
    ) -> int:
        """The pid of a process that has begun; without a `run` the program chooses the folder.

        `plans` are what befalls it, see forked_trainer.py; with `module` it runs that in place of `glassformer train`.
        """
        request = {
            "arguments": ["train", what, *(["--run", run] if run else []), "--json", *more],
            "folder": str(self.folder),
            "environment": {"GLASSFORMER_HOME": str(self.home), **environment},
            "out": str(self.folder / f"out-{self.count}"),
            "err": str(self.folder / f"err-{self.count}"),
            "plans": plans,
            **({"module": module} if module else {}),
        }
        self.count += 1
        pid: int = self._ask(request)["pid"]
        return pid

    def end(self, pid: int, number: int | None = None) -> Ended:
        """Wait for it. `number` counts the processes of this trainer from 0; left out, the last one begun."""
        number = self.count - 1 if number is None else number
        exit_code = self._ask({"wait": pid})["exit"]
        lines = (self.folder / f"out-{number}").read_text(encoding="utf-8").splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return Ended(exit_code, events, (self.folder / f"err-{number}").read_text(encoding="utf-8"))

    def __call__(self, run: str | None, *more: str, **options: Any) -> Ended:
        """The whole life of a process."""
        return self.end(self.start(run, *more, **options))

    def run(self, name: str) -> Run:
        return Run.open(self.folder / name)

    def story(self, name: str) -> dict[str, Any]:
        """What must be the same to the bit, whatever befell the processes of a run."""
        run = self.run(name)
        step_keys = ("step", "loss", "grad_norm", "learning_rate", "tokens")
        done = run.events.last("done")
        assert done is not None
        return {
            "steps": [[row[key] for key in step_keys] for row in run.rows()],
            "validation": [
                [row["step"], row["loss"], row["tokens"]] for row in run.events.curve("validation")
            ],
            "samples": {(row["step"], row["prompt"]): row["text"] for row in run.events.curve("sample")},
            "consumed": done["consumed"],
            "model": (run.model / "model.safetensors").read_bytes(),
        }

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer: dict[str, Any] = json.loads(self.server.stdout.readline())
        return answer
