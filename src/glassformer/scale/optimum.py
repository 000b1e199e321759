"""How to divide compute: the best N and D that a law knows, how flat that best is, and what else should count.

    optimum(law, flops=1e24)                least loss where 6 N D = C; of a given N or D, the C that it is best for
    optimum(law, flops=1e24, serve=1e13)    where 6 N D + 2 N S = C: answering S tokens is paid from the same purse
    optimum(law, loss=2.0, serve=1e13)      least 6 N D + 2 N S that reaches this loss (Sardana et al. 2023, 2401.00448)
    optimum(law, flops=1e22, unique=25e9)   U tokens are there; D beyond is repeated (Muennighoff et al. 2023)

6 FLOPs for each parameter and token of training, 2 of answering. The best is found on a grid of N, so for any law that
reads N and D; for `chinchilla` it is N* = G (C / 6)^a, G = (alpha A / beta B)^(1 / (alpha + beta)). Near its best, loss
hardly changes: which is why exponents are hard to measure, and why a model half as large costs so little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from glassformer import charts
from glassformer.errors import UsageError
from glassformer.scale.isoflop import Allocation
from glassformer.scale.laws import FORMS, Array
from glassformer.scale.points import Points
from glassformer.scale.published import Published
from glassformer.scale.repeats import Repeated, Repeats
from glassformer.units import show_count

if TYPE_CHECKING:
    from glassformer.scale.fit import Law

_ENDLESS = 1e6
"""Of R_D*: every repetition counts as fresh text."""
_GRID = 400
"""Values of N between 1 and C / 6."""
_NEAR = 1e3
_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_CLOSE = 0.01
"""Loss this share above the least still counts as good."""
MUENNIGHOFF = {"R_D": 15.387756, "R_N": 5.309743}
"""What repeating is worth where one's own runs do not say."""
_OPEN = (7.92, float("inf"))
"""The 95 % profile interval of R_D* on their 182 runs, by scale/repeats.py."""

LogLoss = Callable[[Array, Array, Array | None], Array]


@dataclass(frozen=True)
class Optimum:
    """The best N and D for something, and how much it matters."""

    N: float
    D: float
    C: float
    """Of training, 6 N D."""
    asked: str
    law: str
    counting: str
    loss: float | None = None
    """None where the law's loss is of a foreign corpus, or the law is a rule without one."""
    unit: str | None = None
    serve: float = 0.0
    """Tokens to be answered."""
    unique: float | None = None
    interval: tuple[float, float] | None = None
    """80 % of N*, by the law's bootstrap."""
    open: tuple[float, float] | None = None
    """N* at the two ends of what is known of R_D*, where text is repeated."""
    close: tuple[float, float] | None = None
    """Between these N the loss for the same cost is within 1 % of the least."""
    flat: tuple[Mapping[str, float], ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def epochs(self) -> float | None:
        """How often the unique tokens are read, where they are limited."""
        return None if self.unique is None else max(1.0, self.D / self.unique)

    def sentences(self) -> list[str]:
        """What it says, in words."""
        said = [
            f"For {self.asked}, {self.law} puts {show_count(self.N)} parameters on {show_count(self.D)} tokens: "
            f"{self.D / self.N:.3g} tokens for each parameter"
            + (f", {_flops(self.C)} FLOPs of training." if f"{_flops(self.C)} FLOPs" != self.asked else ".")
        ]
        if self.serve:
            said.append(
                f"Answering {show_count(self.serve)} tokens takes another {_flops(2 * self.N * self.serve)} FLOPs "
                f"({2 * self.N * self.serve / (self.C + 2 * self.N * self.serve):.0%} of all)."
            )
        if self.unique is not None:
            said.append(f"{show_count(self.unique)} unique tokens are read {self.epochs:.3g} times.")
        if self.open is not None and self.epochs != 1.0:
            low, high = self.open
            said.append(
                "What repeating is worth is weakly known: at the ends of its interval the best size is "
                f"{show_count(low)} and {show_count(high)}."
            )
        if self.interval is not None:
            low, high = self.interval
            said.append(
                f"80 % of the bootstrap has the best size between {show_count(low)} and {show_count(high)}."
            )
        half = next((row for row in self.flat if row["of the best N"] == 0.5), None)
        if half is not None and half["more loss"] >= 0:
            said.append(f"Half the size costs {half['more loss']:.2%} of loss for the same total.")
        if self.close is not None:
            low, high = self.close
            said.append(f"Within 1 % of the least loss: {show_count(low)} to {show_count(high)} parameters.")
        return said

    def facts(self) -> dict[str, Any]:
        """The numbers, each with its unit."""
        return {
            "law": self.law, "asked": self.asked, "parameters": show_count(self.N), "tokens": show_count(self.D),
            "tokens per parameter": self.D / self.N, "training FLOPs": _flops(self.C), "epochs": self.epochs,
            "loss": None if self.loss is None else f"{self.loss:.4g} {self.unit or '(unit not said)'}",
            "counting": self.counting,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The same cost with smaller and larger models."""
        return [dict(row) for row in self.flat]

    def chart(self) -> charts.Spec:
        """How much loss other sizes cost."""
        rows = [{"N": row["N"], "more": 100 * row["more loss"]} for row in self.flat]
        return charts.line(
            rows, "N", "more", log_x=True, x_title="parameters N", y_title="more loss than the best (%)",
            title=f"How flat the best is: {self.asked}",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All of it for a file."""
        return {
            "law": self.law, "asked": self.asked, "N": self.N, "D": self.D, "C": self.C, "loss": self.loss,
            "unit": self.unit, "counting": self.counting, "serve": self.serve, "unique": self.unique,
            "epochs": self.epochs, "interval": self.interval, "open": self.open, "close": self.close,
            "flat": self.rows(),
            "warnings": list(self.warnings), "sentences": self.sentences(),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        from glassformer.scale.report import card

        return card("Best division of compute", self.sentences(), self.rows(), warnings=self.warnings)


def optimum(
    law: Law | Published | Allocation, *, flops: float | None = None, N: float | None = None,  # noqa: N803 # the field's
    D: float | None = None, loss: float | None = None, serve: float = 0.0, unique: float | None = None,  # noqa: N803
    repeats: Repeats | None = None,
) -> Optimum:  # fmt: skip
    """The best N and D for `flops`, or the flops for which `N` or `D` are best, or the least cost that reaches `loss`.

    Raises UsageError unless just one of these is given, and where the law does not say.
    """
    said = _asked({"flops": flops, "N": N, "D": D, "loss": loss}, serve)
    if isinstance(law, Allocation) or (isinstance(law, Published) and (law.size or law.tokens)):
        return _by_rule(law, flops, N, D, said, serve, unique)
    if FORMS[law.form or ""].needs != "nd":
        raise UsageError(
            f"The law {law.form} does not weigh N against D.",
            expected="chinchilla, tied, annealed or kaplan.",
        )
    curve: LogLoss = law.log_loss
    ends: list[LogLoss] = []
    if unique is not None:
        own_r, known = _worth(law, repeats)
        curve, *ends = (_limited(law, unique, own_r | {"R_D": r_d}) for r_d in (own_r["R_D"], *known))
    if loss is not None:
        if getattr(law, "points", None) is None:
            law.loss(1.0, 1.0)  # a published law says why not
        flops = _cheapest(curve, loss, serve)
    elif flops is None:
        flops = _flops_of(curve, serve, N=N, D=D)
    best = lowest_of(curve, flops, serve)
    size = float(best[0])
    found = _flatness(curve, flops, size, serve)
    interval = None
    if len(law.draws) and unique is None:
        drawn = lowest_of(curve, flops, serve, law.draws)
        interval = (float(np.quantile(drawn, 0.1)), float(np.quantile(drawn, 0.9)))
    tokens = (flops - 2 * size * serve) / (6 * size)
    limits = [float(lowest_of(end, flops, serve)[0]) for end in ends]
    own = getattr(law, "points", None)
    loss = float(np.exp(curve(np.array([size]), np.array([tokens]), None)[0, 0])) if own is not None else None
    return Optimum(
        size, tokens, 6 * size * tokens, said, _name(law),
        counting=own.counting if own else getattr(law, "counting", ""), loss=loss, unit=own.unit if own else None,
        serve=serve, unique=unique, interval=interval, open=(limits[0], limits[1]) if limits else None,
        close=_close(curve, flops, size, serve), flat=found,
        warnings=tuple(_warnings(law, size, tokens, unique, repeats)),
    )  # fmt: skip


def _asked(given: Mapping[str, float | None], serve: float) -> str:
    """What is asked for, in words."""
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise UsageError(
            f"An optimum is for one of flops, N, D, loss; given: {', '.join(asked) or 'none'}.",
            do="Give one of --flops, --params, --tokens, --loss.",
        )  # fmt: skip
    ((name, value),) = asked.items()
    said = {"flops": f"{_flops(value)} FLOPs", "N": f"{show_count(value)} parameters",
            "D": f"{show_count(value)} tokens", "loss": f"a loss of {value:g}"}[name]  # fmt: skip
    return said + (f" and {show_count(serve)} tokens to answer" if serve else "")


def lowest(law: Law | Published, flops: float) -> float:
    """N* at `flops`, by the law of loss."""
    return float(lowest_of(law.log_loss, flops, 0.0)[0])


def lowest_of(
    curve: LogLoss, flops: float, serve: float, theta: Array | None = None, *, near: float | None = None
) -> Array:
    """(fit,): N of the least loss at this total cost, for the law or each of its draws; `near`: within 1e3 of it."""
    low, high, count = 0.0, float(np.log(flops / 6)), _GRID
    if near is not None:
        low, high, count = float(np.log(near / _NEAR)), float(np.log(near * _NEAR)), _GRID // 4
    rounds = 3 if theta is None else 1
    for _ in range(rounds):  # each grid is finer; a parabola through the lowest three does the rest
        n = np.linspace(low, high, count)
        losses = _along(curve, np.exp(n), flops, serve, theta)
        at = np.clip(losses.argmin(axis=1), 1, count - 2)
        rows = np.arange(len(losses))
        left, middle, right = losses[rows, at - 1], losses[rows, at], losses[rows, at + 1]
        step = n[1] - n[0]
        bend = left - 2 * middle + right
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.where(
                np.isfinite(bend) & (bend > 0), 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0
            )
        best = n[at] + np.clip(shift, -1, 1) * step
        low, high = float(best.min()) - 3 * step, float(best.max()) + 3 * step
    sizes: Array = np.exp(best)
    return sizes


def _along(curve: LogLoss, sizes: Array, flops: float, serve: float, theta: Array | None = None) -> Array:
    """(fit, size): log loss where the rest of the cost goes into tokens; infinite where nothing is left."""
    tokens = (flops - 2 * sizes * serve) / (6 * sizes)
    losses = curve(sizes, np.maximum(tokens, 1e-3), theta)
    return np.where(tokens > 0, losses, np.inf)


def _flatness(curve: LogLoss, flops: float, best: float, serve: float) -> tuple[Mapping[str, float], ...]:
    sizes = best * np.array(_FACTORS)
    tokens = (flops - 2 * sizes * serve) / (6 * sizes)
    more = np.expm1(
        _along(curve, sizes, flops, serve)[0] - _along(curve, np.array([best]), flops, serve)[0, 0]
    )
    return tuple(
        {"of the best N": f, "N": float(n), "D": float(d), "tokens per parameter": float(d / n), "more loss": float(m)}
        for f, n, d, m in zip(_FACTORS, sizes, tokens, more, strict=True)
        if d > 0
    )  # fmt: skip


def _close(curve: LogLoss, flops: float, best: float, serve: float) -> tuple[float, float]:
    sizes = best * np.geomspace(1e-3, 1e3, 4001)
    losses = _along(curve, sizes, flops, serve)[0]
    near = sizes[losses <= losses.min() + np.log1p(_CLOSE)]
    return float(near.min()), float(near.max())


def _flops_of(curve: LogLoss, serve: float, *, N: float | None, D: float | None) -> float:  # noqa: N803
    """The cost for which this N, or this D, is the best: it rises with the cost, so it is found by halving."""
    low, high = np.log(1e6), np.log(1e36)
    for _ in range(60):
        middle = (low + high) / 2
        size = float(lowest_of(curve, np.exp(middle), serve)[0])
        tokens = (np.exp(middle) - 2 * size * serve) / (6 * size)
        below = size < N if N is not None else tokens < (D or 0)
        low, high = (middle, high) if below else (low, middle)
    return float(np.exp(high))


def _cheapest(curve: LogLoss, loss: float, serve: float) -> float:
    """The least cost at which the least loss is this one."""
    low, high = np.log(1e6), np.log(1e36)
    goal = np.log(loss)

    def least(cost: float) -> float:
        size = lowest_of(curve, np.exp(cost), serve)
        return float(_along(curve, size, np.exp(cost), serve)[0, 0])

    if least(high) > goal:
        raise UsageError(
            f"A loss of {loss} is below what this law reaches with any compute.",
            expected=f"More than {np.exp(least(high)):.4g}.",
        )  # fmt: skip
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if least(middle) > goal else (low, middle)
    return float(np.exp(high))


def _worth(law: Law | Published, repeats: Repeats | None) -> tuple[dict[str, float], tuple[float, float]]:
    """(R_D* and R_N*, the ends of what is known of R_D*): of one's own runs, of the law, or Muennighoff et al.'s."""
    if repeats is not None:
        return {"R_D": repeats.R_D, "R_N": repeats.R_N}, (repeats.low, repeats.high)
    return dict(getattr(law, "repeats", None) or MUENNIGHOFF), _OPEN


def _limited(law: Law | Published, unique: float, worth: Mapping[str, float]) -> LogLoss:
    """The law with D beyond `unique` repeated."""
    values = dict(law.values)
    if not {"E", "A", "B", "alpha"} <= values.keys():
        raise UsageError(
            "Repeated text is weighed by a law with E, A, B, alpha, beta.", expected="chinchilla or tied."
        )
    values.setdefault("beta", values["alpha"])
    r = np.log([[min(worth["R_D"], _ENDLESS), worth["R_N"]]])

    def curve(sizes: Array, tokens: Array, theta: Array | None) -> Array:
        points = Points.of(sizes, tokens, np.ones(len(sizes)), U=np.minimum(unique, tokens))
        return Repeated(points, values).log_loss(r, {})[0]

    return curve


def _by_rule(
    law: Allocation | Published, flops: float | None, N: float | None, D: float | None, said: str,  # noqa: N803
    serve: float, unique: float | None,
) -> Optimum:  # fmt: skip
    if serve or unique is not None or (flops is None and N is None and D is None):
        raise UsageError(
            "A rule of the best size says nothing of loss, serving or repeating.",
            expected="A law of loss, such as chinchilla.",
        )  # fmt: skip
    low, high = np.log(1e6), np.log(1e36)
    for _ in range(60) if flops is None else ():
        middle = (low + high) / 2
        size, tokens = law.best(float(np.exp(middle)))
        below = size < N if N is not None else tokens < (D or 0)
        low, high = (middle, high) if below else (low, middle)
    cost = float(np.exp(high)) if flops is None else flops
    size, tokens = law.best(cost)
    draws = np.asarray(law.draws)
    interval = None
    if len(draws):  # of an allocation: a and log G
        low, high = np.quantile(np.exp(draws[:, 1] + draws[:, 0] * np.log(cost)), [0.1, 0.9])
        interval = (float(low), float(high))
    counting = getattr(law, "counting", "C = 6 N D")
    return Optimum(size, tokens, 6 * size * tokens, said, _name(law), counting, interval=interval)


def _flops(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e")


def _name(law: Law | Published | Allocation) -> str:
    published = getattr(law, "title", None)
    if published is not None:
        return f"{getattr(law, 'name', '')} ({published})"
    return f"the law {law.form}" if hasattr(law, "form") else f"the {getattr(law, 'method', 'rule')} rule"


def _warnings(
    law: Law | Published, N: float, D: float, unique: float | None, repeats: Repeats | None  # noqa: N803
) -> list[str]:  # fmt: skip
    said = []
    points = getattr(law, "points", None)
    if points is not None:
        own = points.D / points.N
        if not own.min() / 2 <= D / N <= own.max() * 2:
            said.append(
                f"{D / N:.3g} tokens per parameter, where the runs have {own.min():.3g} to {own.max():.3g}: "
                "this division was never tried"
            )
        beyond = 6 * N * D / (6 * points.N * points.D).max()
        if beyond > 100:
            said.append(f"{beyond:.3g} times the compute of the largest run")
    else:
        said.append("another study's corpus, tokenizer and counting: its division need not be yours")
    if unique is not None and repeats is None and getattr(law, "repeats", None) is None:
        said.append(
            "what repeating is worth is not known from these runs: Muennighoff et al.'s R_D* = 15.4, R_N* = 5.3"
        )
    return said
