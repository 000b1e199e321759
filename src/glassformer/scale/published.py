"""Laws that others published, by name, and what may be done with them.

    gf.published_law("besiroglu-2024").best(1e24)                  the best N and D: yes
    gf.published_law("besiroglu-2024").loss(7e9, 2e12)             refused: that is their loss, not yours
    gf.published_law("besiroglu-2024").recalibrated(points)        a law of your own, with their exponents

E, A and B belong to one corpus, one tokenizer and one way of counting: the loss of foreign coefficients is off by
whole tenths of a nat. What carries over, as far as anything does, are exponents, and with them how to divide compute.
The laws are in published.toml, every digit that was published, with its source.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.errors import UsageError, nearest
from glassformer.scale.fit import Law, fit, with_allocation
from glassformer.scale.laws import FORMS, Array
from glassformer.scale.points import Points
from glassformer.scale.solve import Huber

FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Published:
    """One published law: its numbers, or its rule for the best size, and where they are from."""

    name: str
    title: str
    source: str
    counting: str
    data: str
    form: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    level: str = "no interval was published"
    unit: str | None = None
    tokenizer: str | None = None
    note: str = ""
    size: Mapping[str, float] | None = None
    """N* = X (C / at)^power."""
    tokens: Mapping[str, float] | None = None
    """D* = X (C / at)^power."""
    repeats: Mapping[str, float] | None = None
    """R_D* and R_N*, of repeated text."""

    def best(self, flops: float) -> tuple[float, float]:
        """(N*, D*) at `flops` by its own rule, or by its law; 6 N D = C."""
        rule = self.size or self.tokens
        if rule is None:
            from glassformer.scale.optimum import lowest

            N = float(lowest(self, flops))  # noqa: N806 # the field's symbol
            return N, flops / (6 * N)
        first = rule["X"] * (flops / rule["at"]) ** rule["power"]
        other = flops / (6 * first)
        return (first, other) if self.size else (other, first)

    def log_loss(self, N: Array, D: Array, theta: Array | None = None) -> Array:  # noqa: N803
        """(1, point): log of *their* loss; differences of it tell how flat an optimum is."""
        if self.form is None:
            raise UsageError(
                f"{self.name} says how to divide compute, and nothing of loss.",
                expected="One with a law of loss: " + ", ".join(n for n in names() if _table()[n].get("form")) + ".",
            )  # fmt: skip
        return self._law.log_loss(N, D)

    def loss(self, N: float, D: float) -> float:  # noqa: N803
        """Refused: their loss is of another corpus and tokenizer."""
        raise UsageError(
            f"The loss of {self.name} is that of {self.data}, in {self.unit} of the tokenizer {self.tokenizer}: "
            "on another text it means nothing.",
            expected="It may say how to divide compute: .best(flops), gf.optimum, glassformer scale optimum.",
            do="For a loss of your own, give your runs: .recalibrated(points), or scale fit RUNS --exponents "
            f"{self.name}.",
        )  # fmt: skip

    def recalibrated(self, points: Points, *, delta: float = 1e-3, bootstrap: int = 1000) -> Law:
        """A law of one's own runs with the exponents of this one: E, A and B are fitted, alpha and beta are not."""
        exponents = {name: value for name, value in self.values.items() if name in ("alpha", "beta")}
        if not exponents:
            raise UsageError(
                f"{self.name} has no alpha and beta.",
                expected="One that has: " + ", ".join(n for n in names() if "alpha" in _table()[n].get("values", {})),
            )  # fmt: skip
        return fit(points, self.form or "chinchilla", noise=Huber(delta), held=exponents, bootstrap=bootstrap)

    def facts(self) -> dict[str, Any]:
        """What it is, what it counts, and where it is from."""
        shown = {
            name: f"{value:.8g}"
            + (f" ({self.intervals[name][0]:g} to {self.intervals[name][1]:g})" if name in self.intervals else "")
            for name, value in self._all.items()
        }  # fmt: skip
        return {
            "law": f"{self.name}: {self.title}", **shown, "intervals": self.level, "counting": self.counting,
            "data": self.data, "unit": self.unit, "tokenizer": self.tokenizer, "source": self.source,
            "note": self.note or None,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Each number with its published interval."""
        return [
            {"number": name, "value": value, "low": self.intervals.get(name, (None, None))[0],
             "high": self.intervals.get(name, (None, None))[1]}
            for name, value in self._all.items()
        ]  # fmt: skip

    @property
    def draws(self) -> Array:
        """None: intervals of single numbers are no draws of all."""
        return np.empty((0, 0))

    @property
    def _all(self) -> dict[str, float]:
        values = dict(self.values)
        if self.form in ("chinchilla", "tied"):
            known = {name: np.array([value]) for name, value in values.items()} | {
                "beta": np.array([values.get("beta", values["alpha"])])
            }
            values |= {name: float(value[0]) for name, value in with_allocation(known).items()}
        if self.size or self.tokens:
            power = (self.size or self.tokens or {})["power"]
            values["a"] = power if self.size else 1 - power
        return values | dict(self.repeats or {})

    @property
    def _law(self) -> Law:
        v = self.values
        if self.form == "kaplan":
            ratio = v["alpha_N"] / v["alpha_D"]
            theta = [ratio * np.log(v["N_c"]), ratio, np.log(v["D_c"]), v["alpha_D"]]
        else:
            theta = [
                np.log(v["E"]),
                np.log(v["A"]),
                v["alpha"],
                np.log(v["B"]),
                *([v["beta"]] if "beta" in v else []),
            ]
        assert self.form in FORMS
        nothing = np.empty((0, len(theta)))
        return Law(
            self.form, dict(v), float("nan"), 0, 0, np.array(theta), {"n": 0.0, "d": 0.0, "c": 0.0}, nothing
        )


def published_law(name: str) -> Published:
    """A published law by its name, such as `besiroglu-2024`; `names()` lists them.

    Raises UsageError for a name that is not among them.
    """
    table = _table()
    if name not in table:
        raise UsageError(f"There is no published law {name!r};", expected=nearest(name, table))
    entry = dict(table[name])
    entry["intervals"] = {number: (low, high) for number, (low, high) in entry.get("intervals", {}).items()}
    return Published(name, **entry)


def names() -> list[str]:
    """All published laws there are."""
    return list(_table())


def _table() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))
