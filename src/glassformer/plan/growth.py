"""How cost grows with size: what ten times the parameters cost, measured, and the product that any two runs differ by.

    cost ratio = N ratio x token ratio x recompute x bubble x price / (efficiency ratio x goodput ratio)

A pair of measured steps differs in little but the model. Its cost ratio at equal tokens (tokens a second of the small
model by those of the large one) is brought to exactly ten times the parameters: ratio^(ln 10 / ln of their ratio).
"""

from __future__ import annotations

import itertools
import math

from glassformer.plan.rows import Row, measured_rows

CLOSE = (8.0, 12.5)
"""Ratios of parameters that count as about ten."""


def size_pairs() -> list[tuple[float, str, str]]:
    """Cost of ten times the parameters at equal tokens, of every two measured steps of one source, accelerator,
    precision and length whose parameters differ 8 to 12.5 times; with their ids."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in measured_rows():
        f = row.fields
        if row.task == "pretrain" and f["params"] and f["tokens_per_s_per_accel"]:
            key = (f["source"], f["accelerator"], f["precision"], f["seq_len"])
            alike.setdefault(key, []).append(row)
    found = []
    for rows in alike.values():
        for small, large in itertools.permutations(rows, 2):
            bigger = float(large.fields["params"]) / float(small.fields["params"])
            if CLOSE[0] <= bigger <= CLOSE[1]:
                dearer = float(small.fields["tokens_per_s_per_accel"]) / float(
                    large.fields["tokens_per_s_per_accel"]
                )
                found.append((dearer ** (math.log(10) / math.log(bigger)), small.id, large.id))
    return found


def multipliers(
    parameters: float,
    tokens: float,
    efficiency: float = 1.0,
    recompute: float = 1.0,
    bubble: float = 1.0,
    goodput: float = 1.0,
    price: float = 1.0,
) -> dict[str, float]:
    """How much dearer one run is than another, as the product of what differs: ratios of large to small, each of which
    raises the cost but efficiency and goodput, which divide it."""
    parts = {
        "parameters": parameters, "tokens": tokens, "efficiency": 1 / efficiency, "recompute": recompute,
        "bubble": bubble, "goodput": 1 / goodput, "price": price,
    }  # fmt: skip
    return {**parts, "product": math.prod(parts.values())}
