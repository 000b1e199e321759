"""Time to nanoGPT's own loss on tiny Shakespeare's characters: whole processes, cold caches.

    python benchmarks/time_to_loss.py TINY_SHAKESPEARE [--nanogpt PATH] [--seeds 0 1 2]

nanoGPT runs its README's CPU recipe (2,000 steps; a checkout whose data/shakespeare_char is prepared);
glassformer runs the recipe `shakespeare-char` once for each seed, with a new home folder, so that nothing is
cached. The loss is that of the whole validation split in windows of 64; nanoGPT's reaches 1.898.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 1.898
NANOGPT = [
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    ours, theirs, losses = [], [], []
    for seed in args.seeds:
        if args.nanogpt:
            theirs.append(run_nanogpt(args.nanogpt))
        seconds, loss = run_glassformer(args.text.resolve(), seed)
        ours.append(seconds)
        losses.append(loss)
        print(f"seed {seed}: glassformer {seconds:.1f} s to {loss:.4f}"
              + (f", nanoGPT {theirs[-1]:.1f} s" if theirs else ""), flush=True)  # fmt: skip
    verdict = "reached" if max(losses) <= TARGET else "MISSED"
    print(f"glassformer: median {statistics.median(ours):.1f} s, losses {min(losses):.4f} to {max(losses):.4f}: "
          f"{TARGET} {verdict} by every seed" if verdict == "reached" else f"{TARGET} missed: {losses}")  # fmt: skip
    if theirs:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        print(
            f"nanoGPT: median {statistics.median(theirs):.1f} s; glassformer takes 1/{statistics.median(ratios):.1f}"
        )
    else:
        print("skipped: nanoGPT (name a checkout with --nanogpt PATH)")


def run_glassformer(text: Path, seed: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-m",
            "glassformer",
            "train",
            "shakespeare-char",
            "--run",
            f"{home}/run",
            "--json",
        ]
        command += ["--data.paths", str(text), "--train.seed", str(seed)]
        cold = {**os.environ, "GLASSFORMER_HOME": home, "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor"}
        began = time.perf_counter()
        done = subprocess.run(command, env=cold, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        return seconds, float(json.loads(done.stdout.splitlines()[-1])["val_loss"])


def run_nanogpt(folder: Path) -> float:
    pinned = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    began = time.perf_counter()
    subprocess.run([sys.executable, *NANOGPT], cwd=folder, env=pinned, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
