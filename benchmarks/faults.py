"""What the protections of [faults] cost an undisturbed run: steps with and without them, in pairs, in one process.

    python benchmarks/faults.py [--batch 8] [--pairs 12] [--shape 6 384]

`without` is train/step.py's update alone. `all at every step` keeps a copy of the state and looks for dead tensors and
exploding logits at every step; by default both come every 50th, so that of its extra time a fiftieth counts. The check
of loss and gradient, which every step has, is timed by itself. Printed are medians, and the sum as a share of a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GLASSFORMER_HOME", tempfile.mkdtemp())

import torch

from glassformer.train import start
from glassformer.train.config import FaultsConfig
from glassformer.train.loop import Session
from glassformer.train.ranks import ALONE
from glassformer.train.recipe import load_recipe
from glassformer.train.spikes import Watch
from glassformer.train.step import update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--batch", type=int, default=8, help="rows of 256 tokens; a larger one lowers the share"
    )
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--shape", type=int, nargs=2, default=(6, 384), metavar=("LAYERS", "WIDTH"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(Path(folder), args.batch, *args.shape)
        measure(session, args.pairs)


def prepare(folder: Path, batch: int, layers: int, width: int) -> Session:
    (folder / "text.txt").write_text(
        "The cat sat on the mat, and nobody knew why.\n" * 4000, encoding="utf-8"
    )
    recipe, _ = load_recipe({
        "data": {"paths": ["text.txt"], "split": "tail"}, "tokenizer": {"kind": "bytes"},
        "model": {"width": width, "layers": layers, "heads": width // 64, "context": 256},
        "train": {"steps": 100_000, "batch": batch},
        "engine": {"device": "cpu", "precision": "fp32", "compile": "off", "attention": "blocks"},
        "faults": {"remember_every": 1, "look_every": 1},
    })  # fmt: skip
    task = start.open_task(recipe, folder, lambda message: None)
    return Session(
        task,
        start.open_run(task, folder / "run", fresh=False, accept_data=False),
        lambda message: None,
        ALONE,
    )


def measure(session: Session, pairs: int) -> None:
    every = FaultsConfig().remember_every
    step = [0]

    def without() -> None:
        update(
            session.loss_of, session.weights, session.optimizers, session.task.batches.batch(step[0]),
            rate=0.1, clip=1.0, device=session.device,
        )  # fmt: skip

    def with_all() -> None:
        session._step(step[0], session.task.batches.batch(step[0]), 0.1)

    times: dict[str, list[float]] = {"without": [], "all at every step": []}
    for number in range(pairs + 1):
        order = [("without", without), ("all at every step", with_all)]
        for name, run in order if number % 2 else reversed(order):
            seconds = timed(run)
            step[0] += 1
            if number:  # the first pair touches the memory
                times[name].append(seconds)
    extra = statistics.median(b - a for a, b in zip(*times.values(), strict=True))
    plain = statistics.median(times["without"])
    watch = Watch(FaultsConfig())
    for n in range(100):
        watch.admit(3.0 + n % 7 / 10, 1.0 + n % 5 / 10)
    checks = [timed(lambda: (watch.judge(3.1, 1.1), watch.admit(3.1, 1.1))) for _ in range(200)]
    keeps = [timed(lambda: kept(session)) for _ in range(5)]
    saves = [timed(lambda: session.guard.damaged()) for _ in range(5)]
    check = statistics.median(checks)
    total = sum(w.numel() for w in session.weights.masters.values())
    print(f"{total:,} parameters, {session.task.batches.tokens_per_batch:,} tokens a step, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    for name, values in times.items():
        print(
            f"{name:20} {statistics.median(values) * 1e3:9.1f} ms  ({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"
        )
    print(
        f"{'difference':20} {extra * 1e3:9.1f} ms, of which a copy of the state {statistics.median(keeps) * 1e3:.1f} ms"
    )
    print(f"{'check of a step':20} {check * 1e3:9.3f} ms")
    print(f"{'before a checkpoint':20} {statistics.median(saves) * 1e3:9.1f} ms")
    share = (max(0.0, extra) / every + check) / plain
    print(f"cost by default: {share:.2%} of a step (of {plain * 1e3:.0f} ms)")


def kept(session: Session) -> None:
    session.guard.memory.keep(0, session.weights, session.optimizers, {})


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
