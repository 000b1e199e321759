"""How fast this machine trains: a probe of its parts, and real steps of a real shape on random tokens.

`gemm_ceiling_flops_per_second` is what torch reaches on the model's own matrix products alone (`meter.py`);
`flops_per_second` counts the model's matrix FLOPs, convention `matmul` of `model/count.py`: scores of masked
positions count, recomputation does not.
"""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassformer.errors import UsageError, nearest
from glassformer.model import count
from glassformer.model.config import ModelConfig
from glassformer.model.shapes import matrices
from glassformer.model.stacks import build
from glassformer.run.manifest import machine
from glassformer.stats import median
from glassformer.text.batches import Batch
from glassformer.train.config import EngineConfig, OptimizerConfig
from glassformer.train.engine import Choice, choose, pick_device, prepare_loss
from glassformer.train.meter import matmul_ceiling
from glassformer.train.optimizers import build_optimizers
from glassformer.train.step import Update, update
from glassformer.train.weights import Weights

SHAPES: dict[str, tuple[ModelConfig, int]] = {
    "tiny": (ModelConfig(vocab=65, width=128, layers=4, heads=4, context=64), 12),
    "baby": (ModelConfig(vocab=65, width=384, layers=6, heads=6, context=256), 64),
    "124m": (ModelConfig(vocab=50304, width=768, layers=12, heads=12, context=1024), 4),
    "1b": (ModelConfig(vocab=50304, width=2048, layers=18, heads=16, context=2048), 4),
}
"""Name -> (model, rows in a batch). The first three are nanoGPT's CPU recipe, its baby GPT and GPT-2's sizes."""


def probe(width: int = 1024) -> dict[str, Any]:
    """Products in each precision, memory bandwidth: what bounds a training step here. Takes about a second."""
    device = pick_device("auto")
    rates = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.ones(4 * width, width, dtype=dtype, device=device)
        w = torch.ones(width, 4 * width, dtype=dtype, device=device)
        seconds = _median_seconds(lambda x=x, w=w: x @ w, device)
        rates[f"{precision}_flops_per_second"] = 2 * 4 * width * width * 4 * width / seconds
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    copying = _median_seconds(lambda: target.copy_(source), device)
    return {
        "schema": "glassformer.bench", "version": 1, "device": device, "machine": machine(),
        "threads": torch.get_num_threads(), **rates, "copy_bytes_per_second": 2 * 4 * 2**26 / copying,
    }  # fmt: skip


def bench_train(
    shape: str = "124m", *, steps: int = 5, batch: int | None = None, engine: EngineConfig | None = None
) -> dict[str, Any]:
    """Seconds of real training steps (AdamW, no dropout, random tokens), as the engine chooses to run them."""
    if shape not in SHAPES:
        raise UsageError(f"There is no shape {shape!r};", expected=nearest(shape, SHAPES))
    config, rows = SHAPES[shape]
    rows = batch or rows

    def trial(choice: Choice, rows: int, parts: int = 1) -> Callable[[], Update]:
        model = build(config, device=choice.device)
        weights = Weights(model, choice.precision)
        optimizers = build_optimizers(OptimizerConfig(learning_rate=1e-4), weights.masters)
        loss = prepare_loss(model, choice)
        part, device = random_batch(rows, config), torch.device(choice.device)
        return lambda: update(
            loss, weights, optimizers, part, rate=1.0, clip=None, accumulate=parts, device=device
        )

    found = choose(engine or EngineConfig(), trial, model=config, batch=rows, num_steps=None, seconds=3600.0)[
        0
    ]
    tokens = rows * config.context
    products = list(matrices(config).values())
    ceiling = matmul_ceiling(products, tokens, found.choice.precision, found.choice.device)
    step = trial(found.choice, rows)
    began = time.perf_counter()
    step()
    first_seconds = time.perf_counter() - began
    seconds = _median_seconds(step, found.choice.device, repeats=steps)
    flops = tokens * count.flops_per_token(config, "matmul")
    ceiling = max(ceiling, matmul_ceiling(products, tokens, found.choice.precision, found.choice.device))
    return {
        "schema": "glassformer.bench_train", "version": 1, "shape": shape, "engine": found.choice.name,
        "parameters": count.parameters(config).total, "batch": rows, "context": config.context, "steps": steps,
        "step_seconds": seconds, "first_step_seconds": first_seconds, "tokens_per_second": tokens / seconds,
        "flops_per_second": flops / seconds, "gemm_ceiling_flops_per_second": ceiling,
        "utilisation": flops / seconds / ceiling, "peak_bytes": peak_bytes(found.choice.device),
    }  # fmt: skip


def peak_bytes(device: str) -> int:
    """The most memory this process held, so far or since `forget_peak`: on the GPU, or else resident."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell a larger parent's peak as ours
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024  # type: ignore[index] # Linux has it
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def forget_peak(device: str) -> None:
    """Let `peak_bytes` tell of what comes from now on, where the system can do that (Linux and CUDA)."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def random_batch(rows: int, config: ModelConfig) -> Batch:
    """Tokens that mean nothing."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, config.context + 1))
    return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), None, np.arange(rows))


def _median_seconds(work: Any, device: str, repeats: int = 7) -> float:
    times = []
    work()
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times)
