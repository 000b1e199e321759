"""The design of a ladder: which small models to train on how many tokens, so that a law can be fitted and tested.

Symbols: d width, L layers, N parameters (embeddings included), D tokens, U tokens of the text, C = 6 N D.

    sizes        d in eighths of an octave (24, 26, 28, 30, 32, 36, ...);  L = 12 sqrt(d / 768), through GPT-2's
                 smallest (12 layers of 768);  heads of the even size that divides d and is nearest to 32
    ratios       D / N of 10, 20 or 40 for the rungs that are fitted: with one ratio alone A and B of the law
                 E + A / N^alpha + B / D^beta cannot be told apart; 10 to 20 for the one that is held back
    fitted       six sizes (at least five), evenly in log N down to a tenth of the largest; by turns 20, or 10 and 40,
                 tokens for each parameter, or as many as leave 4 C <= C of the held-back rung
    held back    the largest whose whole ladder fits into the time; D <= U where such a ladder exists
    batch        0.292 C^0.3271 tokens                        DeepSeek-AI 2024 (2401.02954), section 3.1
    rate         0.3118 C^-0.125, of AdamW                    the same; measured from C = 1e17 on, so its height is
                 checked on two rungs with neighbouring rates, and the better factor is taken for all
    schedule     rises over 5 % of the steps, then falls linearly to 0 at the last: no point is undecayed

Time: a step of F FLOPs takes what the steps that were timed say, interpolated in logarithms; beyond the largest in
proportion to F, below the smallest as long as that. A tenth is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np

from glassformer.errors import UsageError
from glassformer.model.config import ModelConfig
from glassformer.model.count import flops_per_token, parameters
from glassformer.units import show_count, show_flops, show_seconds

WARMUP = 0.05
FACTORS = (0.5, 1.0, 2.0)
"""Of the rule's rate, tried on two rungs; one more where the best is at the edge."""
DECADES = 1.5
_MARGIN = 1.1
_AFTERWARDS = 15.0
"""Seconds for fitting, and for measuring the held-out text's own noise."""
FORWARD = 0.4
"""A measurement without an update takes so much of a step: forward is a third, and autograd keeps its own notes."""


@dataclass(frozen=True)
class Rules:
    """What a design may vary; the defaults are those of the docstring above."""

    smallest: int = 24
    """Width."""
    ratios: tuple[float, float, float] = (10.0, 20.0, 40.0)
    sizes: int = 6
    fewest: int = 5
    held_back: float = 4.0
    """The held-back rung has so many times the compute of the largest fitted one, or more."""
    span: float = 10.0
    """Largest fitted N over smallest."""


@dataclass(frozen=True)
class Speed:
    """How fast this machine trains: what a short probe found."""

    steps: tuple[tuple[float, float], ...]
    """(FLOPs, seconds) of a step, smallest first."""
    overhead: float
    """Seconds of a run that are no steps: to start, to open the text, to write the model."""

    def step_seconds(self, flops: float) -> float:
        """Seconds for a step of so many FLOPs."""
        x, y = (np.log([step[i] for step in self.steps]) for i in (0, 1))
        beyond = max(0.0, math.log(flops) - float(x[-1]))
        return math.exp(float(np.interp(math.log(flops), x, np.maximum.accumulate(y))) + beyond)


@dataclass(frozen=True)
class Rung:
    """One small model and how long it learns."""

    name: str
    held_back: bool
    width: int
    layers: int
    heads: int
    parameters: int
    batch: int
    """Rows."""
    context: int
    steps: int
    flops_per_token: int
    """As runs count them: every matrix product."""
    learning_rate: float
    """The rule's; a common factor is found by the ladder."""
    seconds: float
    """Predicted."""
    spot: bool = False
    """Its neighbouring rates are tried too."""

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.context

    @property
    def flops(self) -> int:
        return self.tokens * self.flops_per_token

    @property
    def compute(self) -> int:
        """C = 6 N D."""
        return 6 * self.parameters * self.tokens

    def row(self) -> dict[str, Any]:
        """For a table."""
        role = "held back" if self.held_back else "spot check" if self.spot else "fitted"
        return {
            "rung": self.name, "role": role, "width": self.width, "layers": self.layers,
            "N": show_count(self.parameters), "D": show_count(self.tokens),
            "D / N": round(self.tokens / self.parameters, 1), "FLOPs": show_flops(self.flops), "batch": self.batch,
            "steps": self.steps, "rate": float(f"{self.learning_rate:.3g}"), "predicted": show_seconds(self.seconds),
        }  # fmt: skip


@dataclass(frozen=True)
class Design:
    """A whole ladder, smallest compute first; the last rung is held back."""

    rungs: tuple[Rung, ...]
    unique_tokens: int
    seconds: float
    """Predicted, of everything."""
    workers: int = 1
    warnings: tuple[str, ...] = ()

    @property
    def fitted(self) -> tuple[Rung, ...]:
        return self.rungs[:-1]

    @property
    def held_back(self) -> Rung:
        return self.rungs[-1]

    @property
    def spots(self) -> tuple[Rung, ...]:
        return tuple(rung for rung in self.rungs if rung.spot)

    @property
    def epochs(self) -> float:
        """How often the rung that reads most reads the text."""
        return max(rung.tokens for rung in self.rungs) / self.unique_tokens

    def rows(self) -> list[dict[str, Any]]:
        """The table of rungs."""
        return [rung.row() for rung in self.rungs]

    def to_dict(self) -> dict[str, Any]:
        """For ladder.json, and back by `of`."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Design:
        rungs = tuple(Rung(**rung) for rung in values["rungs"])
        return cls(**{**values, "rungs": rungs, "warnings": tuple(values["warnings"])})


@dataclass(frozen=True)
class Text:
    """What the design must know of the text."""

    unique_tokens: int
    validation_tokens: int


def design(
    model: ModelConfig, text: Text, speed: Speed, seconds: float, *, rules: Rules | None = None, workers: int = 1
) -> Design:  # fmt: skip
    """The ladder with the largest held-back rung that takes at most `seconds`, so far as the text allows.

    `model` has its vocabulary; width, layers and heads are replaced. Raises UsageError where no ladder fits.
    """
    rules = rules or Rules()
    rung = cache(lambda width, ratio: one_rung(model, width, ratio, text, speed))
    least, within, beyond = math.inf, list[Design](), list[Design]()
    for width in _widths(rules.smallest):
        ladders = list(_ladders(rung, width, text, rules, workers))
        fit = [ladder for ladder in ladders if ladder.seconds <= seconds]
        once = [ladder for ladder in fit if ladder.epochs <= 1]
        least = min(least, *(ladder.seconds for ladder in ladders), math.inf)
        within += once
        beyond += [ladder for ladder in fit if ladder.epochs > 1]
        if ladders and not once:
            break  # a larger width takes more of both
    if within:
        return max(within, key=lambda ladder: ladder.held_back.compute)
    if beyond:
        return _read_again(min(beyond, key=lambda ladder: ladder.epochs))
    minutes = math.ceil(least / 60)
    raise UsageError(
        f"{show_seconds(seconds)} are too few for a ladder here: the least, with its runs for the learning rate, is "
        f"predicted to take {show_seconds(60 * minutes)}.",
        expected=f"At least five sizes over {DECADES} decades of compute, and one of 4 times the largest's.",
        do=f"Give --budget {minutes}m or more, a smaller tokenizer.vocab, or a shorter model.context.",
    )


def _read_again(ladder: Design) -> Design:
    told = (
        f"the largest rung reads the text {ladder.epochs:.1f} times, for there is too little of it: what is read again "
        "teaches less, and the law knows nothing of that"
    )
    return replace(ladder, warnings=(told,))


def _ladders(
    rung: Callable[[int, float], Rung], width: int, text: Text, rules: Rules, workers: int
) -> Iterator[Design]:
    """The ladders that obey the rules with a held-back rung of this width."""
    low, middle, _ = rules.ratios
    for ratio in np.geomspace(low, middle, 5):
        top = rung(width, float(ratio))
        fitted = _fitted(rung, top, rules)
        if fitted is not None:
            rungs = tuple(
                replace(one, name=f"rung-{i:02}", held_back=one is top)
                for i, one in enumerate((*fitted, top), 1)
            )
            yield Design(rungs, text.unique_tokens, _whole(rungs, workers), workers)


def _fitted(rung: Callable[[int, float], Rung], top: Rung, rules: Rules) -> tuple[Rung, ...] | None:
    """The rungs below a held-back one, smallest compute first; None where five sizes or 1.5 decades are not there."""
    low, middle, high = rules.ratios

    def fits(one: Rung) -> bool:
        less = rules.held_back * max(one.compute / top.compute, one.flops / top.flops) <= 1
        return less and one.tokens < top.tokens

    family = list(takewhile(lambda width: fits(rung(width, low)), _widths(rules.smallest)))
    if len(family) < rules.fewest:
        return None
    sizes = np.log([rung(width, middle).parameters for width in family])
    wanted = np.linspace(sizes[-1], max(sizes[0], sizes[-1] - math.log(rules.span)), rules.sizes)
    chosen = sorted({int(np.argmin(abs(sizes - size))) for size in wanted}, reverse=True)
    if len(chosen) < rules.fewest:
        return None
    rungs = []
    for place, index in enumerate(chosen):
        for ratio in (middle,) if place % 2 == 0 else (low, high):
            shorter = (rung(family[index], float(less)) for less in np.geomspace(ratio, low, 5))
            rungs.append(next(filter(fits, shorter)))
    rungs.sort(key=lambda one: one.compute)
    if rungs[-1].compute < 10**DECADES * rungs[0].compute:
        return None
    if top.tokens / top.parameters < min(one.tokens / one.parameters for one in rungs):
        return None  # whole steps may leave the one held back with a ratio that no fitted rung has
    spots = {len(rungs) // 4, len(rungs) // 2}
    return tuple(replace(one, spot=i in spots) for i, one in enumerate(rungs))


def sized(model: ModelConfig, width: int) -> ModelConfig:
    """The model with another width, and with layers, heads and feed-forward that belong to it."""
    heads = [width // size for size in range(2, width + 1, 2) if width % size == 0]
    ratio = None if model.feedforward is None else model.feedforward / model.width
    return model.model_copy(
        update={
            "width": width, "layers": round(12 * math.sqrt(width / 768)), "kv_heads": None, "head_size": None,
            "heads": min(heads, key=lambda count: abs(width / count - 32)),
            "feedforward": None if ratio is None else round(ratio * width),
        }
    )  # fmt: skip


def _widths(smallest: int) -> Iterator[int]:
    step = 1
    while True:
        yield from (
            width for width in range(8 * step, 16 * step, step) if width >= smallest and width % 2 == 0
        )
        step *= 2


def one_rung(model: ModelConfig, width: int, ratio: float, text: Text, speed: Speed) -> Rung:
    """A rung of this width that learns from `ratio` tokens for each parameter."""
    one = sized(model, width)
    size, each = parameters(one).total, flops_per_token(one, "matmul")
    tokens = ratio * size
    compute = 6 * size * tokens
    batch = max(1, round(0.292 * compute**0.3271 / one.context))
    steps = max(1, round(tokens / (batch * one.context)))
    step = speed.step_seconds(each * batch * one.context)
    measuring = FORWARD * step * text.validation_tokens / (batch * one.context)
    return Rung(
        name="", held_back=False, width=width, layers=one.layers, heads=one.num_heads, parameters=size,
        batch=batch, context=one.context, steps=steps, flops_per_token=each,
        learning_rate=0.3118 * compute**-0.125, seconds=steps * step + measuring + speed.overhead,
    )  # fmt: skip


def _whole(rungs: Sequence[Rung], workers: int) -> float:
    """Seconds of a whole ladder: the runs for the learning rate come first, then all others."""
    spots = [rung.seconds for rung in rungs if rung.spot for _ in range(len(FACTORS) + 1)]
    others = [rung.seconds for rung in rungs if not rung.spot]
    return _MARGIN * (makespan(spots, workers) + makespan(others, workers)) + _AFTERWARDS


def makespan(seconds: Sequence[float], workers: int) -> float:
    """How long so many workers take, each taking the longest run that is left."""
    busy = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)
