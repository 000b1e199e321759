"""The same law by others: Hoffmann's 240 points, Huber's loss (delta 1e-3, summed) on log loss, the same objective.

    python -m venv OTHER && OTHER/bin/pip install chinchilla==0.2.0
    python benchmarks/fit_speed.py DATA [--other OTHER/bin/python] [--repeats 3] [--out docs/scale-accuracy.md]

    ours         12 starts, all at once
    scipy        L-BFGS-B with its exact gradient from the 4,500 starts of Hoffmann et al. 2022, objective / delta^2
    chinchilla   that package (BFGS in 80 bits, numerical gradient), from 3^5 = 243 starts

One repeat runs all of them, one after the other; told is the median of the repeats' processor seconds, of child
processes too: other programs on the machine do not count. Without --other the package is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import section
from scipy.optimize import minimize

from glassformer.scale.fit import fit
from glassformer.scale.laws import Array
from glassformer.scale.points import Points, read_points

DELTA = 1e-3
_GRID = {"e": (-1, -0.5, 0, 0.5, 1), "a": range(0, 26, 5), "b": range(0, 26, 5), "alpha": (0, 0.5, 1, 1.5, 2),
         "beta": (0, 0.5, 1, 1.5, 2)}  # fmt: skip
_OTHER = """
import json, sys, tempfile, resource, numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
rows = json.load(open(sys.argv[1]))
grid = dict(e=np.linspace(0, 1, 3), a=np.linspace(2, 12, 3), b=np.linspace(2, 12, 3), alpha=np.linspace(.2, .6, 3),
            beta=np.linspace(.2, .6, 3))
fitter = Chinchilla(tempfile.mkdtemp(), grid, loss_fn=lambda y, f: 1e6 * log_huber(y, f, 1e-3), log_level=50)
for n, d, loss in rows:
    fitter.append(N=n, D=d, loss=loss)
fitter.visualizer.optim = lambda *a, **k: None  # it is the fit that is timed, not its picture
whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
used = lambda: sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, whose))
began = used()
fitter.fit()
print(json.dumps([used() - began, *map(float, (fitter.E, fitter.A, fitter.B, fitter.alpha, fitter.beta))]))
"""


def objective(theta: Array, n: Array, d: Array, y: Array) -> tuple[float, Array]:
    """(sum of Huber's loss, its gradient) at theta = (e, a, b, alpha, beta)."""
    e, a, b, alpha, beta = theta
    terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    shares /= total
    r = top + np.log(total) - y
    psi = np.clip(r, -DELTA, DELTA)
    slopes = np.stack([shares[0], shares[1], shares[2], -shares[1] * n, -shares[2] * d])
    size = np.abs(r)
    return float(np.where(size < DELTA, r * r / 2, DELTA * (size - DELTA / 2)).sum()), slopes @ psi


def ours(points: Points) -> tuple[float, float]:
    began = time.process_time()
    law = fit(points, bootstrap=0)
    return time.process_time() - began, law.objective


def by_scipy(points: Points) -> tuple[float, float]:
    n, d, y = np.log(points.N), np.log(points.D), np.log(points.loss)

    def scaled(theta: Array) -> tuple[float, Array]:
        value, slope = objective(theta, n, d, y)
        return value / DELTA**2, slope / DELTA**2

    starts = [
        np.array(s, float) for s in itertools.product(*(_GRID[k] for k in ("e", "a", "b", "alpha", "beta")))
    ]
    began = time.process_time()
    with np.errstate(all="ignore"):
        lowest = min(minimize(scaled, start, jac=True, method="L-BFGS-B").fun for start in starts)
    return time.process_time() - began, lowest * DELTA**2


def by_chinchilla(points: Points, python: str) -> tuple[float, float]:
    n, d, y = np.log(points.N), np.log(points.D), np.log(points.loss)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        rows.write_text(
            json.dumps(np.stack([points.N, points.D, points.loss], axis=1).tolist()), encoding="utf-8"
        )
        done = subprocess.run([python, "-c", _OTHER, str(rows)], capture_output=True, text=True, check=True)
    seconds, e, a, b, alpha, beta = json.loads(done.stdout.strip().splitlines()[-1])
    theta = np.array([np.log(e), np.log(a), np.log(b), alpha, beta])
    return seconds, objective(theta, n, d, y)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--other")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    points = read_points(given.data / "chinchilla_epoch_245.csv", where={"used_in_published_fit": "1"})
    others: dict[str, Callable[[], tuple[float, float]]] = {
        "glassformer, 12 starts": lambda: ours(points),
        "scipy L-BFGS-B, 4,500 starts": lambda: by_scipy(points),
    }
    if given.other:
        others["chinchilla 0.2.0, 243 starts"] = lambda: by_chinchilla(points, given.other)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for _ in range(given.repeats):
        for name, run in others.items():
            runs[name].append(run())
    medians = {name: np.median(np.array(each), axis=0) for name, each in runs.items()}
    first = next(iter(medians.values()))[0]
    rows = [
        [name, f"{seconds:.3g} s", f"{seconds / first:.0f}x", f"{reached:.10f}"]
        for name, (seconds, reached) in medians.items()
    ]
    lines: list[Any] = [
        f"Hoffmann's 240 points, one objective, medians of {given.repeats} paired repeats in processor seconds. The "
        "lowest objective known is 0.00101827402.", "",
        *section.table(["fitted by", "time", "of ours", "objective reached"], rows),
    ]  # fmt: skip
    if given.out is None:
        print("\n".join(lines))
    else:
        section.write(given.out, "Speed", lines)


if __name__ == "__main__":
    main()
