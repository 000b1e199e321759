"""How good are forecasts? The largest runs of published studies, forecast from the smaller ones.

    python benchmarks/forecast.py DATA [--out docs/scale-accuracy.md]     DATA: a folder with the studies' tables

At each cut the runs with at most a 4th, 8th, ... 512th of the largest compute are fitted, and those within 1.6 of the
largest (12 at most) are forecast. Cuts that leave fewer than 8 runs, 4 sizes or 0.8 decades are not made. Each cut is
made twice: with all its runs, and as a small ladder of 12 of them, drawn with a fixed seed. A mean over studies counts
every study once (the three phases of Gemstones are one), its whole cuts as much as its small ladders.

For "chosen on the others", the settings of scale/forecast_law.py are varied one at a time; for each study, those with
the lowest pinball loss on the other studies are taken. Takes some minutes; --quick leaves that out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import section
from scipy.stats import spearmanr

from glassformer.scale.fit import fit
from glassformer.scale.forecast import LEVELS, Forecaster
from glassformer.scale.forecast_law import SETTINGS, Settings
from glassformer.scale.honesty import best_of
from glassformer.scale.points import Points, read_points

RATIOS = (4, 8, 16, 32, 64, 128, 256, 512)
SMALL = 12
_MOST = 12
"""Runs forecast at a cut; they are much alike."""

VARIANTS: dict[str, Settings] = {
    "as they are": SETTINGS,
    "exponents +- 0.05": replace(SETTINGS, exponent=(0.33, 0.05)),
    "exponents +- 0.12": replace(SETTINGS, exponent=(0.33, 0.12)),
    "p near 1: the lacks add up": replace(SETTINGS, norm=(0.0, 0.05)),
    "floor 0.6 of the lowest": replace(SETTINGS, share=(0.6, 0.15)),
    "floor 0.7 of the lowest": replace(SETTINGS, share=(0.7, 0.15)),
    "every run counts the same": replace(SETTINGS, recent=0.0),
    "noise alike above and below": replace(SETTINGS, skew=1.0),
    "no drift": replace(SETTINGS, drift=0.0),
}


@dataclass(frozen=True)
class Split:
    """Runs to fit and runs to forecast."""

    study: str
    small: bool
    below: Points
    above: Points

    @property
    def family(self) -> str:
        return self.study.split(",")[0]

    @property
    def beyond(self) -> float:
        return float(self.above.C.max() / self.below.C.max())


@dataclass(frozen=True)
class Score:
    """Means over the runs that are forecast."""

    split: Split
    plain: float
    error: float
    width: float
    pinball: float
    held: tuple[float, ...]
    """Share of truths in the interval at each level."""
    tested: float
    """Median (error / what was said)^2 of the forecaster's own backtest; not a number where it could not be made."""
    came: float
    """The same of this forecast, before the backtest widens it."""

    def row(self) -> list[str]:
        held = [f"{share:.0%}" for share in self.held]
        split = self.split
        return [
            split.study, f"{split.beyond:.0f}x", str(len(split.below)), f"{self.plain:.1%}", f"{self.error:.1%}",
            f"{self.width:.1%}", *held,
        ]  # fmt: skip


def studies(folder: Path) -> Iterator[tuple[str, Points]]:
    nats = "nats per token"

    def read(name: str, **more: dict[str, str]) -> Points:
        return replace(read_points(folder / name, **more), unit=nats)

    yield "Chinchilla", read("chinchilla_epoch_245.csv", where={"used_in_published_fit": "1"})
    for phase in ("hot", "cool_end", "lr_half_hot"):
        yield f"Gemstones, {phase}", read("gemstones_checkpoints.csv", where={"phase": phase})
    yield "Misfitting", best_of(read("misfitting_final_261.csv", columns={"C": "C_6ND"}))
    # a single step's loss, the least of a hundred, is luck: the smoothed one
    yield "Step Law", best_of(read("steplaw_dense_lr_bs.csv", columns={"loss": "loss_smooth"}))
    once = read("datablations_c4.csv", where={"variant": "plain"})
    assert once.U is not None
    yield "Datablations, one epoch", best_of(once.where(once.D / once.U < 1.01))
    curves = read(
        "routing_dense_curves.csv", columns={"D": "step", "C": "flops_per_step", "run": "model_size_label"}
    )
    tokens = curves.D * 1024 * 1024
    curves = replace(curves, D=tokens, C=6 * curves.N * tokens)
    yield "Routing, dense curves", curves.where(tokens > 2e10)
    llama = read_points(folder / "llama3_isoflop_133.csv")
    yield "Llama 3", replace(llama, C=6 * llama.N * llama.D)


def splits(name: str, points: Points) -> Iterator[Split]:
    share = points.C / points.C.max()
    above = points.where(share >= 1 / 1.6)
    above = above.where(np.arange(len(above)) < _MOST)
    before = len(points)
    for ratio in RATIOS:
        below = points.where(share <= 1.0001 / ratio)
        if len(below) == before:
            continue
        before = len(below)
        for small in (False, True):
            if small and len(below) <= SMALL:
                continue
            drawn = np.random.default_rng(ratio).permutation(len(below))
            part = below.where(np.isin(np.arange(len(below)), drawn[:SMALL])) if small else below
            decades = np.log10(part.C.max() / part.C.min()) if len(part) else 0.0
            if len(part) >= 8 and len(np.unique(part.N)) >= 4 and decades >= 0.8:
                yield Split(name, small, part, above)


def plain_error(split: Split) -> float:
    above = split.above
    off = fit(split.below, bootstrap=0).log_loss(above.N, above.D)[0] - np.log(above.loss)
    return float(np.mean(np.minimum(1.0, np.abs(np.expm1(off)))))


def scores_of(split: Split, variants: Mapping[str, Settings]) -> list[Score]:
    """Of the forecast as it is, and of each variant without the backtest's widening."""
    plain = plain_error(split)
    made = [
        Forecaster.untested(split.below, settings=settings, bootstrap=200) for settings in variants.values()
    ]
    return [score(split, plain, forecaster) for forecaster in (Forecaster.of(split.below), *made)]


def score(split: Split, plain: float, forecaster: Forecaster) -> Score:
    above = split.above
    held, errors, widths, pinball = [], [], [], []
    for n, d, loss in zip(above.N, above.D, above.loss, strict=True):
        told = forecaster.forecast(N=float(n), D=float(d))
        low, high = told.intervals[0.9]
        errors.append(abs(told.loss / loss - 1))
        widths.append((high - low) / told.loss)
        held.append([a <= loss <= b for a, b in told.intervals.values()])
        pinball.append(_pinball(told.loss, told.intervals, float(loss)))
    tested = [(cut.error / cut.expected) ** 2 for cut in forecaster.tested.cuts]
    off = forecaster.law.log_loss(above.N, above.D)[0] - np.log(above.loss)
    said = forecaster.sd(above.N, above.D) / forecaster.widened
    return Score(
        split, plain, float(np.mean(errors)), float(np.mean(widths)), float(np.mean(pinball)),
        tuple(float(share) for share in np.mean(held, axis=0)), float(np.median(tested)) if tested else np.nan,
        float(np.median((off / said) ** 2)),
    )  # fmt: skip


def _pinball(middle: float, intervals: Mapping[float, tuple[float, float]], loss: float) -> float:
    """Mean over the quantiles that the intervals name, as a share of the loss."""
    quantiles = {0.5: middle}
    for level, (low, high) in intervals.items():
        quantiles |= {0.5 - level / 2: low, 0.5 + level / 2: high}
    return float(np.mean([max(q * (loss - at), (q - 1) * (loss - at)) for q, at in quantiles.items()]) / loss)


def by_study(scores: Sequence[Score]) -> dict[str, np.ndarray]:
    """Study -> means of (plain, error, width, pinball, held ...), whole cuts as much as small ladders."""
    found = {}
    for family in dict.fromkeys(one.split.family for one in scores):
        kinds = [
            [one for one in scores if one.split.family == family and one.split.small is s]
            for s in (False, True)
        ]
        rows = [
            np.mean([[one.plain, one.error, one.width, one.pinball, *one.held] for one in kind], axis=0)
            for kind in kinds if kind
        ]  # fmt: skip
        found[family] = np.mean(rows, axis=0)
    return found


def page(scores: Sequence[Score], variants: dict[str, dict[str, np.ndarray]]) -> list[str]:
    names = [f"{level:.0%}" for level in LEVELS]
    means = by_study(scores)
    overall = np.mean(list(means.values()), axis=0)
    head = ["study", "plain recipe", "forecast", "width of 90 %", *(f"{name} holds" for name in names)]

    def told(name: str, mean: np.ndarray) -> list[str]:
        return [name, *(f"{mean[k]:.1%}" for k in (0, 1, 2)), *(f"{share:.0%}" for share in mean[4:])]

    lines = [
        f"{len(scores)} splits of {len(means)} studies, {min(s.split.beyond for s in scores):.0f}x to "
        f"{max(s.split.beyond for s in scores):.0f}x the largest compute fitted. \"Plain recipe\" is `chinchilla` with "
        "Huber's loss (delta 1e-3); errors are means of |forecast / loss - 1|, and count as 100 % at most.", "",
        *section.table(head, [*(told(*one) for one in means.items()), told("**mean of studies**", overall)]), "",
    ]  # fmt: skip
    both = np.array([[one.tested, one.came] for one in scores if not np.isnan(one.tested)])
    lines += [
        "Does the tool's own backtest tell how far off a forecast will be? The rank correlation of (error / what was "
        f"said)^2 in both is {spearmanr(*both.T).statistic:.2f}, over the {len(both)} splits that have a backtest.", "",
    ]  # fmt: skip
    if variants:
        rows, chosen = [], []
        for left in means:
            least = min(
                variants, key=lambda name: np.mean([m[3] for f, m in variants[name].items() if f != left])
            )
            chosen.append(variants[least][left])
            rows.append([left, least, f"{chosen[-1][1]:.1%}", f"{chosen[-1][2]:.1%}", f"{chosen[-1][6]:.0%}"])
        mean = np.mean(chosen, axis=0)
        rows.append(["**mean of studies**", "", f"{mean[1]:.1%}", f"{mean[2]:.1%}", f"{mean[6]:.0%}"])
        lines += [
            "### Settings chosen on the other studies", "",
            "For each study the settings with the lowest pinball loss on all others, and how they did on it, without "
            "what its backtest widens.", "",
            *section.table(["study", "settings", "error", "width of 90 %", "90% holds"], rows), "",
            "What each is worth, one changed at a time (means of studies, without the backtest's widening):", "",
            *section.table(
                ["settings", "error", "width of 90 %", *(f"{name} holds" for name in names), "pinball"],
                [
                    [name, f"{m[1]:.2%}", f"{m[2]:.1%}", *(f"{x:.0%}" for x in m[4:]), f"{1e4 * m[3]:.1f}e-4"]
                    for name, each in variants.items() for m in (np.mean(list(each.values()), axis=0),)
                ],
            ), "",
        ]  # fmt: skip
    head = ["study", "beyond", "runs", "plain recipe", "forecast", "width of 90 %", *names]
    for small, title in (
        (False, "Every split, with all its runs"),
        (True, f"Every split, as a ladder of {SMALL} runs"),
    ):
        rows = [one.row() for one in scores if one.split.small is small]
        lines += [f"### {title}", "", *section.table(head, rows), ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    cases = [split for name, points in studies(given.data) for split in splits(name, points)]
    varied = {} if given.quick else VARIANTS
    with ProcessPoolExecutor(given.processes) as pool:
        scores, *others = zip(*pool.map(partial(scores_of, variants=varied), cases), strict=True)
    lines = page(scores, {name: by_study(each) for name, each in zip(varied, others, strict=True)})
    if given.out is None:
        print("\n".join(lines))
    else:
        section.write(given.out, "Forecasts of larger runs", lines)


if __name__ == "__main__":
    main()
