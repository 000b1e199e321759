"""A budget of FLOPs, and the model and tokens that make the most of it.

    minimise L(N, D)  subject to  F(N) D = C        L = E + A / N^alpha + B / D^beta  (Hoffmann et al. 2022, 2203.15556)

F(N), the training FLOPs of one token, is counted on a model of that size (`usual`), not taken for 6 N. Variants:

    serving     the budget also pays for T tokens that will be served: F D + F_forward T = C  (after 2401.00448)
    data        only U tokens are unique; further passes over them are worth less (Muennighoff et al. 2023, 2305.16264)

How sure: two bootstrap fits of one set of runs differ by a turn of the line ln N* = a ln C + k about the middle C0 of the
runs, so sigma(ln N*) = sigma(a) |ln(C / C0)|. For the Chinchilla points that is 0.0198 |ln(C / 1.55e19)|, which gives the
intervals of D / N that a bootstrap of them has at 5.76e23 (10 to 29) and at 1e26 (6.5 to 32).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import UsageError, nearest
from glassformer.plan.architecture import Architecture
from glassformer.plan.flops import forward, training
from glassformer.plan.intervals import Z

Array = NDArray[np.float64]

LARGEST_RUN = 5e26
"""FLOPs; Grok-3's 4.64e26, rounded up (Epoch's estimate, data/training_runs.csv)."""
REPEATS = (15.387756, 5.309743)
"""R_D*, R_N*: how far repeated tokens and excess parameters count (2305.16264)."""
DEFAULT = "besiroglu-2024"
_SIZES = np.geomspace(1e4, 1e15, 221)
"""N of the models that are counted; between them, ln F is taken for straight in ln N."""
_FINE = 4001


@dataclass(frozen=True, slots=True)
class LossLaw:
    """L(N, D) in nats a token, and how sure it is."""

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    exponent_error: float
    """sigma of a in N* ~ C^a."""
    centre: float
    """C0, FLOPs: the middle of the runs that it was fitted to, on a log scale."""
    error: float
    """sigma of ln L within the runs; grows by `drift` for each e-fold of compute beyond."""
    largest: float
    """FLOPs of the largest run that it was fitted to."""
    source: str
    drift: float = 0.003

    def loss(self, N: Array | float, D: Array | float) -> Array:  # noqa: N803 # the field's symbols
        return np.asarray(self.E + self.A / np.asarray(N) ** self.alpha + self.B / np.asarray(D) ** self.beta)

    def sigma(self, C: float) -> float:  # noqa: N803
        """Of ln L at so much compute."""
        return self.error + self.drift * max(0.0, math.log(C / self.largest))

    @property
    def a(self) -> float:
        """N* ~ C^a."""
        return self.beta / (self.alpha + self.beta)


LAWS: dict[str, LossLaw] = {
    law.name: law
    for law in (
        LossLaw("besiroglu-2024", 1.81686, 482.006, 2085.434, 0.34781, 0.36585, 0.0198, 1.55e19, 0.01, 2e22,
                "Besiroglu et al. 2024 (2404.10102): Chinchilla's runs, fitted again"),
        LossLaw("hoffmann-2022", 1.6933737, 406.40102, 410.72283, 0.33917084, 0.2849083, 0.0198, 1.55e19, 0.01, 2e22,
                "Hoffmann et al. 2022 (2203.15556), approach 3, all digits of its TeX"),
        LossLaw("muennighoff-2023", 1.8691437, 520.82495, 1487.7161, 0.3526596, 0.3526596, 0.0198, 1e20, 0.01, 5e21,
                "Muennighoff et al. 2023 (2305.16264), fresh data of C4"),
    )
}  # fmt: skip
"""Published laws. Their nats are of their own text and tokenizer: another text has another floor."""


@dataclass(frozen=True)
class Optimum:
    """The best N and D for a budget, and how little it matters."""

    law: LossLaw
    flops: float
    """C, of training: causal convention."""
    architecture: Architecture
    tokens: float
    """D."""
    loss: float
    loss_interval: tuple[float, float]
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
    unique: float | None = None, like: Architecture | None = None,
) -> Optimum:  # fmt: skip
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
    model = usual(float(sizes[at]), length) if like is None else like
    tokens = _tokens(flops, model, length, serve)
    loss = float(_loss(found, np.array([float(model.parameters.total)]), np.array([tokens]), unique)[0])
    best_loss, ratio = float(losses[at]), math.exp(Z * found.exponent_error * abs(math.log(flops / found.centre)))
    reach = math.exp(Z * found.sigma(flops))
    near = sizes[losses <= 1.01 * best_loss]
    flat = [
        {
            "size": factor, "parameters": float(sizes[at] * factor), "tokens": float(np.interp(sizes[at] * factor, sizes, tokens_of)),
            "loss_higher": float(np.interp(math.log(sizes[at] * factor), np.log(sizes), losses) / best_loss - 1),
        }
        for factor in (0.25, 0.5, 2.0, 4.0)
        if sizes[0] <= sizes[at] * factor <= sizes[-1]
    ]  # fmt: skip
    return Optimum(
        found, flops, model, tokens, loss, (loss / reach, loss * reach),
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
    """A published law by name, or one's own from a file that `glassformer scale fit --save` wrote."""
    if str(what) in LAWS:
        return LAWS[str(what)]
    path = Path(what)
    if path.suffix == ".json" and path.exists():
        return _own(path)
    raise UsageError(
        f"There is no law {str(what)!r};" if path.suffix != ".json" else f"There is no file {path}.",
        expected=nearest(str(what), LAWS) if path.suffix != ".json" else "A law that `glassformer scale fit` saved.",
    )  # fmt: skip


def _own(path: Path) -> LossLaw:
    raise UsageError(f"{path} cannot be read as a law.")


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
