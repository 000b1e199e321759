"""How good are forecasts? The largest runs of published studies, forecast from the smaller ones.

    python benchmarks/forecast.py DATA      DATA: a folder with the studies' tables (see docs/scale.md)

At each cut the runs with at most a 4th, 8th, ... 256th of the largest compute are fitted, and those within 1.6 of the
largest are forecast. Each cut counts once. Cuts that leave fewer than 8 runs, 4 sizes or 0.8 decades are not made.
Takes some minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glassformer.scale.fit import fit
from glassformer.scale.forecast import LEVELS, Forecaster
from glassformer.scale.honesty import best_of
from glassformer.scale.points import Points, read_points

RATIOS = (4, 8, 16, 32, 64, 128, 256)
_MOST = 12
"""Runs forecast at a cut; they are much alike."""


def studies(folder: Path) -> Iterator[tuple[str, Points]]:
    yield "chinchilla", read_points(folder / "chinchilla_epoch_245.csv", where={"used_in_published_fit": "1"})
    for phase in ("hot", "cool_end", "lr_half_hot"):
        yield f"gemstones {phase}", read_points(folder / "gemstones_checkpoints.csv", where={"phase": phase})
    yield "misfitting", best_of(read_points(folder / "misfitting_final_261.csv", columns={"C": "C_6ND"}))
    yield "step law", best_of(read_points(folder / "steplaw_dense_lr_bs.csv"))
    once = read_points(folder / "datablations_c4.csv")
    assert once.U is not None
    yield "datablations", once.where(once.D / once.U < 1.01)


def cuts(points: Points) -> Iterator[tuple[Points, Points]]:
    """(the runs that are fitted, those that are forecast)."""
    share = points.C / points.C.max()
    for ratio in RATIOS:
        below = points.where(share <= 1.0001 / ratio)
        if len(below) < 8 or len(np.unique(below.N)) < 4:
            continue
        if np.log10(below.C.max() / below.C.min()) >= 0.8:
            yield below, points.where(share >= 1 / 1.6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    rows = []
    for name, points in studies(parser.parse_args().data):
        for below, above in cuts(points):
            plain, made = fit(below, bootstrap=0), Forecaster.of(below, bootstrap=100)
            held, errors, plain_errors, widths = [], [], [], []
            for n, d, loss in list(zip(above.N, above.D, above.loss, strict=True))[:_MOST]:
                told = made.forecast(N=float(n), D=float(d))
                errors.append(abs(told.loss / loss - 1))
                plain_errors.append(abs(plain.loss(float(n), float(d)) / loss - 1))
                held.append([low <= loss <= high for low, high in told.intervals.values()])
                low, high = told.intervals[0.9]
                widths.append((high - low) / told.loss)
            rows.append([np.mean(plain_errors), np.mean(errors), np.mean(widths), *np.mean(held, axis=0)])
            print(
                f"{name:24} {len(below):4} fitted  plain {rows[-1][0]:.1%}  forecast {rows[-1][1]:.1%}",
                flush=True,
            )
    mean = np.mean(rows, axis=0)
    print(
        f"{len(rows)} cuts: plain law {mean[0]:.1%} off, forecast {mean[1]:.1%}, 90 % interval {mean[2]:.0%} wide"
    )
    for level, share in zip(LEVELS, mean[3:], strict=True):
        print(f"{level:.0%} interval holds {share:.0%}")


if __name__ == "__main__":
    main()
