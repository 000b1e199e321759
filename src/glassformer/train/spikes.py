"""What is usual, and what is not: loss and gradient of a step against those of the steps before it.

    deviations(x) = (x - median) / max(1.4826 MAD, floor)          over the last `window` steps
    MAD           = median |x_i - median|;  1.4826 MAD is the standard deviation of normal noise (Hampel 1974)

Median and MAD do not move while fewer than half of what they are taken from is extreme, so a spike does not hide the
next one, as it would in a mean; and only finite numbers enter. The gradient's length is compared by its logarithm,
because it is spread like a factor, not like a sum.

- A spike is 10 deviations above the median (`faults.deviations`). Normal noise passes 6 once in a billion steps; the
  rest is room for the heavier tails that batches of text have.
- The floors, 1 % of the loss's median and 0.1 of the logarithm, keep a nearly constant curve from calling its own
  noise a spike: up to 10 % more loss, or a gradient e times as long, is never one with 10 deviations.
- Slow divergence: the median of the last quarter of the window is above the lowest such median there was by 3
  deviations of the window and by 5 % of itself. No step of such a rise is a spike.

All of it is arithmetic on numbers that every rank has (loss and gradient after they are added up over ranks), so that
all ranks come to the same verdict. No torch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glassformer.stats import median
from glassformer.train.config import FaultsConfig

Kind = Literal["not_finite", "loss_spike", "gradient_spike", "divergence", "silent", "copies_differ"]

_NORMAL = 1.4826
_LOSS_FLOOR, _LOG_FLOOR = 0.01, 0.1
_DRIFT_DEVIATIONS, _DRIFT_SHARE = 3.0, 0.05


class Watch:
    """The curve so far, as far as a verdict needs it."""

    def __init__(self, config: FaultsConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.logs: deque[float] = deque(maxlen=config.window)
        """Logarithms of the gradient's length."""
        self.lowest = math.inf
        """The lowest median of a quarter of the window."""

    def judge(self, loss: float, grad_norm: float) -> Kind | None:
        """What is wrong with a step, before it has changed anything."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "not_finite"
        if self.is_high(loss):
            return "loss_spike"
        if self._above(_log(grad_norm), self.logs, _LOG_FLOOR):
            return "gradient_spike"
        return None

    def is_high(self, loss: float) -> bool:
        """Whether a loss is not finite, or a spike."""
        floor = _LOSS_FLOOR * abs(median(self.losses))
        return not math.isfinite(loss) or self._above(loss, self.losses, floor)

    def admit(self, loss: float, grad_norm: float) -> Kind | None:
        """Remember a finite step; `divergence` where the curve has risen slowly."""
        self.losses.append(loss)
        self.logs.append(_log(grad_norm))
        if len(self.losses) < self.config.window:
            return None
        recent = median(list(self.losses)[-(self.config.window // 4) :])
        rise = recent - self.lowest
        risen = rise > max(_DRIFT_DEVIATIONS * deviation(self.losses), _DRIFT_SHARE * abs(self.lowest))
        self.lowest = (
            recent if risen else min(self.lowest, recent)
        )  # said once, then again after as much more
        return "divergence" if risen else None

    def usual(self) -> dict[str, float | None]:
        """The medians that a step is compared with."""
        known = bool(self.losses)
        return {
            "loss": median(self.losses) if known else None,
            "grad_norm": math.exp(median(self.logs)) if known else None,
        }

    def state(self) -> dict[str, Any]:
        lowest = self.lowest if math.isfinite(self.lowest) else None
        return {"losses": list(self.losses), "logs": list(self.logs), "lowest": lowest}

    def load(self, state: Mapping[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=self.config.window)
        self.logs = deque(state["logs"], maxlen=self.config.window)
        self.lowest = math.inf if state["lowest"] is None else state["lowest"]

    def _above(self, x: float, values: Sequence[float] | deque[float], floor: float) -> bool:
        if len(values) < self.config.window // 2:
            return False
        spread = max(deviation(values), floor)
        return x - median(values) > self.config.deviations * spread


def deviation(values: Sequence[float] | deque[float]) -> float:
    """The robust standard deviation, 1.4826 MAD."""
    middle = median(values)
    return _NORMAL * median([abs(x - middle) for x in values])


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))  # a gradient of zero is no reason to fail here
