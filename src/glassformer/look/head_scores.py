"""What a head does, in numbers from its pattern P: P[q, k] is the weight that query q gives key k; a row sums to 1.

Measured on rows of n random tokens, each row twice: r_0 ... r_(n-1) r_0 ... r_(n-1)
    induction       mean of P[q, q - n + 1] over the second half: the token after the earlier copy of q's token
    duplicate_token mean of P[q, q - n] over the second half: that earlier copy itself
    previous_token  mean of P[q, q - 1]
    next_token      mean of P[q, q + 1], where a row is read whole
On a text (without one, on rows of n random tokens, once):
    first_token     mean of P[q, 0]: the sink, where a head with nothing to do puts its weight
    last_token      mean of P[q, last]: the sink of a row that is read whole, or of another text that is read
    current_token   mean of P[q, q]
    near            mean over q of the sum of P[q, k] over |q - k| <= 4
    distance        mean over q of the sum of P[q, k] |q - k|, in tokens
    diagonal        of a head that reads another text: the sum over |k - q (S - 1) / (T - 1)| <= 2 for T queries
                    and S keys
    entropy         mean over q of H(P[q]) / log(number of keys q may look at): 1 is an even spread
On R rows of n random tokens, once:
    positional      mean of <A_r, A_s> over r != s, divided by the mean of <A_r, A_r>, where A_r is row r's P less
                    an even spread: 1 when the pattern is the same whatever the tokens, 0 when nothing of it stays

Where a row is read from left to right, the first query has one key and no choice; no mean counts it. `near` leaves
out the queries that have no key further off.

Sources: induction is the prefix-matching score of Olsson et al. 2022; the first three are TransformerLens's head
detector ("mul": the share of the weight on the expected cells), averaged over the queries that have such a cell;
the sink is Xiao et al. 2023's. The rest are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.model.config import ModelConfig
from glassformer.model.shapes import stacks

Pattern = Float[Tensor, "batch head query key"]
PerHead = Float[Tensor, "batch head"]

REACH, BESIDE = 4, 2
"""How far off `near` and `diagonal` count."""

KINDS: dict[str, tuple[str, ...]] = {
    "causal": ("induction", "previous_token", "duplicate_token", "first_token", "current_token", "near",
               "distance", "entropy", "positional"),
    "whole": ("previous_token", "next_token", "duplicate_token", "first_token", "last_token", "current_token",
              "near", "distance", "entropy", "positional"),
    "cross": ("diagonal", "last_token", "entropy"),
}  # fmt: skip
"""The scores that make sense for attention that looks back, over the whole row, or at another text."""


class Attention(NamedTuple):
    """The attention of one stack, or of one that reads another."""

    name: str
    """`blocks`; of an encoder-decoder `encoder`, `decoder`, `cross`."""
    kind: str
    places: tuple[str, ...]
    """The pattern of each layer."""

    @property
    def scores(self) -> tuple[str, ...]:
        return KINDS[self.kind]


def attentions(config: ModelConfig) -> list[Attention]:
    """Every attention of a model, in the order in which they run."""
    found = []
    for stack in stacks(config):
        kinds = {"attn": "causal" if stack.causal else "whole"} | (
            {"cross_attn": "cross"} if stack.cross else {}
        )
        for part, kind in kinds.items():
            places = tuple(f"{stack.name}.{layer}.{part}.pattern" for layer in range(stack.layers))
            found.append(Attention("cross" if kind == "cross" else stack.name, kind, places))
    return [each for each in found if each.places]


class Copies(NamedTuple):
    """Where a row holds its random tokens twice: from `start`, `length` of them and the same again."""

    start: int
    length: int


def induction(pattern: Pattern, copies: Copies) -> PerHead:
    return _back(pattern, copies.start + copies.length, copies.length, copies.length - 1)


def duplicate_token(pattern: Pattern, copies: Copies) -> PerHead:
    return _back(pattern, copies.start + copies.length, copies.length, copies.length)


def previous_token(pattern: Pattern, copies: Copies) -> PerHead:
    return _back(pattern, copies.start + 1, 2 * copies.length - 1, 1)


def next_token(pattern: Pattern, copies: Copies) -> PerHead:
    return _back(pattern, copies.start, 2 * copies.length - 1, -1)


def first_token(pattern: Pattern, kind: str) -> PerHead:
    return pattern[..., 1:, 0].mean(-1)


def last_token(pattern: Pattern, kind: str) -> PerHead:
    last = pattern.shape[-1] - 1
    return pattern[..., : None if kind == "cross" else last, last].mean(-1)


def current_token(pattern: Pattern, kind: str) -> PerHead:
    return pattern.diagonal(dim1=-2, dim2=-1)[..., _first(kind) :].mean(-1)


def near(pattern: Pattern, kind: str) -> PerHead:
    away = _away(pattern)
    far = away.tril() if kind == "causal" else away
    asked = (far > REACH).any(-1)
    return (pattern * (away <= REACH)).sum(-1)[..., asked].mean(-1)


def distance(pattern: Pattern, kind: str) -> PerHead:
    return (pattern * _away(pattern)).sum(-1)[..., _first(kind) :].mean(-1)


def diagonal(pattern: Pattern, kind: str) -> PerHead:
    queries, keys = pattern.shape[-2:]
    if queries < 2 or keys <= 2 * BESIDE + 1:  # everything is beside the diagonal
        return torch.full_like(pattern[..., 0, 0], math.nan)
    line = torch.arange(queries, device=pattern.device) * (keys - 1) / (queries - 1)
    beside = (torch.arange(keys, device=pattern.device) - line[:, None]).abs() <= BESIDE
    return (pattern * beside).sum(-1).mean(-1)


def entropy(pattern: Pattern, kind: str) -> PerHead:
    queries, keys = pattern.shape[-2:]
    choices = torch.full_like(pattern[0, 0, :, 0], keys)
    if kind == "causal":
        choices = torch.arange(1, queries + 1).to(choices)
    share: Tensor = torch.special.entr(pattern).sum(-1) / choices.log()
    return share[..., _first(kind) :].mean(-1)


REPEATED: dict[str, Callable[[Pattern, Copies], PerHead]] = {
    "induction": induction,
    "duplicate_token": duplicate_token,
    "previous_token": previous_token,
    "next_token": next_token,
}
"""From random tokens that come twice."""

READ: dict[str, Callable[[Pattern, str], PerHead]] = {
    "first_token": first_token,
    "last_token": last_token,
    "current_token": current_token,
    "near": near,
    "distance": distance,
    "diagonal": diagonal,
    "entropy": entropy,
}
"""From a text, given what the attention looks at (a key of KINDS)."""


class Positional:
    """`positional`, from the patterns of one row after the other; holds their sum, not the patterns."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.own: Tensor | float = 0.0
        self.rows = 0

    def add(self, pattern: Pattern, kind: str) -> None:
        pattern = pattern.double()
        even = torch.ones_like(pattern[0, 0])
        if kind == "causal":
            even = even.tril()
        apart = pattern - even / even.sum(-1, keepdim=True)
        self.total = self.total + apart.sum(0)
        self.own = self.own + apart.square().sum((0, -2, -1))
        self.rows += len(pattern)

    def score(self) -> Float[Tensor, " head"]:
        """Of a head that always spreads evenly 1: no token ever changes what it does."""
        total, own = torch.as_tensor(self.total), torch.as_tensor(self.own)
        between = (total.square().sum((-2, -1)) - own) / (self.rows - 1)
        return torch.where(own > _ROUNDING, between / own.clamp(min=_ROUNDING), 1.0)


_ROUNDING = 1e-9
"""Squares below this are float32's rounding."""


def _back(pattern: Pattern, first: int, count: int, back: int) -> PerHead:
    """Mean weight of `count` queries from `first` on for the key so many places before."""
    query = torch.arange(first, first + count, device=pattern.device)
    return pattern[..., query, query - back].mean(-1)


def _first(kind: str) -> int:
    """The first query that has a choice."""
    return 1 if kind == "causal" else 0


def _away(pattern: Pattern) -> Float[Tensor, "query key"]:
    query, key = (torch.arange(size, device=pattern.device) for size in pattern.shape[-2:])
    return (query[:, None] - key).abs().to(pattern.dtype)
