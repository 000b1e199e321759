"""How this machine is used best: measured, not guessed.

Precision, compilation and attention are chosen by timing a few real steps of the recipe's own model. What is
quickest differs from machine to machine (bfloat16 is a loss without the instructions for it) and from shape to
shape (torch's fused attention is slow on a CPU at short contexts), so there is no rule to write down.
Compilation costs tens of seconds; it is tried only when the run is long enough to win them back, and used only when
the compiled step finds the loss and the gradient of an eager one: compilers err. A choice is recorded with its
measurements and reused on resume, so that a resumed run computes the same numbers.

A plain network has no attention to choose. Small steps of one are all overhead, which neither bfloat16 nor a
compiler is worth trying on: they are taken in float32, eager, unless asked for otherwise, and in one thread, since
several wait for each other longer than they work.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from glassformer.errors import GlassformerError, UsageError
from glassformer.model.attention import Kernel
from glassformer.model.config import ModelConfig
from glassformer.model.count import Precision
from glassformer.model.network import NetworkConfig, flops_per_row
from glassformer.model.transformer import Transformer
from glassformer.stats import median
from glassformer.train.compiler import cannot_compile, compile_steadily, compiler_settings, tune_compiler
from glassformer.train.config import EngineConfig
from glassformer.train.launch import on_all_cores, release_pages
from glassformer.train.out_of_memory import says_no_memory
from glassformer.train.recompute import recompute_blocks
from glassformer.train.step import Diverged, Loss, Update

_SECONDS_TO_COMPILE = 40.0
"""A compilation is tried when eager steps would take at least three times this; it takes 20 to 90 s."""
_COMPILE_LIMIT = 600.0
_ENOUGH_SECONDS = 1.5
"""A candidate is timed for at least this long, or five steps."""
_EAGER_TOKENS = 2048
"""Eager steps are timed on at most about this many tokens, so that a large batch does not take minutes."""
_SHORT_CONTEXT = 128
"""Up to here the explicit attention beats the one in blocks of queries, which begins to skip work beyond."""
_SMALL_STEP = 2e9
"""FLOPs; up to here a plain network's step takes milliseconds on any machine."""
_BF16_GAIN = 1.3
"""bfloat16 pays when its products are this many times as fast: element-wise work between them is not."""
_SAME = 0.1
"""Relative difference up to which a compiled step's loss and length of the gradient are those of an eager one: rounding
and the noise of dropout make some, what a compiler gets wrong makes more, or no number at all."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to use the machine."""

    device: str
    precision: Precision
    compiled: bool
    attention: Kernel | None
    """None for a model that has none."""
    threads: int | None = None
    """None for all."""
    activation_memory: float = 1.0
    """The share of the activations that is kept (`train/recompute.py`)."""

    @property
    def name(self) -> str:
        how = f"{self.precision} {'compiled' if self.compiled else 'eager'}"
        how += f", {self.attention} attention" if self.attention else ""
        how += f", {self.activation_memory:.0%} of activations kept" if self.activation_memory < 1 else ""
        return f"{how}, {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else how


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice that was tried: the median of its steps, or why it failed."""

    choice: Choice
    step_seconds: float | None = None
    """Of a whole batch; eager ones are timed on part of it."""
    first_seconds: float | None = None
    error: str | None = None
    first: Update | None = None
    """What the first step found."""

    def row(self) -> dict[str, Any]:
        return {"name": self.choice.name, **asdict(self)}


class Trial(Protocol):
    """Builds model and optimiser anew, the same each time, and returns a function that does one real step of so many
    rows, in so many parts one after the other."""

    def __call__(self, choice: Choice, rows: int, parts: int = 1) -> Callable[[], Update | None]: ...


def choose(
    config: EngineConfig,
    trial: Trial,
    *,
    model: ModelConfig | NetworkConfig,
    batch: int,
    num_steps: int | None,
    seconds: float,
) -> list[Candidate]:
    """What was tried, the best first. The run will take `num_steps` steps of `batch` rows, or else `seconds`."""
    device = pick_device(config.device)
    if config.activation_memory < 1 and model.dropout:  # the compiler would draw other noise the second time
        config = config.model_copy(update={"compile": "off"})
    kernels = _kernels(config, device, model)
    small = isinstance(model, NetworkConfig) and batch * flops_per_row(model) < _SMALL_STEP
    precisions: list[Precision] = ["fp32"] if config.precision == "auto" else [config.precision]
    if config.precision == "auto" and not small and _bf16_pays(device, _width(model)):
        precisions = ["bf16", "autocast", "fp32"]
    threads = 1 if small and device == "cpu" else None
    kept = config.activation_memory
    eager = [Choice(device, p, False, kernels[0], threads, kept) for p in precisions]
    eager += [Choice(device, precisions[0], False, other, None, kept) for other in kernels[1:]]
    compiled = replace(eager[0], compiled=True)
    if len(eager) == 1 and (config.compile == "off" or (small and config.compile == "auto")):
        return [Candidate(eager[0])]
    tried: list[Candidate] = []
    wanted = config.compile == "on"
    length = 1 if isinstance(model, NetworkConfig) else model.context
    rows = min(batch, max(1, _EAGER_TOKENS // length))
    for choice in [] if wanted else eager:
        tried.append(measure(choice, trial, rows, batch))
        best = min((c.step_seconds for c in tried if c.step_seconds), default=0.0)
        wanted = config.compile == "auto" and (seconds or best * (num_steps or 0)) >= 3 * _SECONDS_TO_COMPILE
        if wanted:
            break  # the other eager ways do not matter to a run this long
    if wanted:
        error = cannot_compile(device)
        found = Candidate(compiled, error=error) if error else measure(compiled, trial, batch, batch)
        tried.append(_if_it_is_right(found, trial, batch, rows))
    if not any(c.step_seconds for c in tried):
        tried += [measure(eager[0], trial, batch, batch)]
    working = sorted((c for c in tried if c.step_seconds), key=lambda c: c.step_seconds or 0.0)
    if not working:
        reasons = "; ".join(f"{c.choice.name}: {c.error}" for c in tried)
        if any(says_no_memory(c.error or "") for c in tried):
            raise MemoryError(reasons)
        raise GlassformerError(f"This model does not run on this machine in any way tried: {reasons}.")
    return working + [c for c in tried if not c.step_seconds]


def _kernels(
    config: EngineConfig, device: str, model: ModelConfig | NetworkConfig
) -> Sequence[Kernel | None]:
    """The kinds of attention to try, the likeliest to be quickest first."""
    if isinstance(model, NetworkConfig):
        return [None]
    if config.attention != "auto":
        return [config.attention]
    likely: Kernel = "fused"
    if device == "cpu" and model.context <= _SHORT_CONTEXT:
        likely = "explicit"
    elif device == "cpu" and model.kind == "decoder":  # blocks skip what a causal layer does not see
        likely = "blocks"
    return list(dict.fromkeys((likely, "fused")))


def _width(model: ModelConfig | NetworkConfig) -> int:
    """The size of the products that most of the time goes into."""
    return max(model.widths) if isinstance(model, NetworkConfig) else model.width


def prepare_loss(
    model: nn.Module, choice: Choice, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Loss:
    """The model's loss as the choice computes it."""
    if isinstance(model, Transformer) and choice.attention is not None:
        model.use_attention(choice.attention)
    recompute_blocks(model, choice)
    plain: Loss = model.loss  # type: ignore[assignment] # every model that learns has one
    if choice.compiled and choice.device == "cpu":
        tune_compiler()
    loss = torch.compile(plain, dynamic=False, backend=compile_steadily) if choice.compiled else plain
    autocast = torch.autocast(
        choice.device.split(":")[0], torch.bfloat16, enabled=choice.precision == "autocast"
    )

    def compute(*args: Any, **kwargs: Any) -> torch.Tensor:
        settings = (
            compiler_settings(choice.activation_memory) if choice.compiled else contextlib.nullcontext()
        )
        with autocast, settings:
            result: torch.Tensor = loss(*args, **kwargs, label_smoothing=label_smoothing, z_loss=z_loss)
        return result

    return compute


@contextlib.contextmanager
def threads_of(choice: Choice) -> Iterator[None]:
    """Compute with as many threads as the choice says."""
    before = torch.get_num_threads()
    torch.set_num_threads(choice.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"engine.device is {name}, but torch sees no GPU.",
            expected="A CUDA build of torch and a driver new enough for it.",
            do="Run `glassformer doctor`, or set --engine.device cpu.",
        )
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise UsageError(
            f"engine.device {name!r} is not a device.", do="Use auto, cpu, cuda or cuda:1."
        ) from None


def _bf16_pays(device: str, width: int) -> bool:
    """Whether matrix products in bfloat16 are much faster here than in float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1024, width, dtype=dtype, device=device)
        w = torch.ones(4 * width, width, dtype=dtype, device=device)
        times = [_seconds(lambda x=x, w=w: _wait(x @ w.T)) for _ in range(8)]  # type: ignore[misc] # bound now
        seconds[dtype] = median(times[2:])
    return seconds[torch.float32] > _BF16_GAIN * seconds[torch.bfloat16]


def measure(choice: Choice, trial: Trial, rows: int, batch: int) -> Candidate:
    """Seconds of a warmed-up step, the median of up to five, as a whole batch would take."""
    try:
        with _at_most(_COMPILE_LIMIT if choice.compiled else None):
            found, first, times = _time(trial(choice, rows))
        return Candidate(choice, median(times) * batch / rows, first, first=found)
    except Diverged as error:
        if not choice.compiled:
            raise
        return Candidate(choice, error=error.what)
    except (
        RuntimeError,
        MemoryError,
        TimeoutError,
        NotImplementedError,
        ImportError,
        torch._dynamo.exc.TorchDynamoException,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Candidate(choice, error=lines[0][:200])
    finally:
        release_pages()  # the next trial's peak does not stand on this one's


def _if_it_is_right(found: Candidate, trial: Trial, batch: int, rows: int) -> Candidate:
    """The compiled candidate, unless eager steps from the same weights find another loss or another gradient."""
    if found.first is None:
        return found
    try:  # in parts, which hold no more than the eager steps that were timed
        eager = trial(replace(found.choice, compiled=False), batch, math.ceil(batch / rows))()
    except (RuntimeError, MemoryError, Diverged):
        return found  # there is nothing to compare with
    finally:
        release_pages()
    here = (found.first.loss, found.first.grad_norm)
    there = here if eager is None else (eager.loss, eager.grad_norm)
    if all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(here, there, strict=True)):
        return found
    said = " and ".join("loss {:.5g}, gradient {:.5g}".format(*numbers) for numbers in (here, there))
    return Candidate(found.choice, error=f"compiled and eager steps find other numbers ({said})")


def _time(step: Callable[[], Update | None]) -> tuple[Update | None, float, list[float]]:
    """What the first step found, its seconds, and those of the warmed-up ones."""
    with on_all_cores():  # for the compiler's own processes
        start = time.perf_counter()
        found = step()
        first = time.perf_counter() - start
    times = [_seconds(step)]
    while sum(times) < _ENOUGH_SECONDS and len(times) < 5:
        times.append(_seconds(step))
    return found, first, times


def _wait(result: torch.Tensor) -> None:
    if result.is_cuda:
        torch.cuda.synchronize()


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@contextlib.contextmanager
def _at_most(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in the block after this long (only the main thread can be interrupted)."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
