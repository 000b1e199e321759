"""What the protections of [faults] cost an undisturbed run: steps with and without them, in pairs, in one process.

    python benchmarks/faults.py [--batch 8] [--pairs 12] [--shape 6 384]

`without` is train/step.py's update alone. `all at every step` keeps a copy of the state and looks for dead tensors and
exploding logits at every step; by default both come every 50th, so that of its extra time a fiftieth counts. `replay at
every step` computes the first micro-batch twice and asks what is known, of which a hundredth counts. The check of loss
and gradient, which every step has, is timed by itself, and so is the digest of weights and optimiser, which several
ranks compare. Printed are medians, and the sum as a share of a step.
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
from glassformer.train.known import wrong_answers
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
    parser.add_argument(
        "--accumulate", type=int, default=1, help="micro-batches a step; one of them is replayed"
    )
    parser.add_argument("--shape", type=int, nargs=2, default=(6, 384), metavar=("LAYERS", "WIDTH"))
    parser.add_argument(
        "--processor",
        action="store_true",
        help="measure processor time: for a machine that others use as well",
    )
    args = parser.parse_args()
    if args.processor:
        clock[0] = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(Path(folder), args.batch, args.accumulate, *args.shape)
        measure(session, args.pairs)


def prepare(folder: Path, batch: int, accumulate: int, layers: int, width: int) -> Session:
    (folder / "text.txt").write_text(
        "The cat sat on the mat, and nobody knew why.\n" * 4000, encoding="utf-8"
    )
    recipe, _ = load_recipe({
        "data": {"paths": ["text.txt"], "split": "tail"}, "tokenizer": {"kind": "bytes"},
        "model": {"width": width, "layers": layers, "heads": width // 64, "context": 256},
        "train": {"steps": 100_000, "batch": batch, "accumulate": accumulate, "checkpoint_every": 100_000},
        "engine": {"device": "cpu", "precision": "fp32", "compile": "off", "attention": "blocks"},
        "faults": {"remember_every": 1, "look_every": 1, "replay_every": 1},
    })  # fmt: skip
    task = start.open_task(recipe, folder, lambda message: None)
    return Session(
        task,
        start.open_run(task, folder / "run", fresh=False, accept_data=False),
        lambda message: None,
        ALONE,
    )


def measure(session: Session, pairs: int) -> None:
    default = FaultsConfig()
    step = [0]
    replay, config = session.replay, session.guard.config

    def without() -> None:
        update(
            session.loss_of, session.weights, session.optimizers, session.task.batches.batch(step[0]),
            rate=0.1, clip=1.0, accumulate=session.recipe.train.accumulate, device=session.device,
        )  # fmt: skip

    def with_all() -> None:
        replay._every, session.guard.config = 0, config
        session._step(step[0], session.task.batches.batch(step[0]), 0.1)

    def with_replay() -> None:
        replay._every = 1
        session.guard.config = config.model_copy(update={"remember_every": 0, "look_every": 0})
        session._step(step[0], session.task.batches.batch(step[0]), 0.1)

    kinds = {"without": without, "all at every step": with_all, "replay at every step": with_replay}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(pairs + 1):
        turn = number % len(kinds)
        for name, run in [*kinds.items()][turn:] + [*kinds.items()][:turn]:
            seconds = timed(run)
            step[0] += 1
            if number:  # the first round touches the memory
                times[name].append(seconds)
    plain = statistics.median(times["without"])
    extra, twice = (
        statistics.median(b - a for a, b in zip(times["without"], times[name], strict=True))
        for name in ("all at every step", "replay at every step")
    )
    watch = Watch(default)
    for n in range(100):
        watch.admit(3.0 + n % 7 / 10, 1.0 + n % 5 / 10)
    check = median_of(lambda: (watch.judge(3.1, 1.1), watch.admit(3.1, 1.1)), 200)
    digest = median_of(session.copies._digest, 7)
    total = sum(w.numel() for w in session.weights.masters.values())
    print(f"{total:,} parameters, {session.task.batches.tokens_per_batch:,} tokens a step, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    for name, values in times.items():
        print(
            f"{name:24} {statistics.median(values) * 1e3:9.1f} ms  ({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"
        )
    rows = {
        "state and looks": max(0.0, extra) / default.remember_every,
        "replay": max(0.0, twice) / default.replay_every,
        "digests": digest / default.digest_every + digest / default.remember_every,
        "check of a step": check,
    }
    once = {
        "state and looks": extra, "replay": twice, "digests": digest, "check of a step": check,
        "a copy of the state": median_of(lambda: kept(session), 5),
        "known answers": median_of(lambda: wrong_answers(session.device), 7),
        "before a checkpoint": median_of(session.guard.damaged, 5),
    }  # fmt: skip
    for name, seconds in once.items():
        share = f", by default {rows[name] / plain:.3%} of a step" if name in rows else ""
        print(f"{name:24} {seconds * 1e3:9.3f} ms{share}")
    print(f"cost by default: {sum(rows.values()) / plain:.2%} of a step (of {plain * 1e3:.0f} ms)")


def median_of(run: Callable[[], object], times: int) -> float:
    return statistics.median(timed(run) for _ in range(times))


def kept(session: Session) -> None:
    session.guard.memory.keep(0, session.weights, session.optimizers, {})


clock = [time.perf_counter]


def timed(run: Callable[[], object]) -> float:
    began = clock[0]()
    run()
    return clock[0]() - began


if __name__ == "__main__":
    main()
