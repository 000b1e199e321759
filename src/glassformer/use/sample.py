"""From logits to one token: what may be drawn, and the draw.

With logits l over V tokens and the settings in the order they are applied:

    penalty r       l_v / r where l_v > 0, l_v * r otherwise, if v is already there     Keskar et al. 2019
    temperature T   l / T; T = 0 always takes the largest (greedy)                      Ackley et al. 1985
    top_k           keep the k largest                                                  Fan et al. 2018
    top_p           keep the smallest set, largest first, whose mass reaches p          Holtzman et al. 2020
    min_p           keep those at least min_p times as probable as the largest          Nguyen et al. 2024
    draw            p = softmax(l); the first v with p_1 + ... + p_v > u, for u uniform in [0, 1)

Each filter turns what it removes to -inf; tokens that tie at its edge all stay. `u` is a function of the
request's seed and the token's number alone, so a request draws the same text whatever else is going on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import ModelError, UsageError
from glassformer.seeds import derive

Logits = Float[Tensor, "*batch vocab"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """0 is greedy, 1 the model's own probabilities, more is wilder."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules: list[tuple[str, str, bool]] = [
            ("temperature", "0 (greedy) or more, and finite", 0 <= self.temperature < math.inf),
            ("top_k", "1 or more", self.top_k is None or self.top_k >= 1),
            ("top_p", "above 0 and at most 1", self.top_p is None or 0 < self.top_p <= 1),
            ("min_p", "from 0 to 1", self.min_p is None or 0 <= self.min_p <= 1),
            ("repetition_penalty", "above 0, and finite", 0 < self.repetition_penalty < math.inf),
        ]
        broken = [
            f"{name} must be {rule}, not {getattr(self, name)!r}" for name, rule, holds in rules if not holds
        ]
        if broken:
            raise UsageError("; ".join(broken) + ".", do="Leave a setting out to switch it off.")


def choose(logits: Logits, sampling: Sampling, u: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """One token for each row: the largest logit when greedy, else the one at which the sum passes `u`."""
    return logits.argmax(-1) if sampling.temperature == 0 else draw(probabilities(logits, sampling), u)


def probabilities(logits: Logits, sampling: Sampling) -> Logits:
    """The distribution that is drawn from: 0 for what was filtered out, and greedy, 1 for the largest."""
    *_, (_, last) = stages(logits, sampling)
    return last.softmax(-1)


def stages(logits: Logits, sampling: Sampling) -> Iterator[tuple[str, Logits]]:
    """The logits after each setting that is on, by its name and in the order they are applied; temperature always."""
    if sampling.temperature == 0:
        largest = torch.zeros_like(logits, dtype=torch.bool).scatter(
            -1, logits.argmax(-1, keepdim=True), True
        )
        yield "temperature", torch.zeros_like(logits).masked_fill(~largest, -math.inf)
        return
    logits = tempered(logits, sampling.temperature)
    yield "temperature", logits
    if sampling.top_k is not None:
        logits = top_k(logits, sampling.top_k)
        yield "top_k", logits
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = top_p(logits, sampling.top_p)
        yield "top_p", logits
    if sampling.min_p:
        yield "min_p", min_p(logits, sampling.min_p)


def penalised(logits: Float[Tensor, " vocab"], ids: Sequence[int], penalty: float) -> Float[Tensor, " vocab"]:
    """Tokens that are already there become less likely (penalty above 1) or more (below)."""
    there = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
    score = logits[there]
    return logits.index_put((there,), torch.where(score > 0, score / penalty, score * penalty))


def tempered(logits: Logits, temperature: float) -> Logits:
    """(l - max l) / T. Softmax does not see the shift, and no temperature, however low, can overflow it."""
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(logits.dtype).tiny)


def top_k(logits: Logits, k: int) -> Logits:
    """The k largest stay."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def top_p(logits: Logits, p: float) -> Logits:
    """Largest first, tokens stay until those before them hold the mass `p`."""
    mass = logits.softmax(-1)
    # NumPy sorts 50,000 floats in 0.1 ms where torch's sort on a CPU takes 3.
    falling = torch.from_numpy(np.sort(mass.cpu().numpy(), axis=-1)[..., ::-1].copy()).to(mass.device)
    before = falling.double().cumsum(-1) - falling
    smallest = falling.masked_fill(before >= p, math.inf).amin(-1, keepdim=True)
    return logits.masked_fill(mass < smallest, -math.inf)


def min_p(logits: Logits, p: float) -> Logits:
    """Tokens at least p times as likely as the likeliest stay."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def draw(mass: Float[Tensor, "*batch vocab"], u: Float[Tensor, "*draws"]) -> Int[Tensor, "*draws"]:
    """The first token at which the running sum passes u; one u for each row, or any number of them for a single
    one. A token of probability 0 never comes."""
    return torch.searchsorted(running(mass), u.double()[..., None], right=True)[..., 0]


def running(mass: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """The running sum of each token and those before it, which u is compared with; the last is 1."""
    total = mass.double().cumsum(-1)
    return total / total[..., -1:]


def uniform(seed: int, number: int) -> float:
    """A number in [0, 1) for the `number`-th token of the request with this seed (53 bits of SHA-256)."""
    return (derive(seed, "sample", number) >> 10) / 2**53


def log_normaliser(logits: Logits) -> Float[Tensor, "*batch"]:
    """log sum_v exp(l_v): a token's logit minus this is its log-probability.

    Raises ModelError when the logits hold no distribution.
    """
    total: Tensor = logits.logsumexp(-1)
    if not bool(total.isfinite().all()):
        bad = logits.isnan().sum().item()
        what = f"{bad} of {logits.numel()} are NaN" if bad else "they are infinite"
        raise ModelError(
            f"The model's logits cannot be drawn from: {what}.",
            expected="Expected finite numbers, so the weights or the arithmetic have overflowed.",
            do="Use an earlier checkpoint, or precision='fp32' if this was bf16.",
        )
    return total
