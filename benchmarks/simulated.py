"""Known laws: does a fit find them, are its intervals right, and how long does all of it take?

    python benchmarks/simulated.py [--ladders 200] [--out docs/scale-accuracy.md]

Ladders of 5 budgets, 4 apart from 1e18 FLOPs, 9 sizes each; 0.3 % of noise, and one run of fifty 5 % too high. Each is
of another law: alpha and beta from 0.28 to 0.42, E from 1.5 to 2. Takes some two minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import section

from glassformer.scale.fit import fit
from glassformer.scale.forecast import Forecaster
from glassformer.scale.laws import Array
from glassformer.scale.points import Points

NAMES = ("E", "A", "B", "alpha", "beta")


def law(seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 0])
    alpha, beta = rng.uniform(0.28, 0.42, 2)
    # the lacks of size and of text at 1e9 parameters and 2e10 tokens: 0.2 to 0.5 nats each
    size, text = rng.uniform(0.2, 0.5, 2)
    return {
        "E": rng.uniform(1.5, 2.0),
        "A": size * 1e9**alpha,
        "B": text * 2e10**beta,
        "alpha": alpha,
        "beta": beta,
    }


def ladder(seed: int, noise: float = 0.003, outliers: float = 0.02) -> Points:
    truth, rng = law(seed), np.random.default_rng([seed, 1])
    C = np.repeat(1e18 * 4.0 ** np.arange(5), 9)  # noqa: N806 # the field's symbols
    N = best_size(truth, C) * np.tile(8.0 ** np.linspace(-1, 1, 9), 5)  # noqa: N806
    D = C / (6 * N)  # noqa: N806
    loss = truth["E"] + truth["A"] / N ** truth["alpha"] + truth["B"] / D ** truth["beta"]
    off = noise * rng.standard_normal(len(N)) + (np.log(1.05) if outliers else 0.0) * (
        rng.random(len(N)) < outliers
    )
    return Points.of(N, D, loss * np.exp(off), unit="nats per token")


def best_size(truth: dict[str, float], C: Array) -> Array:  # noqa: N803
    alpha, beta = truth["alpha"], truth["beta"]
    g = (alpha * truth["A"] / (beta * truth["B"])) ** (1 / (alpha + beta))
    N: Array = g * (C / 6) ** (beta / (alpha + beta))  # noqa: N806
    return N


def recovered(ladders: int, bootstrap: int = 1000) -> Iterator[tuple[float, bool, int]]:
    """(error of a, whether its 90 % interval holds the truth, replicates that failed) of each ladder."""
    for seed in range(ladders):
        truth = law(seed)
        a = truth["beta"] / (truth["alpha"] + truth["beta"])
        found = fit(ladder(seed), bootstrap=bootstrap)
        low, high = found.interval("a", 0.9)
        yield abs(found.values["a"] - a), low <= a <= high, bootstrap - found.converged


def exact(ladders: int) -> float:
    """The largest relative error of any number without noise."""
    return max(
        abs(fit(ladder(seed, 0.0, 0.0), bootstrap=0).values[name] / law(seed)[name] - 1)
        for seed in range(ladders) for name in NAMES
    )  # fmt: skip


def report_seconds(runs: int, checkpoints: int = 1) -> float:
    """Processor seconds of a whole report: fit, 1,000 replicates, backtest, forecast, doubts."""
    truth, rng = law(0), np.random.default_rng(0)
    C = np.repeat(np.geomspace(1e18, 1e21, runs), checkpoints)  # noqa: N806
    D = np.sqrt(C / 6 * 20) * np.repeat(np.exp(rng.uniform(-1, 1, runs)), checkpoints)  # noqa: N806
    N = np.round(C / (6 * D))  # noqa: N806
    D = D * np.tile(np.linspace(1 / checkpoints, 1, checkpoints), runs)  # noqa: N806
    loss = truth["E"] + truth["A"] / N ** truth["alpha"] + truth["B"] / D ** truth["beta"]
    loss = loss * np.exp(0.003 * rng.standard_normal(len(N)))
    names = [str(run) for run in np.repeat(np.arange(runs), checkpoints)]
    points = Points.of(N, D, loss, runs=names, unit="nats per token")
    began = time.process_time()
    assert fit(points, bootstrap=1000).doubts is not None
    forecaster = Forecaster.of(points)
    forecaster.to_dict(forecaster.forecast(flops=1e23), 0.01)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ladders", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    off, held, failed = (np.array(column) for column in zip(*recovered(given.ladders), strict=True))
    rows = [
        ["median error of a", f"{np.median(off):.4f}", "0.01"],
        ["90 % interval of a holds the truth", f"{held.mean():.1%}", "86 to 94 %"],
        ["ladders whose fit failed", str(int((~np.isfinite(off)).sum())), "0"],
        ["replicates that did not converge", f"{failed.sum()} of {given.ladders * 1000}", ""],
        ["largest relative error of a number, without noise", f"{exact(20):.1e}", "1e-6"],
        ["a report on 250 runs", f"{report_seconds(250):.1f} s", "5 s"],
        ["a report on 5,000 checkpoints of 250 runs", f"{report_seconds(250, 20):.1f} s", "60 s"],
    ]
    lines = [
        f"{given.ladders} simulated ladders, each of another law, 5 budgets of 9 runs, noise 0.3 %, every fiftieth run "
        "5 % too high. A report is the fit, 1,000 replicates of the bootstrap, the backtest, a forecast and the "
        "warnings; in seconds of one core.", "",
        *section.table(["", "measured", "aim"], rows),
    ]  # fmt: skip
    if given.out is None:
        print("\n".join(lines))
    else:
        section.write(given.out, "Known laws", lines)


if __name__ == "__main__":
    main()
