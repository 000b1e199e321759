"""What looking costs: nothing when nobody looks, little when somebody does; beside TransformerLens's cache.

    python benchmarks/look.py [--pairs 5] [--threads N] [--shapes small 10m 124m] [--positions 256]

1. unattached: the calls of `see` and its kin in one plain forward, counted, times what one such call costs.
2. attached: a whole trace ("*") beside the plain forward of the same model, in turn. The time beyond the forward
   is divided by the number of tensors: on a small model (12 layers of width 32, 20 tokens) it is what taking a
   tensor costs, on a large one also computing numbers that the fast path never makes, and holding them.
3. the same GPT-2 shape, random weights, in TransformerLens 4.3.0: `run_with_cache` of a bridge in compatibility
   mode, without gradients, and as it comes (with gradients). Ours is shown with all places, and with those that
   bear one of its names. Each side runs in a process of its own, in turn. `peak` is how far resident memory rises
   over one trace, from when all free memory has been given back. Ratios are medians of the pairs' own ratios, to
   our second line. Skipped by name where it is not installed (tests/look/test_transformer_lens.py says how).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import timeit
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from glassformer.look.reading import Reading
from glassformer.look.trace import look
from glassformer.model import places
from glassformer.model.config import ModelConfig
from glassformer.model.stacks import build
from glassformer.stats import median

GPT2: dict[str, Any] = {"positions": "learned", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"}
SHAPES: dict[str, dict[str, int]] = {
    "small": {"vocab": 31, "width": 32, "layers": 12, "heads": 4, "context": 20},
    "10m": {"vocab": 257, "width": 384, "layers": 6, "heads": 6, "context": 256},
    "124m": {"vocab": 50257, "width": 768, "layers": 12, "heads": 12, "context": 1024},
}
SIDES = {
    "ours": "glassformer, every place",
    "ours named": "glassformer, its names",
    "theirs": "TransformerLens, no_grad",
    "theirs plain": "TransformerLens, as it comes",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.side:
        print(json.dumps(one_side(given.side, given.shapes[0], given.positions)))
        return
    print(f"{given.threads} threads, medians of {given.pairs} pairs")
    for shape in ("small", "10m"):
        unattached(shape, given.pairs)
    for shape in ("small", "10m"):
        attached(shape, given.pairs)
    if importlib.util.find_spec("transformer_lens") is None:
        print("skipped: transformer-lens 4.3.0 is not installed")
        return
    for shape in given.shapes:
        beside(shape, given.positions, given.pairs, given.threads)


def model_and_ids(shape: str) -> tuple[Any, torch.Tensor]:
    config = ModelConfig(**SHAPES[shape], **GPT2)
    length = min(config.context, 256)
    return build(config).eval(), torch.arange(length)[None] % config.vocab_size


def milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def unattached(shape: str, pairs: int) -> None:
    """Count what is there for `see` alone in a plain forward, and what one of each costs."""
    model, ids = model_and_ids(shape)
    kin = {function.__code__: name for name, function in vars(places).items() if name in COSTS}
    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in kin:
            counted[kin[frame.f_code]] += 1

    with torch.no_grad():
        model(ids)
        sys.setprofile(count)
        model(ids)
        sys.setprofile(None)
        forward = median([milliseconds(lambda: model(ids)) for _ in range(2 * pairs + 1)])
    each = {
        name: min(timeit.repeat(cost, number=10_000, repeat=9)) / 10_000 * 1000
        for name, cost in COSTS.items()
    }
    total = sum(each[name] * number for name, number in counted.items())
    share = f"{1000 * total:.0f} us of {forward:.2f} ms, {total / forward:.2%}"
    print(f"{shape}: unattached: {counted.total()} calls, {share}", flush=True)


UNSEEN = places.unseen
COSTS: dict[str, Callable[[], Any]] = {  # the call of the lambda is counted in, in our disfavour
    "unseen": lambda: UNSEEN("resid_pre", None),
    "wants": lambda: places.wants(UNSEEN, "dots", "scaled", "scores", "pattern"),
    "within": lambda: places.within(UNSEEN, f"{'blocks'}.{3}"),
}


def attached(shape: str, pairs: int) -> None:
    model, ids = model_and_ids(shape)
    trace = look(model, ids, "*")
    rows = []
    with torch.no_grad():
        for _ in range(2 * pairs + 1):
            rows.append((milliseconds(lambda: model(ids)), milliseconds(lambda: look(model, ids, "*"))))
    plain, whole = (median([row[side] for row in rows]) for side in (0, 1))
    ratio = median([two / one for one, two in rows])
    held = sum(tensor.untyped_storage().nbytes() for tensor in trace.values())
    each = median([two - one for one, two in rows]) / len(trace) * 1000
    print(
        f"{shape}: a whole trace: {len(trace)} tensors, {held / 1e6:.1f} MB: {plain:.2f} -> {whole:.2f} ms, "
        f"{ratio:.2f} x the forward, {each:.0f} us a tensor"
    )


def beside(shape: str, positions: int, pairs: int, threads: int) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(pairs + 1):
        row = {side: measured(side, shape, positions, threads) for side in SIDES}
        rows += [row] if number else []  # the first fills the system's file cache
    print(f"\nGPT-2, {shape}, {min(positions, SHAPES[shape]['context'])} tokens")
    print(
        f"{'':30}{'tensors':>8}{'trace ms':>10}{'forward ms':>12}{'held MB':>9}{'peak MB':>9}{'time x':>8}{'peak x':>8}"
    )
    for side, name in SIDES.items():
        found = [row[side] for row in rows]
        middle = {key: median([one[key] for one in found]) for key in found[0]}
        ratios = [
            median([row[side][key] / row["ours named"][key] for row in rows]) for key in ("trace", "peak")
        ]
        print(
            f"{name:30}{middle['tensors']:8.0f}{middle['trace']:10.1f}{middle['forward']:12.1f}"
            f"{middle['held']:9.1f}{middle['peak']:9.1f}{ratios[0]:8.2f}{ratios[1]:8.2f}"
        )  # fmt: skip


def measured(side: str, shape: str, positions: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--shapes", shape, "--threads", str(threads)]
    command += ["--positions", str(positions)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed on {shape}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def one_side(side: str, shape: str, positions: int) -> dict[str, float]:
    sizes = SHAPES[shape]
    ids = torch.arange(min(positions, sizes["context"]))[None] % sizes["vocab"]
    forward, trace = our_calls(side, sizes, ids) if "ours" in side else their_calls(side, sizes, ids)
    forward()
    trace()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already shall not hide what a trace takes
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    cache = trace()
    peak = resident("VmHWM") - before
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in cache.values()}
    held, tensors = sum(storages.values()), len(cache)
    del cache
    times, end = [], time.perf_counter() + 2
    while len(times) < 5 or time.perf_counter() < end:
        times.append((milliseconds(forward), milliseconds(trace)))
    return {
        "tensors": tensors, "held": held / 1e6, "peak": peak / 1e6,
        "forward": median([one for one, _ in times]), "trace": median([two for _, two in times]),
    }  # fmt: skip


Calls = tuple[Callable[[], Any], Callable[[], Any]]
"""A plain forward, and one that gives a mapping of all it recorded."""


def our_calls(side: str, sizes: dict[str, int], ids: torch.Tensor) -> Calls:
    model = build(ModelConfig(**sizes, **GPT2)).eval()
    asked = Reading.of(model, ids).places()
    if side == "ours named":
        beyond = (".dots", ".scaled", ".result", "probabilities", "loss")
        asked = [name for name in asked if not name.endswith(beyond)]
    return torch.no_grad()(lambda: model(ids)), lambda: look(model, ids, asked)


def their_calls(side: str, sizes: dict[str, int], ids: torch.Tensor) -> Calls:
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = transformers.GPT2Config(
        vocab_size=sizes["vocab"], n_positions=sizes["context"], n_embd=sizes["width"], n_layer=sizes["layers"],
        n_head=sizes["heads"], bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=config)
    bridge.enable_compatibility_mode(no_processing=True)

    def forward() -> Any:
        return bridge(ids)

    def trace() -> Any:
        return bridge.run_with_cache(ids)[1].cache_dict

    return (forward, trace) if side == "theirs plain" else (torch.no_grad()(forward), torch.no_grad()(trace))


def resident(what: str) -> int:
    """Bytes of this process now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


if __name__ == "__main__":
    main()
