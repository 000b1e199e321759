"""A budget of FLOPs, and the model and tokens that make the most of it.

    minimise L(N, D)  subject to  F(N) D = C        L = E + A / N^alpha + B / D^beta  (Hoffmann et al. 2022, 2203.15556)

F(N), the training FLOPs of one token, is counted on a model of that size (`usual`), not taken for 6 N. Variants:

    serving     the budget also pays for T tokens that will be served: F D + F_forward T = C  (after 2401.00448)
    data        only U tokens are unique; further passes over them are worth less (Muennighoff et al. 2023, 2305.16264)

How sure: two bootstrap fits of one set of runs differ by a turn of the line ln N* = a ln C + k about the middle C0 of
the runs, so sigma(ln N*) = sigma(a) |ln(C / C0)|. For the Chinchilla points that is 0.0198 |ln(C / 1.55e19)|, which
gives the intervals of D / N that a bootstrap of them has at 5.76e23 (10 to 29) and at 1e26 (6.5 to 32).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError, nearest
from glassformer.plan.architecture import Architecture
from glassformer.plan.flops import forward, training
from glassformer.plan.intervals import Z

if TYPE_CHECKING:
    from glassformer.scale.forecast import Forecaster

Array = NDArray[np.float64]

EXPONENT_ERROR = 0.0198
"""sigma of a, of a bootstrap of the Chinchilla runs; taken for other published laws too, which print none."""
CENTRE = 1.55e19
"""Their middle, FLOPs."""
LARGEST_RUN = 5e26
"""FLOPs; Grok-3's 4.64e26, rounded up (Epoch's estimate, data/training_runs.csv)."""
REPEATS = (15.387756, 5.309743)
"""R_D*, R_N*: how far repeated tokens and excess parameters count (2305.16264)."""
DEFAULT = "besiroglu-2024"
_SIZES = np.geomspace(1e4, 1e15, 67)
"""N of the models that are counted; between them, ln F is taken for straight in ln N."""
_FINE = 4001


@dataclass(frozen=True, slots=True)
class LossLaw:
    """L(N, D) in nats a token, and how sure its best size is."""

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str
    exponent_error: float = EXPONENT_ERROR
    """sigma of a in N* ~ C^a."""
    centre: float = CENTRE
    """C0, FLOPs: the middle of the runs that it was fitted to, on a log scale."""
    forecaster: Forecaster | None = None
    """Of a law of one's own runs, whose loss is then one's own too; that of a published law is of another text."""

    def loss(self, N: Array | float, D: Array | float) -> Array:  # noqa: N803 # the field's symbols
        return np.asarray(self.E + self.A / np.asarray(N) ** self.alpha + self.B / np.asarray(D) ** self.beta)

    @property
    def a(self) -> float:
        """N* ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def is_own(self) -> bool:
        return self.forecaster is not None


@cache
def laws() -> Mapping[str, LossLaw]:
    """Published laws of loss, by name (scale/published.toml). Their nats are of their own text and tokenizer."""
    text = (resources.files("glassformer.scale") / "published.toml").read_text(encoding="utf-8")
    found = {}
    for name, one in tomllib.loads(text).items():
        if one.get("form") in ("chinchilla", "tied"):
            v = one["values"]
            found[name] = LossLaw(
                name, v["E"], v["A"], v["B"], v["alpha"], v.get("beta", v["alpha"]), one["source"]
            )
    return found


@dataclass(frozen=True)
class BestSize:
    """The best N and D for a budget, and how little it matters."""

    law: LossLaw
    flops: float
    """C, of training: causal convention."""
    architecture: Architecture
    tokens: float
    """D."""
    loss: float
    """By the law; of one's own text only where the law is one's own."""
    parameters_interval: tuple[float, float]
    """The middle 80 % of N*; that of D* is C / F of these."""
    flatness: list[dict[str, Any]]
    """The same budget with another size: how much higher the loss is."""
    within_one_percent: tuple[float, float]
    """Sizes whose loss is at most 1 % higher."""
    serve: float = 0.0
    unique: float | None = None

    @property
    def parameters(self) -> int:
        return self.architecture.parameters.total

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters

    def sentence(self) -> str:
        """How flat it is, in words."""
        half = next(row for row in self.flatness if row["size"] == 0.5)
        return f"Half the size on the same budget costs {half['loss_higher']:.2%} of loss."


def best_size(
    flops: float, law: LossLaw | str | Path = DEFAULT, *, length: int = 4096, serve: float = 0.0,
    unique: float | None = None,
) -> BestSize:  # fmt: skip
    """The model and tokens of least loss for a training budget of `flops` (causal convention).

    `serve`: tokens to be served later, whose FLOPs the same budget pays. `unique`: tokens there are; more are repeats.
    Raises UsageError where the budget is not even one pass of the smallest model over one row.
    """
    found = law if isinstance(law, LossLaw) else read_law(law)
    counted = _counted(length)
    least = 10 * float(np.exp(counted.flops[0])) * length
    if not flops >= least:
        raise UsageError(
            f"{flops:.3g} FLOPs train nothing.",
            expected=f"At least {least:.2g}: the smallest model that is counted ({_SIZES[0]:,.0f} parameters) on ten "
            f"rows of {length} tokens.",
        )
    sizes, losses, tokens_of = _curve(flops, found, counted, serve, unique)
    at = int(np.nanargmin(losses))
    if not np.isfinite(losses[at]):
        raise UsageError(
            f"Serving {serve:.3g} tokens takes more than the whole budget of {flops:.3g} FLOPs, whatever the size.",
            do="Raise the budget, or serve fewer.",
        )
    model = usual(float(sizes[at]), length)
    tokens = _tokens(flops, model, length, serve)
    loss = float(_loss(found, np.array([float(model.parameters.total)]), np.array([tokens]), unique)[0])
    best_loss, ratio = (
        float(losses[at]),
        math.exp(Z * found.exponent_error * abs(math.log(flops / found.centre))),
    )
    near = sizes[losses <= 1.01 * best_loss]
    flat = [
        {
            "size": factor, "parameters": float(sizes[at] * factor), "tokens": float(np.interp(sizes[at] * factor,
            sizes, tokens_of)),
            "loss_higher": float(np.interp(math.log(sizes[at] * factor), np.log(sizes), losses) / best_loss - 1),
        }
        for factor in (0.25, 0.5, 2.0, 4.0)
        if sizes[0] <= sizes[at] * factor <= sizes[-1]
    ]  # fmt: skip
    return BestSize(
        found, flops, model, tokens, loss,
        (model.parameters.total / ratio, model.parameters.total * ratio), flat,
        (float(near[0]), float(near[-1])), serve, unique,
    )  # fmt: skip


def best_tokens(parameters: float, law: LossLaw | str | Path = DEFAULT) -> float:
    """D for which a model of `parameters` is the best one of its compute: D = G N^(alpha / beta), at 6 N D."""
    found = law if isinstance(law, LossLaw) else read_law(law)
    ratio = found.beta * found.B / (found.alpha * found.A)
    return float((ratio * parameters**found.alpha) ** (1 / found.beta))


def usual(parameters: float, length: int = 4096, name: str | None = None) -> Architecture:
    """A decoder of about so many parameters, as they are usually built: d = 128 L, a gate, one head for each 128 (64,
    below 1,024) of the width, 8 key and value heads from a width of 4,096 on, and at most 30 % of it in the vocabulary.
    """
    width = (128 * parameters / 12) ** (1 / 3)
    for _ in range(20):  # what the vocabulary takes, the layers do not have
        vocab = min(128_256.0, max(64.0, 0.3 * parameters / width))
        width = max(8.0, (128 * max(parameters - vocab * width, 0.5 * parameters) / 12) ** (1 / 3))
    head = 128 if width >= 1024 else 64 if width >= 128 else 8
    together = 8 if width >= 4096 else 1
    heads = together * max(1, round(width / head / together))
    step = 128 if width >= 1024 else 8
    d, f = heads * head, step * math.ceil(8 / 3 * heads * head / step)
    kv = together if together > 1 else heads
    size = 128 if vocab >= 1024 else 8
    made = Architecture(name=name or "", layers=1, width=d, heads=heads, kv_heads=kv, head_width=head, ff_width=f,
                        ff_matrices=3, vocab=size * max(1, round(vocab / size)))  # fmt: skip
    each = replace(made, layers=2).parameters.total - made.parameters.total
    layers = max(1, round((parameters - made.parameters.total) / each) + 1)
    made = replace(made, layers=layers)
    return made if name else replace(made, name=f"{_short(made.parameters.total)} decoder")


def read_law(what: str | Path) -> LossLaw:
    """A published law by name, or one's own from the file that `glassformer scale fit --out law.json` writes."""
    if str(what) in laws():
        return laws()[str(what)]
    if Path(what).suffix != ".json":
        raise UsageError(
            f"There is no law {str(what)!r};", expected=nearest(str(what), laws()),
            do="Or give a file of your own: glassformer scale fit RUNS --out law.json",
        )  # fmt: skip
    from glassformer.scale.law_file import read_forecaster

    own = read_forecaster(Path(what))
    values, points = own.law.values, own.law.points
    if not {"E", "A", "B", "alpha"} <= values.keys() or points is None:
        raise UsageError(
            f"The law {own.law.form} in {what} does not weigh N against D.", expected="chinchilla or tied."
        )
    low, high = own.law.interval("a", 0.8)
    error = (high - low) / (2 * Z) if math.isfinite(high - low) else EXPONENT_ERROR
    centre = float(np.exp(np.log(6 * points.N * points.D).mean()))
    return LossLaw(Path(what).name, values["E"], values["A"], values["B"], values["alpha"],
                   values.get("beta", values["alpha"]), f"your own runs, {what}", error, centre, own)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Counted:
    """ln N of the models that were counted, and ln of a token's FLOPs in training and forward."""

    sizes: Array
    flops: Array
    forward: Array


@cache
def _counted(length: int) -> _Counted:
    models = [usual(float(size), length) for size in _SIZES]
    sizes = np.log([float(m.parameters.total) for m in models])
    trained = np.log([training(m, length, convention="causal") for m in models])
    once = np.log([forward(m, length, convention="causal").total for m in models])
    order = np.argsort(sizes, kind="stable")
    return _Counted(sizes[order], trained[order], once[order])


def _curve(
    flops: float, law: LossLaw, counted: _Counted, serve: float, unique: float | None
) -> tuple[Array, Array, Array]:
    """N, the loss that the budget reaches with it, and D."""
    logs = np.linspace(counted.sizes[0], counted.sizes[-1], _FINE)
    each = np.exp(np.interp(logs, counted.sizes, counted.flops))
    served = serve * np.exp(np.interp(logs, counted.sizes, counted.forward))
    sizes, tokens = np.exp(logs), np.maximum((flops - served) / each, 1.0)
    losses = np.where(flops > served, _loss(law, sizes, tokens, unique), np.inf)
    return sizes, losses, tokens


def _tokens(flops: float, model: Architecture, length: int, serve: float) -> float:
    served = serve * forward(model, length, convention="causal").total
    return (flops - served) / training(model, length, convention="causal")


def _loss(law: LossLaw, sizes: Array, tokens: Array, unique: float | None) -> Array:
    if unique is None:
        return law.loss(sizes, tokens)
    once = np.minimum(unique, tokens)
    best = (law.alpha * law.A / (law.beta * law.B)) ** (1 / law.alpha) * once ** (law.beta / law.alpha)
    fits = np.minimum(sizes, best)
    r_d, r_n = REPEATS
    return law.loss(fits * (1 + _worth(sizes / fits - 1, r_n)), once * (1 + _worth(tokens / once - 1, r_d)))


def _worth(again: Array, limit: float) -> Array:
    """What `again` repetitions count for: limit (1 - exp(-again / limit))."""
    worth: Array = -limit * np.expm1(-again / limit)
    return worth


def _short(number: float) -> str:
    from glassformer.units import show_count

    return show_count(number)
