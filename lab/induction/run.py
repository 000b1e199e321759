"""Induction heads form in two layers of attention, and not in one: trained, watched and measured here.

    python lab/induction/run.py [--seeds 0 1 2] [--steps 600] [--out lab/induction]

The text is rows of random letters, each written twice: `kQz7...kQz7...`. Nothing tells which letter comes next but
the row's own first half. A row has 8 to 24 letters and windows cut the text anywhere, so that no fixed distance leads
to the copy. The models are attention alone (feedforward 0); everything else is equal but their layers. Every
checkpoint is scored by `gf.heads`. Writes result.json and, for the first seed, loss.svg and heads.svg.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import tempfile
import time
from pathlib import Path
from typing import Any

import glassformer as gf
from glassformer import charts

LETTERS = string.ascii_letters + string.digits
ROWS, SHORTEST, LONGEST = 80_000, 8, 24
SCORES = ("induction", "previous_token", "duplicate_token")
RECIPE: dict[str, Any] = {
    "name": "induction",
    "data": {"paths": ["rows.jsonl"]},
    "tokenizer": {"kind": "characters"},
    "model": {"width": 64, "heads": 4, "feedforward": 0, "context": 64},
    "train": {"batch": 64, "checkpoint_every": 25, "validate_every": 10_000, "sample_tokens": 0},
    "optimizer": {"kind": "muon", "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup": 10},
    "engine": {"precision": "fp32", "compile": "off", "attention": "explicit"},
}
"""A schedule that does not fall, so that what is seen is the model's own doing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    curves: list[dict[str, Any]] = []
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "rows.jsonl")
        for seed in given.seeds:
            for layers in (1, 2):
                begin = time.perf_counter()
                seen = watch(Path(folder), layers, given.steps, seed)
                runs.append(summary(seen) | {"seconds": round(time.perf_counter() - begin, 1)})
                curves += seen
                print(json.dumps(runs[-1]), flush=True)
    result = {"steps": given.steps, "rows": ROWS, "recipe": RECIPE, "runs": runs, "curves": curves}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw([row for row in curves if row["seed"] == given.seeds[0]], given.out)


def write_text(file: Path) -> None:
    """Random rows, each twice."""
    chance = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(ROWS):
            row = "".join(chance.sample(LETTERS, chance.randint(SHORTEST, LONGEST)))
            out.write(json.dumps({"text": row + row}) + "\n")


def watch(folder: Path, layers: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """Train, and score the heads of every checkpoint."""
    run = folder / f"{layers}-{seed}"
    seen: list[dict[str, Any]] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            found = gf.heads(gf.load(run), length=LONGEST)
            best = {score: found.ranked(score, top=1)[0] for score in SCORES}
            seen.append(
                {"seed": seed, "layers": layers, "step": event["step"]}
                | {half: round(getattr(found, half), 4) for half in ("first_half", "second_half")}
                | {score: round(row[score], 4) for score, row in best.items()}
                | {f"{score}_head": row["name"] for score, row in best.items()}
            )

    data = {"paths": [str(folder / "rows.jsonl")]}
    overrides = {"model.layers": layers, "train.steps": steps, "train.seed": seed}
    gf.train(RECIPE | {"data": data}, run=run, overrides=overrides, on_event=look)
    return seen


def summary(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """The last measurement, and the step at which each of the three things had happened."""
    last = seen[-1]

    def first(happened: list[bool]) -> int | None:
        return next((row["step"] for row, yes in zip(seen, happened, strict=True) if yes), None)

    return {
        **last,
        "share": round(last["second_half"] / last["first_half"], 4),
        "highest_induction": max(row["induction"] for row in seen),
        "step_of_previous_token_head": first([row["previous_token"] >= 0.6 for row in seen]),
        "step_of_induction_head": first([row["induction"] >= 0.6 for row in seen]),
        "step_of_quarter_loss": first([row["second_half"] <= 0.25 * row["first_half"] for row in seen]),
    }


def draw(curves: list[dict[str, Any]], out: Path) -> None:
    """The losses on both halves, and the best head of each kind, over the steps."""

    def named(row: dict[str, Any]) -> str:
        return f"{row['layers']} layer{'s' * (row['layers'] > 1)}"

    halves = [
        {"step": row["step"], "loss": row[half], "series": f"{named(row)}, {half.replace('_', ' ')}"}
        for layers in (2, 1)
        for half in ("second_half", "first_half")
        for row in curves
        if row["layers"] == layers
    ]
    best = [
        {"step": row["step"], "score": row[score], "series": f"{named(row)}, {score.replace('_', ' ')}"}
        for layers in (2, 1)
        for score in ("induction", "previous_token")
        for row in curves
        if row["layers"] == layers
    ]
    title = "Loss on random letters, and on the same letters again"
    charts.save(charts.line(halves, "step", "loss", series="series", title=title, from_zero=True,
                            y_title="loss (nats per letter)"), out / "loss.svg")  # fmt: skip
    charts.save(charts.line(best, "step", "score", series="series", title="The best head of each kind",
                            from_zero=True), out / "heads.svg")  # fmt: skip


if __name__ == "__main__":
    main()
