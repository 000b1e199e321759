"""`glassformer drill`: rehearse disasters before a big run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

import glassformer as gf
from glassformer.cli.overrides import Overrides
from glassformer.cli.terminal import ANSWER_IS_NO, document, heading, note, table

_NO_OVERRIDES = Overrides()
_WORDS = {True: "yes", False: "NO", None: ""}


def drill(
    *what: str,
    task: str | None = None,
    kills: int = 20,
    minutes: float = 5.0,
    ranks: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    seed: int | None = None,
    keep: Path | None = None,
    sabotage: bool = False,
    json: bool = False,
    overrides: Overrides = _NO_OVERRIDES,
) -> int:
    """Rehearse disasters: kill, stop and damage a short copy of a run, and see whether anything is lost.

    Args:
        what: A recipe's name, a recipe.toml, or texts or rows, as for train; without it, the demo.
        task: What to learn from texts or rows of your own.
        kills: Processes to kill; there is a bit flip and a NaN for every ten of them, a full disk and a stopped rank.
        minutes: What all of it may take; the copy is as long as fits.
        ranks: Processes that take part; left out, as many as parallel.shard asks for, or one.
        seed: Decides what befalls whom, and when; left out, chance does, and says its number.
        keep: A folder that keeps both runs; otherwise nothing stays.
        sabotage: Change one bit of one weight on the way, and tell nobody: the drill must notice, and exit with 3.
        json: One JSON document instead of a table.
    """
    found = gf.drill(
        what, task=task, kills=kills, minutes=minutes, ranks=ranks, seed=seed, keep=keep,
        sabotage=sabotage, overrides=overrides.dotted(), progress=note,
    )  # fmt: skip
    if json:
        document(found.document(), "drill")
    else:
        table([{**row, "identical": _WORDS[row["identical"]]} for row in found.rows()])
        heading("Undisturbed and disturbed, compared")
        table([{**same.row(), "identical": _WORDS[same.identical]} for same in found.comparison])
        print(found.summary())
    return 0 if found.passed else ANSWER_IS_NO
