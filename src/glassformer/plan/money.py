"""Dollars of a run on three bases, which answer three questions and are always shown together.

    cloud      accelerator-hours x price an hour: on demand, committed for one year, for three
    owned      accelerator-hours x (server / (1 - 0.19) x 0.14 ln 10 / 8766 h + kW x PUE x $/kWh)
    project    owned, with experiments and failed runs, and the people: owned x f / (1 - staff)

A chip's server costs 1.64 chips in all, the cluster's network 19 % of the cluster, and hardware loses 0.14 ln 10 = 32 %
of its price a year, as fast as new hardware gets better. Experiments and failed runs raise compute to f = 2.2 times the
final run (1.2 to 4), and people are 29 to 49 % of the whole. All of these: Cottier et al. 2024 (2405.21015), for large
models of 2020 to 2024; a small project is not like them.

Prices are dated quotes (data/prices.csv by year and class of vendor, data/purchases.csv), in dollars of their year. The
interval spans the quotes: the same chip costs 2 to 12 dollars an hour in the same year.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from glassformer.errors import UsageError
from glassformer.plan.energy import PUE, power
from glassformer.plan.failures import Between
from glassformer.plan.hardware import Accelerator, accelerators, data_rows
from glassformer.stats import median

HOURS_PER_YEAR = 24 * 365.25
DEPRECIATION = 0.14 * math.log(10)
"""Of the price, a year."""
SERVER = {"P100": 1.54, "V100": 1.69, "A100": 1.66}
"""A server's price for each of its chips' (Epoch, training-cost-trends 263c40a); 1.64 for others."""
SERVER_OF_OTHERS = 1.64
NETWORK = 0.19
"""Of the cluster's price."""
ELECTRICITY = Between(0.0806, 0.067, 0.083, 0.8)
"""$/kWh, industry in the USA: 2023, and the least and most of 2014 to 2025 (EIA, by Epoch)."""
EXPERIMENTS = Between(2.2, 1.37, 3.5, 0.8)
"""All compute by that of the final run: 1.2 to 4 with 90 %, from BLOOM (2.7), OPT (2) and others; here the 80 %."""
STAFF = Between(0.39, 0.29, 0.49, 0.8)
"""Of the whole project."""
TERMS = ("on demand", "1 year", "3 years")

_FEW_QUOTES = 1.5
"""One or two prices are uncertain by this factor at least: as the spread of kinds with many quotes."""
_BY_PEAK = 2.0
"""And one taken over from another kind of accelerator by its peak."""
_COLUMN = {
    "on demand": "on_demand_usd_per_hour_median",
    "1 year": "one_year_median",
    "3 years": "three_year_median",
}


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for one accelerator: an hour of it, or it with its share of a server."""

    usd: Between
    year: int
    """Whose dollars."""
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars of a run on one basis."""

    basis: str
    usd: Between
    year: int
    source: str
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of the value."""


@dataclass(frozen=True, slots=True)
class Costs:
    """All three bases."""

    cloud: tuple[Cost, ...]
    """On demand, 1 year, 3 years."""
    owned: Cost
    project: Cost

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "basis": one.basis, "usd": one.usd.value, "low": one.usd.low, "high": one.usd.high, "year": one.year,
                "source": one.source,
            }
            for one in (*self.cloud, self.owned, self.project)
        ]  # fmt: skip


def costs(
    kind: Accelerator,
    accelerator_hours: float,
    *,
    hours: Between | None = None,
    year: int | None = None,
    busy: float | None = None,
    pue: Between = PUE,
    electricity: Between = ELECTRICITY,
) -> Costs:
    """What so many hours of this accelerator cost; `hours`, where they are an interval themselves."""
    if not accelerator_hours > 0:
        raise UsageError(f"{accelerator_hours:g} accelerator-hours cost nothing.", expected="More than 0.")
    given = hours or Between(accelerator_hours, accelerator_hours, accelerator_hours, 0.8)
    cloud = []
    for term in TERMS:
        price = cloud_price(kind, term, year)
        cloud.append(Cost(f"cloud, {term}", _product(given, price.usd), price.year, price.source))
    owned = _owned(kind, given, year, busy, pue, electricity)
    rest = Between(1 / (1 - STAFF.value), 1 / (1 - STAFF.low), 1 / (1 - STAFF.high), 0.8)
    usd = _product(owned.usd, EXPERIMENTS, rest)
    parts = {
        "final run": owned.usd.value, "experiments and failed runs": owned.usd.value * (EXPERIMENTS.value - 1),
        "people": usd.value * STAFF.value,
    }  # fmt: skip
    project = Cost(
        "whole project", usd, owned.year, f"{owned.source}; experiments and people by arXiv 2405.21015", parts
    )
    return Costs(tuple(cloud), owned, project)


def cloud_price(kind: Accelerator, term: str = "on demand", year: int | None = None) -> Price:
    """Dollars an hour, of the newest quotes not after `year`: their median by number, and the cheapest and dearest.

    A class of vendor without a quote for the term takes off the usual discount; without any quote of this kind,
    another's of its vendor counts, by their peaks."""
    if term not in TERMS:
        raise UsageError(f"There is no price {term!r}.", expected=f"One of {', '.join(TERMS)}.")
    quotes = _newest(kind.name, year)
    if not quotes:
        other = _alike(kind, {row["accelerator"] for row in data_rows("prices")})
        price = cloud_price(other, term, year)
        ratio = _peak(kind) / _peak(other)
        return Price(
            _around(price.usd.value * ratio, _BY_PEAK),
            price.year,
            f"no quote: by peak from {other.name}, {price.source}",
        )
    each = [(_at(row, term), int(row["n_quotes"]), *_ends(row, term)) for row in quotes]
    value = median([price for price, count, _, _ in each for _ in range(count)])
    spread = _spread(
        value, min(one[2] for one in each), max(one[3] for one in each), sum(one[1] for one in each)
    )
    words = " and ".join(f"{row['n_quotes']} of {row['vendor_class']} {row['year']}" for row in quotes)
    told = f"{words}; {'; '.join(sorted({row['verified'] for row in quotes}))}"
    guessed = [row["vendor_class"] for row in quotes if not row[_COLUMN[term]]]
    if guessed:
        told += f"; {term} of {' and '.join(guessed)} by the usual discount"
    return Price(spread, max(int(row["year"]) for row in quotes), told)


def server_price(kind: Accelerator, year: int | None = None) -> Price:
    """Dollars for one accelerator with its share of a server: median and ends of the quotes up to `year`."""
    every = [row for row in data_rows("purchases") if row["accelerator"] == kind.name]
    quotes = [row for row in every if year is None or int(row["date"][:4]) <= year] or every
    if not quotes:
        other = _alike(kind, {row["accelerator"] for row in data_rows("purchases")})
        price = server_price(other, year)
        value = price.usd.value * _peak(kind) / _peak(other)
        return Price(
            _around(value, _BY_PEAK), price.year, f"no quote: by peak from {other.name}, {price.source}"
        )
    share = SERVER.get(kind.name.split("-")[0], SERVER_OF_OTHERS)
    each = [float(row["usd"]) * (1 if row["basis"] == "server" else share) for row in quotes]
    spread = _spread(median(each), min(each), max(each), len(each))
    newest = max(int(row["date"][:4]) for row in quotes)
    return Price(
        spread, newest, f"{len(quotes)} quotes to {newest} ({quotes[-1]['verified']}; {quotes[-1]['source']})"
    )


def _owned(
    kind: Accelerator,
    hours: Between,
    year: int | None,
    busy: float | None,
    pue: Between,
    electricity: Between,
) -> Cost:
    server = server_price(kind, year)
    an_hour = DEPRECIATION / (1 - NETWORK) / HOURS_PER_YEAR
    watts = power(kind, busy).watts
    energy = _product(watts, pue, electricity)
    hardware, current = server.usd.value * an_hour, energy.value / 1000
    low, high = server.usd.low * an_hour + energy.low / 1000, server.usd.high * an_hour + energy.high / 1000
    usd = _product(hours, Between(hardware + current, low, high, 0.8))
    parts = {
        "servers": hours.value * hardware * (1 - NETWORK), "network": hours.value * hardware * NETWORK,
        "energy": hours.value * current,
    }  # fmt: skip
    return Cost("owned", usd, server.year, server.source, parts)


def _newest(name: str, year: int | None) -> list[dict[str, str]]:
    """The newest quotes of each class of vendor that are no more than a year older than the newest of all."""
    every = [row for row in data_rows("prices") if row["accelerator"] == name]
    before = [row for row in every if year is None or int(row["year"]) <= year]
    if not before:  # all are younger: the oldest
        before = [row for row in every if row["year"] == min(one["year"] for one in every)]
    newest = max((int(row["year"]) for row in before), default=0)
    by_class = {row["vendor_class"]: row for row in sorted(before, key=lambda row: row["year"])}
    return [row for row in by_class.values() if int(row["year"]) >= newest - 1]


def _at(row: Mapping[str, str], term: str) -> float:
    """Median of these quotes for a term; where it is not quoted, on demand less the usual discount."""
    full = float(row[_COLUMN["on demand"]])
    return float(row[_COLUMN[term]]) if row[_COLUMN[term]] else full * _discount(term)


def _ends(row: Mapping[str, str], term: str) -> tuple[float, float]:
    """Cheapest and dearest; for a commitment, whose ends are not in the table, those on demand in proportion."""
    full = float(row[_COLUMN["on demand"]])
    ratio = _at(row, term) / full
    return ratio * float(row["min"] or full), ratio * float(row["max"] or full)


def _spread(value: float, low: float, high: float, count: int) -> Between:
    few = _around(value, _FEW_QUOTES)
    return (
        Between(value, min(low, few.low), max(high, few.high), 0.8)
        if count < 3
        else Between(value, low, high, 0.8)
    )


@cache
def _discount(term: str) -> float:
    """What a commitment costs of the price on demand, where both are quoted."""
    column, full = _COLUMN[term], _COLUMN["on demand"]
    return median([float(row[column]) / float(row[full]) for row in data_rows("prices") if row[column]])


def _alike(kind: Accelerator, quoted: set[str]) -> Accelerator:
    """The kind with a quote that is nearest in peak and year, of the same vendor if there is one."""
    table = [one for name, one in accelerators().items() if name in quoted]
    kin = [one for one in table if one.vendor == kind.vendor] or table
    return min(
        kin,
        key=lambda one: (
            abs(math.log(_peak(one) / _peak(kind))) + abs(int(one.release[:4]) - int(kind.release[:4])) / 4
        ),
    )


def _peak(kind: Accelerator) -> float:
    """Dense FLOP/s of 16 bits; where the datasheet names none, twice those of tf32."""
    return kind.peak("bf16") if {"bf16", "fp16"} & set(kind.peaks) else 2 * kind.peak("tf32")


def _around(value: float, factor: float) -> Between:
    return Between(value, value / factor, value * factor, 0.8)


def _product(*factors: Between) -> Between:
    """Of numbers that do not know of each other: the logarithms of their ends add as squares."""
    value = math.prod(one.value for one in factors)
    down = math.hypot(*(math.log(one.value / one.low) for one in factors))
    up = math.hypot(*(math.log(one.high / one.value) for one in factors))
    return Between(value, value * math.exp(-down), value * math.exp(up), 0.8)
