"""Training steps against nanoGPT and Hugging Face transformers: same shapes, same tokens, no dropout, no clipping.

    python benchmarks/train.py [--shapes tiny baby 124m] [--pairs 3] [--nanogpt PATH] [--hf WAY ...]

Each side runs in a process of its own, all sides in turn, `--pairs` times; printed are medians and the ratio
to each. All are pinned the same way (OMP_PROC_BIND, OMP_PLACES). transformers runs in three ways and its best
counts; nanoGPT runs as it does on a CPU, float32 and eager. A peer that is not there is skipped by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = {"tiny": 60, "baby": 4, "124m": 3}
HF_WAYS = ("fp32 eager", "autocast eager", "autocast compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument(
        "--hf", nargs="+", default=list(HF_WAYS), choices=HF_WAYS, help="ways to run transformers"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args.shapes[0], args.nanogpt)))
        return
    sides = ["glassformer"]
    if importlib.util.find_spec("transformers"):
        sides += [f"transformers {way}" for way in args.hf]
    else:
        print("skipped: transformers is not installed")
    if args.nanogpt:
        sides.append("nanoGPT")
    else:
        print("skipped: nanoGPT (name a checkout with --nanogpt PATH)")
    for shape in args.shapes:
        rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(args.pairs):
            for side in sides:
                rows[side].append(measure(side, shape, args.nanogpt))
        report(shape, rows)


def measure(side: str, shape: str, nanogpt: Path | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--shapes", shape]
    command += ["--nanogpt", str(nanogpt)] if nanogpt else []
    pinned = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    done = subprocess.run(command, env=pinned, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed on {shape}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def report(shape: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    speed = {side: statistics.median(r["tokens_per_second"] for r in found) for side, found in rows.items()}
    ours = rows["glassformer"]
    print(f"\n{shape}: medians of {len(ours)} runs each, in turn")
    for side, found in rows.items():
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, found, strict=True)]
        peak = statistics.median(r["peak_bytes"] for r in found) / 1e9
        print(f"  {side:32s} {speed[side]:>10,.0f} tokens/s  {peak:5.2f} GB  "
              f"glassformer is {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    utilisation = statistics.median(r["utilisation"] for r in ours)
    ceiling = statistics.median(r["gemm_ceiling_flops_per_second"] for r in ours) / 1e9
    print(
        f"  {ours[-1]['engine']}: {utilisation:.0%} of the measured matmul ceiling, {ceiling:,.0f} GFLOP/s",
        flush=True,
    )


def run_side(side: str, shape: str, nanogpt: Path | None) -> dict[str, Any]:
    if side == "glassformer":
        from glassformer.train.launch import prepare_process

        prepare_process()
        from glassformer.train.bench import bench_train

        return bench_train(shape, steps=STEPS[shape])
    return run_peer(side, shape, nanogpt)


def run_peer(side: str, shape: str, nanogpt: Path | None) -> dict[str, Any]:
    """A plain loop around the peer's model: forward, backward, AdamW (fused where torch has it)."""
    import torch

    from glassformer.train.bench import SHAPES, peak_bytes

    config, batch = SHAPES[shape]
    sizes = (config.vocab_size, config.context, config.layers, config.num_heads, config.width)
    ids = torch.randint(0, config.vocab_size, (batch, config.context + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if side == "nanoGPT":
        sys.path.insert(0, str(nanogpt))
        from model import GPT, GPTConfig  # type: ignore[import-not-found] # nanoGPT's file

        vocab, context, layers, heads, width = sizes
        model = GPT(GPTConfig(vocab_size=vocab, block_size=context, n_layer=layers, n_head=heads, n_embd=width,
                              dropout=0.0, bias=False))  # fmt: skip
        optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), "cpu")

        def loss_of() -> torch.Tensor:
            return model(x, y)[1]
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        vocab, context, layers, heads, width = sizes
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocab, n_positions=context, n_layer=layers, n_head=heads, n_embd=width, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
        ))  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        forward = torch.compile(model, dynamic=False) if side.endswith("compiled") else model

        def loss_of() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in side):
                return forward(input_ids=x, labels=x).loss

    model.train()
    times = []
    for _ in range(2 + STEPS[shape]):
        began = time.perf_counter()
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    return {
        "tokens_per_second": x.numel() / statistics.median(times[2:]),
        "peak_bytes": peak_bytes("cpu"),
    }


if __name__ == "__main__":
    main()
