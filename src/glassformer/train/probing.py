"""What this machine can do, operation by operation: the profile that `plan` predicts its step times from.

Each operation of a training step is timed alone, forward and backward, with our own code and at several sizes:

    products      y = x W^T with both its gradients, by rows, inputs and outputs
    attention     everything between the two products, by rows (batch x heads), tokens and head width, kernel by kernel
    elementwise   norms, activations, sums, rotations, the loss, by the numbers they go through
    update        accumulating, measuring and following a gradient (AdamW), by tensors and numbers

Several independent copies run in one graph, so that what autograd costs once is shared, as it is in a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassformer.model.attention import Attention, Kernel
from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.feedforward import ACTIVATIONS
from glassformer.model.loss import cross_entropy, linear_cross_entropy
from glassformer.model.norms import Norm
from glassformer.model.positions import rotate, rotations
from glassformer.run.manifest import machine
from glassformer.stats import median
from glassformer.text.batches import Batch
from glassformer.train.bench import probe
from glassformer.train.compiler import cannot_compile
from glassformer.train.config import OptimizerConfig
from glassformer.train.engine import pick_device
from glassformer.train.optimizers import build_optimizers
from glassformer.train.step import update
from glassformer.train.weights import Weights


@dataclass(frozen=True, slots=True)
class Sizes:
    """At what sizes operations are timed."""

    rows: tuple[int, ...] = (256, 1024, 4096)
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    largest: int = 2**28
    """Multiplications of one product that is timed; larger ones go at the rate of the largest."""
    numbers: tuple[int, ...] = (2**13, 2**16, 2**19, 2**21)
    lengths: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    head_widths: tuple[int, ...] = (32, 64)
    tensors: tuple[tuple[int, int], ...] = ((16, 32), (128, 32), (16, 256), (16, 1024))
    """(square matrices, their side) of one update."""

    def few(self) -> Sizes:
        """For 16 bits on a processor that has no instructions for them: nobody would train so."""
        return replace(
            self, largest=min(self.largest, 2**22), lengths=self.lengths[:3], head_widths=self.head_widths[:1]
        )


_ENOUGH = 0.012
"""Seconds that one timing lasts at least, or seven repeats."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


Timer = Callable[[Callable[[], Any]], float]
"""Seconds that a piece of work takes."""


def profile(
    tell: Callable[[str], None] = lambda what: None,
    clock: Callable[[], float] = time.perf_counter,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Everything above, with the threads that torch has; of a GPU only its products and memory. Takes about half a
    minute. Where others use the processor too, `time.process_time` with one thread tells what it would be alone."""
    device = pick_device("auto")
    found: dict[str, Any] = {
        "schema": "glassformer.machine", "version": 1, "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__, "device": device, "machine": machine(), "threads": torch.get_num_threads(),
        "compiles": cannot_compile(device) is None,
    }  # fmt: skip
    if device == "cpu":
        measured = _processor(tell, partial(_seconds, clock), sizes or Sizes())
        return {**found, "memory_bytes": found["machine"]["memory_bytes"], **measured}
    quick = probe()
    return {
        **found, "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        "copy_bytes_per_second": quick["copy_bytes_per_second"],
        "best_flops_per_second": {p: quick[f"{p}_flops_per_second"] for p in DTYPES},
    }  # fmt: skip


def _processor(tell: Callable[[str], None], timer: Timer, sizes: Sizes) -> dict[str, Any]:
    tell("memory")
    copying = _copy_rate(timer)
    tell("matrix products")
    narrow = sizes.few() if _is_slow(torch.bfloat16, timer) else sizes
    each: dict[Precision, Sizes] = {"fp32": sizes, "bf16": narrow, "autocast": narrow}
    products = {p: list(_products(p, timer, its)) for p, its in each.items()}
    tell("attention")
    kernels: tuple[Kernel, ...] = ("explicit", "fused", "blocks")
    attention = {
        p: {k: list(_attention(k, dtype, timer, each[p])) for k in kernels} for p, dtype in DTYPES.items()
    }
    tell("everything element by element")
    elementwise = {p: dict(_elementwise(dtype, timer, sizes.numbers)) for p, dtype in DTYPES.items()}
    tell("updates")
    updates = {p: list(_updates(p, timer, sizes)) for p in DTYPES}
    best = {p: max(6.0 * n * i * o / seconds for n, i, o, seconds in products[p]) for p in DTYPES}
    return {
        "copy_bytes_per_second": copying, "best_flops_per_second": best, "products": products,
        "attention": attention, "elementwise": elementwise, "update": updates,
    }  # fmt: skip


def _is_slow(dtype: torch.dtype, timer: Timer) -> bool:
    """Whether products of this type take three times as long as in float32."""

    def seconds(kind: torch.dtype) -> float:
        xs = _leaves(2, 256, 256, dtype=kind)
        return _both_ways(timer, lambda: [F.linear(*xs)], xs)

    return seconds(dtype) > 3 * seconds(torch.float32)


def _copy_rate(timer: Timer) -> float:
    source = torch.ones(2**24)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timer(lambda: target.copy_(source))


def _products(precision: Precision, timer: Timer, sizes: Sizes) -> Iterator[tuple[int, int, int, float]]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for rows in sizes.rows:
        for inputs in sizes.widths:
            for outputs in sizes.widths:
                if rows * inputs * outputs > sizes.largest:
                    continue
                copies = 4 if rows * inputs * outputs < sizes.largest // 8 else 1
                xs = _leaves(copies, rows, inputs, dtype=dtype)
                ws = _leaves(copies, outputs, inputs, dtype=dtype)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                    seconds = _both_ways(
                        timer,
                        lambda xs=xs, ws=ws: [F.linear(x, w) for x, w in zip(xs, ws, strict=True)],  # type: ignore[misc] # bound now
                        [*xs, *ws],
                    )
                yield rows, inputs, outputs, seconds / copies


def _attention(
    kernel: Kernel, dtype: torch.dtype, timer: Timer, sizes: Sizes
) -> Iterator[tuple[int, int, int, float]]:
    for width in sizes.head_widths:
        for length in sizes.lengths:
            if kernel == "explicit" and length > 512:
                continue
            for rows in (4, 2**12 // length) if length < 512 else (4,):
                heads = 4
                config = ModelConfig(width=heads * width, heads=heads, context=length, positions="none")
                module = Attention(config, 0)
                module.kernel = kernel
                module.qkv = module.out = nn.Identity()  # type: ignore[assignment] # the products are timed apart
                xs = _leaves(2, rows // heads, length, 3 * heads * width, dtype=dtype)
                seconds = _both_ways(timer, lambda xs=xs, module=module: [module(x) for x in xs], xs)  # type: ignore[misc]
                yield rows, length, width, seconds / 2


def _elementwise(
    dtype: torch.dtype, timer: Timer, numbers: Sequence[int]
) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    width = 256
    rms, layer = Norm(ModelConfig(width=width)), Norm(ModelConfig(width=width, norm="layernorm", bias=True))
    positions = min(32, *(size // width for size in numbers))
    turn = rotations(positions, 64, 10000.0)  # of heads as they lie in a row
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    for norm in (rms, layer):
        norm.to(dtype)
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "rmsnorm": rms,
        "layernorm": layer,
        "gate": lambda x: x[:, : width // 2] * x[:, width // 2 :],
        "add": lambda x: x + x.detach(),
        "add_other": lambda x: x + x.detach().to(other),
        "rotate": lambda x: rotate(x.view(-1, positions, width // 64, 64).transpose(1, 2), turn),
        "split": lambda x: torch.cat(torch.split(x, width // 2, dim=-1), dim=-1),
    }
    named.update({str(name): function for name, function in ACTIVATIONS.items()})
    for name, function in named.items():
        found = []
        for size in numbers:
            copies = max(2, min(8, 2**19 // size))
            xs = _leaves(copies, size // width, width, dtype=dtype)
            seconds = _both_ways(timer, lambda xs=xs, f=function: [f(x) for x in xs], xs)  # type: ignore[misc]
            found.append((size, seconds / copies))
        yield name, found
    yield "loss", [(size, _loss_seconds(size, dtype, timer)) for size in numbers[1:]]
    yield "loss_chunked", [(2 * numbers[-1], _chunked_loss_seconds(2 * numbers[-1], dtype, timer))]
    yield "embedding", [(size, _embedding_seconds(size, dtype, timer)) for size in numbers]


def _loss_seconds(size: int, dtype: torch.dtype, timer: Timer) -> float:
    logits = _leaves(2, size // 256, 256, dtype=dtype)
    targets = torch.zeros(size // 256, dtype=torch.long)
    return _both_ways(timer, lambda: [cross_entropy(x, targets) for x in logits], logits) / 2


def _chunked_loss_seconds(size: int, dtype: torch.dtype, timer: Timer) -> float:
    """In two chunks, without the products: a tenth at least, where noise leaves less. Scores are small, for numbers
    that underflow are slow."""
    words, width = 4096, 16
    hidden, table = _leaves(1, size // words, width, dtype=dtype), _leaves(1, words, width, dtype=dtype)
    hidden = [(x / 64).detach().requires_grad_() for x in hidden]
    targets = torch.zeros(size // words, dtype=torch.long)

    def scores() -> list[Tensor]:
        return [F.linear(hidden[0], table[0])]

    def loss() -> list[Tensor]:
        return [linear_cross_entropy(hidden[0], table[0], targets, logits_at_once=size // 2)]

    both = [_both_ways(timer, work, [*hidden, *table]) for work in (loss, scores)]
    return max(both[0] - both[1], 0.1 * both[0])


def _embedding_seconds(size: int, dtype: torch.dtype, timer: Timer) -> float:
    tables = _leaves(2, 64, 256, dtype=dtype)
    ids = torch.randint(64, (size // 256,))
    return _both_ways(timer, lambda: [F.embedding(ids, table) for table in tables], tables) / 2


def _updates(precision: Precision, timer: Timer, sizes: Sizes) -> Iterator[tuple[int, int, float]]:
    """(tensors, numbers, seconds) of everything that a step does to the weights, with AdamW and clipping."""
    one = np.zeros((1, 1), dtype=np.int64)
    batch = Batch(one, one, None, one[0])
    for tensors, side in sizes.tensors:
        weights = Weights(_Given(tensors, side), precision)
        optimizers = build_optimizers(OptimizerConfig(), weights.masters)
        gradients = [torch.full_like(w, 1e-3) for w in weights.working.values()]
        held: list[Tensor] = list(weights.working.values())

        def loss(held: list[Tensor] = held, gradients: list[Tensor] = gradients, **arrays: Any) -> Tensor:
            return _Gradients.apply(gradients, *held)  # type: ignore[no-any-return, no-untyped-call]

        def step(weights: Weights = weights, optimizers: Any = optimizers, loss: Any = loss) -> None:
            update(loss, weights, optimizers, batch, rate=1.0, clip=1e-9, device=torch.device("cpu"))

        step()
        yield tensors, tensors * side * side, timer(step)


class _Given(nn.Module):
    def __init__(self, tensors: int, side: int) -> None:
        super().__init__()
        self.held = nn.ParameterList(nn.Parameter(torch.randn(side, side)) for _ in range(tensors))


class _Gradients(torch.autograd.Function):
    """A loss whose gradients are given."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def _leaves(count: int, *shape: int, dtype: torch.dtype) -> list[Tensor]:
    numbers = torch.linspace(-2.0, 2.0, 1021).to(dtype)
    size = math.prod(shape)
    return [numbers.repeat(size // 1021 + 1)[:size].view(shape).requires_grad_() for _ in range(count)]


def _both_ways(timer: Timer, forward: Callable[[], list[Tensor]], leaves: list[Tensor]) -> float:
    """Seconds of the forward and the backward pass; fresh gradients each time, as of what is not a weight."""
    gradients: list[Tensor] = [torch.full_like(y, 0.1) for y in forward()]

    def work() -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(forward(), gradients)

    return timer(work)


def _seconds(clock: Callable[[], float], work: Callable[[], Any]) -> float:
    work()
    times: list[float] = []
    while len(times) < 7 and (sum(times) < _ENOUGH or len(times) < 3):
        began = clock()
        work()
        times.append(clock() - began)
    return median(times)
