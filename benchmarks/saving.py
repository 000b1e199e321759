"""What a checkpoint costs training: the wait for it, and how much slower steps are while it is written.

    python benchmarks/saving.py [--steps 24] [--ranks 2] [--shape 6 384] [--tokens 512] [--beside false]

Trains a small recipe of the shape (10.7 million weights as given, nanoGPT's baby) on few tokens a step and reads the
run's own events. A wait is what lies between two steps where a save was due, less what lies between two others. Of the
saves the first is left out: it makes the memory for the copy, which later ones use again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("GLASSFORMER_HOME", tempfile.mkdtemp())

from glassformer.run.folder import Run

EVERY = 6

RECIPE = """\
name = "saving"
[data]
paths = ["text.txt"]
split = "tail"
[tokenizer]
kind = "bytes"
[model]
context = 128
[train]
batch = 4
validate_every = 100000
sample_every = 100000
sample_tokens = 0
validation_tokens = 1000
log_every = 1
[optimizer]
kind = "adamw"
[engine]
device = "cpu"
precision = "fp32"
compile = "off"
attention = "blocks"
[faults]
remember_every = 0
look_every = 0
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument(
        "--ranks", type=int, default=1, help="with more than one, weights are divided over them"
    )
    parser.add_argument("--shape", type=int, nargs=2, default=(6, 384), metavar=("LAYERS", "WIDTH"))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument(
        "--beside", default=None, help="train.save_beside; left out, as the program does by itself"
    )
    args = parser.parse_args()
    layers, width = args.shape
    values = {
        "model.layers": layers, "model.width": width, "model.heads": width // 64,
        "train.steps": args.steps, "train.checkpoint_every": EVERY, "train.batch": max(1, args.tokens // 128),
    }  # fmt: skip
    if args.ranks > 1:
        values["parallel.shard"] = "all"
    if args.beside is not None:
        values["train.save_beside"] = args.beside
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        (Path(folder) / "text.txt").write_text(
            "The cat sat on the mat, and nobody knew why.\n" * 4000, "utf-8"
        )
        (Path(folder) / "saving.toml").write_text(RECIPE, "utf-8")
        flags = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "glassformer", "train", "saving.toml", "--run", "run", *flags]
        if args.ranks > 1:
            command += ["--ranks", str(args.ranks)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        show(list(Run.open(Path(folder) / "run").events.read()))


def show(events: list[dict[str, Any]]) -> None:
    steps = [event for event in events if event["event"] == "step"]
    took = {
        later["step"]: (moment(later) - moment(earlier), later["seconds"] - earlier["seconds"])
        for earlier, later in pairwise(steps)
    }
    due = [step for step in took if step % EVERY == 1 and step > EVERY + 1]  # a save lies before this step
    others = [step for step in took if step % EVERY == 0]  # long after one
    between = statistics.median(took[step][0] - took[step][1] for step in others)
    waits = [took[step][0] - took[step][1] - between for step in due]
    saves = [event for event in events if event["event"] == "checkpoint"][1:]
    print(f"step, nothing written:  {statistics.median(took[step][1] for step in others) * 1e3:8.1f} ms")
    print(f"step after a save:      {statistics.median(took[step][1] for step in due) * 1e3:8.1f} ms")
    print(f"training waited:        {statistics.median(waits) * 1e3:8.1f} ms (most {max(waits) * 1e3:.1f})")
    print(f"on the disk after:      {statistics.median(s['seconds'] for s in saves) * 1e3:8.1f} ms")
    if "stall_seconds" in saves[0]:
        print(f"copied in:              {statistics.median(s['stall_seconds'] for s in saves) * 1e3:8.1f} ms")
    print(
        f"bytes:                  {saves[0]['bytes']:,}; {len(saves) + 1} saves of {-(-len(steps) // EVERY)} due"
    )


def moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


if __name__ == "__main__":
    main()
