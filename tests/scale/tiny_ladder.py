"""A ladder of seconds: a small vocabulary, short rows, so little text that it decides how large the rungs are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassformer.errors import GlassformerError, Stopped
from glassformer.scale.design import Rules
from glassformer.scale.rungs import Job, Told, train_rung
from glassformer.train.interrupt import Interrupt

RULES = Rules(smallest=8, ratios=(1.0, 2.0, 4.0), sizes=5)
BUDGET = "10h"
"""So long that the text alone limits the ladder: then its design does not hang on the machine."""


def recipe(folder: Path) -> dict[str, Any]:
    """40,000 letters of sentences made of 40 words."""
    chance = random.Random(0)
    words = ["".join(chance.choices("aeioustnr", k=chance.randint(2, 6))) for _ in range(40)]
    lines = (" ".join(chance.choices(words, weights=range(1, 41), k=8)) for _ in range(1200))
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join(lines)[:40_000])
    return {
        "name": "tiny", "data": {"paths": [str(text)]}, "tokenizer": {"kind": "characters"},
        "model": {"context": 16}, "train": {"steps": 1},
    }  # fmt: skip


@dataclass
class Here:
    """Trains in this process, one rung after another."""

    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Rung -> table -> values that replace its recipe's."""
    stop_before: str | None = None
    trained: list[str] = field(default_factory=list)

    def run(self, jobs: Sequence[Job], told: Told, interrupt: Interrupt) -> None:
        for job in jobs:
            if job.name == self.stop_before:
                raise Stopped("Stopped.")
            order = job.order()
            for table, values in self.changed.get(job.name, {}).items():
                order["recipe"] = {**order["recipe"], table: {**order["recipe"][table], **values}}
            self.trained.append(job.name)
            try:
                train_rung(order)
            except GlassformerError as error:
                told(job, str(error))
            else:
                told(job, None)
