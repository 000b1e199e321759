"""Memory against time: what `engine.activation_memory` saves, and what it costs.

    python benchmarks/recompute.py [--shape baby] [--batch 16] [--steps 3] [--shares 1 0.75 ...] [--compiled]

Each share trains in a process of its own (AdamW, no dropout, random tokens, float32), so that its peak is its own. The
peak is the largest resident set; torch itself and its libraries are in it. `predicted` is model/count.py's: weights,
gradients, optimiser, activations, logits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from glassformer.model import count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="baby")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25, 0.0])
    parser.add_argument("--attention", default="fused")
    parser.add_argument("--compiled", action="store_true", help="torch's own budget instead of whole blocks")
    args = parser.parse_args()
    from glassformer.train.bench import SHAPES

    config = SHAPES[args.shape][0]
    print("share  blocks  predicted      peak  step   relative")
    first: dict[str, Any] = {}
    for share in args.shares:
        found = measure(args, share)
        first = first or found
        fused = args.attention != "explicit"
        blocks = 0 if args.compiled else count.num_recomputed(config, share, fused=fused)
        bytes_ = count.memory(config, batch=args.batch, fused=fused, recomputed=blocks).total
        told = f"{'':>8}  {'':>9}" if args.compiled else f"{blocks:>6}  {bytes_ / 2**20:>5.0f} MiB"
        print(
            f"{share:>5.2f}  {told}  {found['peak_bytes'] / 2**20:>4.0f} MiB  {found['step_seconds']:.2f} s"
            f"  {found['step_seconds'] / first['step_seconds']:.2f}",
            flush=True,
        )


def measure(args: argparse.Namespace, share: float) -> dict[str, Any]:
    engine = {
        "precision": "fp32", "attention": args.attention, "activation_memory": share,
        "compile": "on" if args.compiled else "off",
    }  # fmt: skip
    command = [sys.executable, "-m", "glassformer", "bench", "train", args.shape, "--json"]
    command += ["--steps", str(args.steps), "--batch", str(args.batch)]
    command += [part for key, value in engine.items() for part in (f"--engine.{key}", str(value))]
    pinned = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    done = subprocess.run(command, env=pinned, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"share {share} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
