"""What an optimiser does to one weight, recomputed from the paper's formula with single numbers in float64.

g gradient, w weight, r learning rate, d weight decay, t the number of this step (from 1)

    SGD      g <- g + d w;  m <- mu m + (1 - damping) g  (m = g the first time);  w <- w - r m
             nesterov: w <- w - r (g + mu m)                                     Polyak 1964, Nesterov 1983
    Adam     g <- g + d w
             m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
             w <- w - r (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)          Kingma and Ba 2015
    AdamW    as Adam, but g stays as it is and the decay is apart: w <- w - r d w - ...
                                                                                 Loshchilov and Hutter 2019

Each function takes what was there before and gives the change of w and the state after; that the optimiser itself
did the same is for the caller to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Entries = Float[Tensor, " entry"]

NAMES = {"momentum_buffer": "m", "exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "v_max"}
"""The papers' symbols for what torch calls otherwise."""


class ByHand(NamedTuple):
    """What the formula makes of the weights, and of the state under the papers' symbols."""

    change: Entries
    state: dict[str, Entries]


def by_hand(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    w: Entries,
    g: Entries,
    state: Mapping[str, Entries],
    step: int,
) -> ByHand | None:
    """None for an optimiser whose formula is not written here. `step` counts those that were taken before."""
    settings = {name: _number(value) for name, value in group.items() if name != "params"}
    w, g = w.double(), g.double()
    if settings.get("maximize"):
        g = -g
    before = {name: values.double() for name, values in state.items()}
    kind = type(optimizer)
    if kind is torch.optim.SGD:
        return sgd(settings, w, g, before)
    if kind is torch.optim.AdamW:
        return adam(settings, w, g, before, step + 1, apart=True)
    if kind is torch.optim.Adam:
        apart = bool(settings.get("decoupled_weight_decay"))
        return adam(settings, w, g, before, step + 1, apart=apart)
    return None


def formula(optimizer: torch.optim.Optimizer) -> str | None:
    """The update as it is with this optimiser's settings, in the symbols above."""
    group = {name: _number(value) for name, value in optimizer.param_groups[0].items() if name != "params"}
    kind = type(optimizer)
    if kind is torch.optim.SGD:
        g = "(g + d w)" if group["weight_decay"] else "g"
        if not group["momentum"]:
            return f"w - r {g}"
        damped = f"(1 - damping) {g}" if group["dampening"] else g
        step = f"({g} + mu m)" if group["nesterov"] else "m"
        return f"w - r {step},  m = mu m + {damped}"
    if kind not in (torch.optim.Adam, torch.optim.AdamW):
        return None
    apart = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
    decay = bool(group["weight_decay"])
    rest = f"r m^ / (sqrt(v^) + eps),  m^ = m / (1 - b1^t),  v^ = {'v_max' if group['amsgrad'] else 'v'} / (1 - b2^t)"
    return (
        f"w - {'r d w - ' if apart and decay else ''}{rest}{'' if apart or not decay else ',  g = g + d w'}"
    )


def sgd(settings: Mapping[str, Any], w: Entries, g: Entries, state: Mapping[str, Entries]) -> ByHand:
    """Stochastic gradient descent, with momentum where there is any."""
    rate, mu = settings["lr"], settings["momentum"]
    g = g + settings["weight_decay"] * w
    if not mu:
        return ByHand(-rate * g, {})
    m = mu * state["m"] + (1 - settings["dampening"]) * g if "m" in state else g
    return ByHand(-rate * (g + mu * m if settings["nesterov"] else m), {"m": m})


def adam(
    settings: Mapping[str, Any],
    w: Entries,
    g: Entries,
    state: Mapping[str, Entries],
    t: int,
    *,
    apart: bool,
) -> ByHand:
    """Adam; with the decay `apart` from the gradient, AdamW."""
    rate, decay, (b1, b2) = settings["lr"], settings["weight_decay"], settings["betas"]
    if not apart:
        g = g + decay * w
    zero = torch.zeros_like(g)
    m = b1 * state.get("m", zero) + (1 - b1) * g
    v = b2 * state.get("v", zero) + (1 - b2) * g.square()
    after = {"m": m, "v": v}
    largest = v
    if settings["amsgrad"]:  # Reddi et al. 2018: v may not shrink
        largest = after["v_max"] = torch.maximum(state.get("v_max", zero), v)
    change = -rate * (m / (1 - b1**t)) / ((largest / (1 - b2**t)).sqrt() + settings["eps"])
    return ByHand(change - rate * decay * w if apart else change, after)


def _number(value: Any) -> Any:
    """A setting that torch may hold as a tensor, as a plain number."""
    if isinstance(value, tuple | list):
        return tuple(map(_number, value))
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
