"""The learning rate over a run, as a factor of the recipe's rate. t counts updates from 1 to N; w is the warm-up.

    constant       1
    linear         1 -> final
    cosine         final + (1 - final) (1 + cos(pi p)) / 2, p from 0 to 1 after warm-up   Loshchilov and Hutter 2017
    wsd            1, then linearly to final over the last `decay` of the run              Hu et al. 2024
    inverse_sqrt   sqrt(w / t)
    noam           min(t / w, sqrt(w / t)): rises to 1 at w, then falls as 1 / sqrt(t)     Vaswani et al. 2017

All but noam rise linearly over the first w steps. (The 2017 paper's own rate is noam's factor times
(d w)^-0.5: set learning_rate to that.)
"""

from __future__ import annotations

import math

from glassformer.train.config import ScheduleConfig


def factor(schedule: ScheduleConfig, step: int, num_steps: int) -> float:
    """The factor for the update that follows step `step` (counted from 0) of `num_steps`."""
    t = step + 1
    warmup = schedule.warmup if schedule.warmup >= 1 else round(schedule.warmup * num_steps)
    rise = min(1.0, t / warmup) if warmup else 1.0
    done = min(1.0, max(0.0, (t - warmup) / max(1.0, num_steps - warmup)))
    match schedule.kind:
        case "constant":
            return rise
        case "linear":
            return rise * (1 + (schedule.final - 1) * done)
        case "cosine":
            return rise * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2)
        case "wsd":
            falling = schedule.decay * num_steps
            fallen = min(1.0, max(0.0, (t - (num_steps - falling)) / falling)) if falling else 0.0
            return rise * (1 + (schedule.final - 1) * fallen)
        case "inverse_sqrt" | "noam":
            return rise * min(1.0, math.sqrt(max(warmup, 1) / t))
