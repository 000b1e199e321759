"""How far the planner's step times are from real ones on this machine, on models that its profile has not seen.

    glassformer bench && python benchmarks/plan_here.py [--processor]

Each configuration is built and takes real training steps (forward, backward, clipping, AdamW), in every precision, not
compiled; the planner says what they take from the profile alone. A precision that is planned to take five times as
long as another is left out: nobody would choose it. `--processor` measures both in processor time of one thread, which
tells the same on a machine that others use too. The answer is the median of the absolute errors.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from glassformer.model.config import ModelConfig
from glassformer.stats import median
from glassformer.train.launch import prepare_process

CONFIGS = {
    "letters": (ModelConfig(vocab=65, width=128, layers=4, heads=4, context=64), 12),
    "letters, wide": (ModelConfig(vocab=97, width=320, layers=3, heads=5, context=96), 16),
    "words": (ModelConfig(vocab=4096, width=192, layers=6, heads=6, context=128), 8),
    "words, gated": (ModelConfig(vocab=8000, width=256, layers=4, heads=4, context=192, gated=True,
                                 activation="silu"), 6),
    "2019": (ModelConfig(vocab=5000, width=288, layers=4, heads=6, context=160, positions="learned", norm="layernorm",
                         activation="gelu", bias=True), 8),
    "grouped": (ModelConfig(vocab=2048, width=384, layers=4, heads=6, kv_heads=2, context=256), 4),
    "long": (ModelConfig(vocab=1000, width=128, layers=3, heads=2, context=640), 2),
    "vocabulary": (ModelConfig(vocab=20000, width=160, layers=2, heads=5, context=128, tied=False), 8),
    "deep": (ModelConfig(vocab=300, width=96, layers=12, heads=3, context=64), 8),
    "baby": (ModelConfig(vocab=65, width=384, layers=6, heads=6, context=256), 4),
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--processor", action="store_true", help="processor time of one thread")
    arguments.add_argument("--profile", type=Path, help="a profile; otherwise the one that is kept")
    arguments.add_argument("--json", type=Path, help="where the rows go")
    given = arguments.parse_args()
    prepare_process(1 if given.processor else None)
    clock = time.process_time if given.processor else time.perf_counter
    from glassformer.plan.architecture import Architecture
    from glassformer.plan.cpu import PRECISIONS, step_time
    from glassformer.plan.machine import read_profile

    profile = json.loads(given.profile.read_text()) if given.profile else read_profile()
    rows = []
    for name, (config, batch) in CONFIGS.items():
        plans = [
            step_time(
                Architecture.of(config, name), profile, batch=batch, length=config.context, precision=precision,
                activation=config.activation, rotary=config.positions == "rope",
            ) for precision in PRECISIONS
        ]  # fmt: skip
        quickest = min(plan.total for plan in plans)
        for precision, plan in zip(PRECISIONS, plans, strict=True):
            if plan.total > 5 * quickest:
                print(
                    f"{name:14} {precision:8} left out: planned {plan.total / quickest:.0f} x another precision"
                )
                continue
            seconds = measure(config, batch, precision, plan.kernel, clock)
            rows.append({"name": name, "precision": precision, "kernel": plan.kernel, "seconds": seconds,
                         "planned": plan.total, "error": plan.total / seconds - 1,
                         "parts": {row["part"]: row["seconds"] for row in plan.rows()}})  # fmt: skip
            parts = " ".join(f"{part} {1e3 * value:.1f}" for part, value in rows[-1]["parts"].items())
            print(
                f"{name:14} {precision:8} {plan.kernel:8} {seconds * 1e3:8.1f} ms  planned {plan.total * 1e3:8.1f} ms "
                f"{plan.total / seconds - 1:+6.1%}  {parts}",
                flush=True,
            )
    for precision in PRECISIONS:
        errors = [abs(row["error"]) for row in rows if row["precision"] == precision]
        if errors:
            print(f"{precision:8} median error {median(errors):.1%}, largest {max(errors):.1%}")
    print(f"all      median error {median([abs(row['error']) for row in rows]):.1%}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def measure(config: ModelConfig, batch: int, precision: str, kernel: str, clock: object) -> float:
    """Seconds of a real step, the median of several."""
    import torch

    from glassformer.model.stacks import build
    from glassformer.train.bench import random_batch
    from glassformer.train.config import OptimizerConfig
    from glassformer.train.engine import Choice, prepare_loss
    from glassformer.train.optimizers import build_optimizers
    from glassformer.train.step import update
    from glassformer.train.weights import Weights

    model = build(config)
    weights = Weights(model, precision)
    optimizers = build_optimizers(OptimizerConfig(learning_rate=1e-4), weights.masters)
    loss = prepare_loss(model, Choice("cpu", precision, False, kernel))
    rows = random_batch(batch, config)
    times: list[float] = []
    for _ in range(9):
        began = clock()
        update(loss, weights, optimizers, rows, rate=1.0, clip=1.0, device=torch.device("cpu"))
        times.append(clock() - began)
        if sum(times) > 4 and len(times) > 3:
            break
    return median(times[2:])


if __name__ == "__main__":
    main()
