"""What a ladder of small models shows about scale, measured on its runs.

    glassformer scale ladder lab/ladder/python.toml --budget 40m --workers 2
    python lab/ladder/run.py ladders/python [--out lab/ladder]

- Loss falls as a power of compute: (L - E) ~ C^-gamma on the frontier, gamma = alpha beta / (alpha + beta), with its
  interval (bootstrap of the law through all rungs).
- Each tenfold buys less: what ten times the compute takes off the loss, from the smallest rung's compute on.
- A lower loss is a better skill: the share of generated lines of Python that parse, rung by rung, against the loss.

Writes result.json, loss.svg and skill.svg.
"""

from __future__ import annotations

import argparse
import ast
import json
import warnings
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

import glassformer as gf
from glassformer import charts

SAMPLES, LENGTH = 256, 96
"""Texts that each rung writes, and their tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ladder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    state = json.loads((given.ladder / "ladder.json").read_text(encoding="utf-8"))
    names = [rung["rung"] for rung in state["result"]["rungs"] if rung["loss"] is not None]
    runs = [gf.Run.open(path_of(given.ladder, name, state["result"]["factor"])) for name in names]
    law = gf.fit_law(gf.scale_points([run.path for run in runs]))
    rungs = [row(run) for run in runs]
    result = {
        "forecast": {key: state["result"][key] for key in ("held_back", "forecast", "truth", "error", "inside")},
        "power": power(law), "tenfolds": tenfolds(law, rungs), "skill": skill(rungs), "rungs": rungs,
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rungs, given.out)
    print(json.dumps(result, indent=1))


def path_of(ladder: Path, rung: str, factor: float) -> Path:
    """A rung's run; where several learning rates were tried, the one whose factor was taken."""
    plain = ladder / "runs" / rung
    return plain if plain.exists() else ladder / "runs" / f"{rung}-x{factor:g}"


def row(run: gf.Run) -> dict[str, Any]:
    """One rung: its sizes, its loss, and how much of what it writes parses."""
    summary = run.summary()
    lines, whole = parsing(gf.load(run.path))
    return {
        "rung": run.path.name, "N": summary["parameters"], "D": summary["tokens"],
        "C": 6 * summary["parameters"] * summary["tokens"], "loss": summary["val_loss"],
        "lines_that_parse": lines, "texts_that_parse": whole,
    }  # fmt: skip


def parsing(model: gf.Loaded) -> tuple[float, float]:
    """(share of the written lines that are Python, share of texts whose lines together are).

    A line that opens a block is given one. Empty lines, comments and the last line, which is cut, count for nothing.
    """
    good = lines = whole = texts = 0
    written = gf.generate(
        model, ["\n"] * SAMPLES, max_tokens=LENGTH, temperature=1.0, seed=list(range(SAMPLES))
    )
    for text in (one.text for one in written):
        own = [line.strip() for line in text.split("\n")[:-1]]
        own = [line for line in own if line and not line.startswith("#")]
        good += sum(parses(line) or parses(line + " pass") for line in own)
        lines += len(own)
        if own:
            texts += 1
            whole += parses("\n".join(text.split("\n")[:-1]))
    return good / max(1, lines), whole / max(1, texts)


def parses(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd literals, which models like
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def power(law: gf.Law) -> dict[str, Any]:
    """gamma with its 95 % interval, and whether it is above 0."""
    drawn = law.kind.values(law.draws, law.centres)
    gammas = drawn["alpha"] * drawn["beta"] / (drawn["alpha"] + drawn["beta"])
    low, high = np.quantile(gammas, [0.025, 0.975])
    v = law.values
    off = np.abs(law.residuals)
    return {
        "gamma": v["alpha"] * v["beta"] / (v["alpha"] + v["beta"]), "low": float(low), "high": float(high),
        **{name: v[name] for name in ("E", "A", "B", "alpha", "beta")},
        "largest_residual": float(off.max()), "typical_residual": float(np.median(off)),
    }  # fmt: skip


def tenfolds(law: gf.Law, rungs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What each tenfold of compute takes off the best loss, with 80 % intervals."""
    least = min(rung["C"] for rung in rungs)

    def best(values: dict[str, Any], C: float) -> Any:  # noqa: N803 # the field's symbol
        A, B, a, b = (values[name] for name in ("A", "B", "alpha", "beta"))  # noqa: N806
        g = (a * A / (b * B)) ** (1 / (a + b))
        N = g * (C / 6) ** (b / (a + b))  # noqa: N806
        return values["E"] + A / N**a + B / (C / 6 / N) ** b

    drawn = law.kind.values(law.draws, law.centres)
    rows = []
    for step in range(4):
        at, then = least * 10.0**step, least * 10.0 ** (step + 1)
        fall = best(drawn, at) - best(drawn, then)
        low, high = np.quantile(fall, [0.1, 0.9])
        rows.append(
            {
                "from": at, "to": then, "takes_off": float(best(law.values, at) - best(law.values, then)),
                "low": float(low), "high": float(high), "measured": bool(then <= max(r["C"] for r in rungs)),
            }
        )  # fmt: skip
    return rows


def skill(rungs: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlation of loss and lines that parse, and how often chance has one as low."""
    loss = np.argsort(np.argsort([rung["loss"] for rung in rungs])).astype(float)
    good = np.argsort(np.argsort([rung["lines_that_parse"] for rung in rungs])).astype(float)
    found = float(np.corrcoef(loss, good)[0, 1])
    if len(rungs) <= 8:
        orders = np.array(list(permutations(good)))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(good, (100_000, 1)), axis=1)
    centred = orders - good.mean()
    chance = centred @ (loss - loss.mean()) / (len(loss) * loss.std() * good.std())
    return {"rank_correlation": found, "chance": float((chance <= found + 1e-12).mean())}


def draw(rungs: list[dict[str, Any]], folder: Path) -> None:
    shown = [
        {**rung, "compute": float(np.log10(rung["C"])), "percent": 100 * rung["lines_that_parse"]}
        for rung in rungs
    ]
    loss = charts.points(
        shown, "compute", "loss", x_title="log10 of training FLOPs (6 N D)", y_title="loss (nats per token)"
    )
    charts.save(loss, folder / "loss.svg")
    parsed = charts.points(
        shown, "loss", "percent", x_title="loss (nats per token)", y_title="generated lines that parse (%)"
    )
    charts.save(parsed, folder / "skill.svg")


if __name__ == "__main__":
    main()
