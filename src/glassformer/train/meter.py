"""How fast, how hard, how much: tokens a second, share of the measured matmul peak, joules.

Utilisation is the model's matrix FLOPs (`count.flops_per_token`, convention `matmul`) a second, over the
FLOPs a second that this machine's own library reaches on the same products alone, at the same shapes and in
the same precision, measured when the run starts. No datasheet is involved.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from glassformer.model.count import Precision

_POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Counts tokens and the time spent training on them; pauses are left out."""

    def __init__(
        self, flops_per_token: int, ceiling: float, *, tokens: int = 0, seconds: float = 0.0
    ) -> None:
        self.tokens, self.seconds = tokens, seconds
        self._flops_per_token, self._ceiling = flops_per_token, ceiling
        self._recent = (0, 0.0)

    @property
    def ceiling(self) -> float:
        """FLOPs a second of the bare products, the best seen: a busy moment is no peak."""
        return self._ceiling

    def saw_ceiling(self, ceiling: float) -> None:
        self._ceiling = max(self._ceiling, ceiling)

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.seconds += seconds
        self._recent = (self._recent[0] + tokens, self._recent[1] + seconds)

    def recent(self) -> dict[str, float]:
        """Speed and utilisation since this was last asked."""
        tokens, seconds = self._recent
        self._recent = (0, 0.0)
        return self._rates(tokens, seconds)

    def overall(self) -> dict[str, float]:
        """The same over the whole run."""
        return self._rates(self.tokens, self.seconds)

    def _rates(self, tokens: int, seconds: float) -> dict[str, float]:
        speed = tokens / seconds if seconds else 0.0
        return {"tokens_per_second": speed, "utilisation": speed * self._flops_per_token / self._ceiling}


def matmul_ceiling(
    matrices: Iterable[tuple[int, ...]], tokens: int, precision: Precision, device: str
) -> float:
    """FLOPs a second of the model's own weight products, forward and both backward, run back to back.

    For every shape of `matrices`: y = x W^T, dx = dy W and dW = dy^T x on `tokens` rows, the best of several; the
    total of their FLOPs over the total of their times.
    """
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    flops = seconds = 0.0
    for (num_out, num_in), count in Counter(matrices).items():
        rows = min(tokens, 4096, max(256, 2**26 // num_out))
        x, dy = (
            torch.ones(rows, num_in, dtype=dtype, device=device),
            torch.ones(rows, num_out, dtype=dtype, device=device),
        )
        weight = torch.ones(num_out, num_in, dtype=dtype, device=device)
        times = [_best(lambda a=a, b=b: a @ b, device) for a, b in ((x, weight.T), (dy, weight), (dy.T, x))]  # type: ignore[misc] # bound now
        flops += count * 3 * 2 * rows * num_in * num_out
        seconds += count * sum(times)
    return flops / seconds


def joules() -> float | None:
    """Energy used by the processor packages since they were switched on (Linux powercap), where it is told."""
    try:
        counters = [p for p in _POWERCAP.glob("intel-rapl:*/energy_uj") if p.parent.name.count(":") == 1]
        return sum(int(path.read_text()) for path in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None


def _best(product: Callable[[], torch.Tensor], device: str, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
