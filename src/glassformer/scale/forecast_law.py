"""The law behind a forecast: `coupled`, fitted so that it holds for runs larger than its own.

A fit that describes its runs best is not the one that forecasts best. Six things differ from `fit`, and
docs/scale-accuracy.md has what each is worth:

    form        `coupled`: how the lacks of size and of text add up is fitted (p), not taken for granted
    priors      normal ones (`Settings`) on exponents, p, the floor and the lacks: where runs end they trade places
                freely, and a forecast far beyond hangs on what ends that trade
    weights     a run counts sqrt(C / largest C): no law holds over all sizes, and the forecast is of large ones
    sizes       m runs of one size count as sqrt(m): with one shape and one set of rates they err together
    noise       Student's with 4 degrees of freedom, twice as wide above the law and half as wide below it: a run can be
                tuned badly, but not better than well
    its width   by expectation and maximisation, with 4 runs' worth of 0.5 %, so that few runs do not claim perfection

What the fit leaves open is Laplace's approximation: normal around the best fit, with the curvature of the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from glassformer.scale.fit import FEWEST, Law, fit, with_allocation
from glassformer.scale.laws import FORMS, Array, centred
from glassformer.scale.points import Points
from glassformer.scale.solve import Prior, Solved, Student, solve


@dataclass(frozen=True)
class Settings:
    """What is taken for granted; chosen on published studies (docs/scale-accuracy.md says how little hangs on each)."""

    exponent: tuple[float, float] = (0.33, 0.08)
    """Mean and standard deviation of the prior on alpha and on beta."""
    norm: tuple[float, float] = (0.5, 0.3)
    """Of log p."""
    share: tuple[float, float] = (0.65, 0.15)
    """The floor as a share of the lowest loss, and the standard deviation of its logarithm."""
    floor_sd: float = 0.15
    """Of log E about `FLOOR`, where the unit is known."""
    part: tuple[float, float] = (0.2, 1.0)
    """What size, and what text, add at the runs' geometric mean, as a share of the lowest loss; of its logarithm."""
    recent: float = 0.5
    """The power of C with which a run counts."""
    skew: float = 2.0
    degrees: float = 4.0
    """Of freedom, of the noise."""
    noise: float = 0.005
    noise_runs: float = 4.0
    """The prior on the noise's width: so many runs' worth of so much."""
    drift: float = 0.002
    """Error of log loss for each e-fold of compute beyond the runs."""


SETTINGS = Settings()
FLOOR = {"nats per token": 1.75, "bits per byte": 0.58}
"""Of mixed text: Hoffmann 1.69, Besiroglu 1.82, Muennighoff 1.87, Gemstones 1.95 nats per token of 32k to 50k words;
in bits per byte the same at 4.35 bytes a token, and so where a run's own tokens are counted in bytes. Not used where a
loss lies below it: that is other text."""
_ROUNDS, _SETTLED = 8, 0.01


def forecast_law(
    points: Points, *, settings: Settings = SETTINGS, draws: int = 1000, seed: int = 0
) -> tuple[Law, float]:
    """(the law `coupled` of these points, with `draws` of what they leave open; the noise of one run's log loss).

    Raises UsageError for points that hold no law of N and D.
    """
    if len(points) < FEWEST or not (np.ptp(points.N) and np.ptp(points.D)):
        fit(points, bootstrap=0)  # refuses, and says what is missing
    kind = FORMS["coupled"]
    logs, centres = centred({"N": points.N, "D": points.D, "C": points.C})
    y, weights, prior = np.log(points.loss), weights_of(points, settings), prior_of(points, settings)

    def solved(starts: Array, noise: Student) -> Solved:
        each = np.repeat(weights[None], len(starts), axis=0)
        return solve(kind, logs, y, starts, noise=noise, prior=prior, weights=each, tolerance=1e-9)

    noise = Student(settings.noise, settings.degrees, settings.skew)
    first = solved(kind.starts(logs, y), noise)
    theta, lowest = first.theta[np.argmin(first.objective)], float(first.objective.min())
    for _ in range(_ROUNDS):
        before = noise.scale
        noise = replace(
            noise, scale=_width(kind.log_loss(theta[None], logs)[0][0] - y, weights, noise, settings)
        )
        again = solved(theta[None], noise)
        theta = again.theta[0]
        if abs(np.log(noise.scale / before)) < _SETTLED:
            break
    fitted, slopes = kind.log_loss(theta[None], logs)
    information = (slopes[0] * (weights * _information(fitted[0] - y, noise))) @ slopes[0].T
    covariance = np.linalg.inv(information + np.diag(prior.precision))
    normal = np.random.default_rng(seed).standard_normal((draws, len(theta)))
    drawn = theta + normal @ np.linalg.cholesky(covariance).T
    values = with_allocation(kind.values(theta[None], centres))
    agreed = int((first.objective <= lowest + 1e-6 * abs(lowest)).sum())
    law = Law(
        "coupled", {name: float(value[0]) for name, value in values.items()}, float(again.objective[0]),
        len(first.theta), agreed, theta, centres, drawn, draws, draws, points, y - fitted[0], noise, prior,
    )  # fmt: skip
    return law, noise.scale


def weights_of(points: Points, settings: Settings = SETTINGS) -> Array:
    """How much each point counts."""
    _, index, count = np.unique(points.N, return_inverse=True, return_counts=True)
    weights: Array = (points.C / points.C.max()) ** settings.recent / np.sqrt(count[index])
    return weights


def prior_of(points: Points, settings: Settings = SETTINGS) -> Prior:
    """On theta of `coupled`."""
    share, sd = settings.share
    lowest = float(points.loss.min())
    floor, precision = np.log(share * lowest), sd**-2
    usual = FLOOR.get(points.unit or "", np.inf)
    if points.unit == "nats per token" and points.bytes_per_token is not None:
        usual = FLOOR["bits per byte"] * np.log(2) * points.bytes_per_token
    if usual < lowest:
        more = settings.floor_sd**-2
        floor, precision = (floor * precision + np.log(usual) * more) / (precision + more), precision + more
    part, part_sd = np.log(settings.part[0] * lowest), settings.part[1]
    (exponent, its_sd), (norm, norm_sd) = settings.exponent, settings.norm
    mean = np.array([floor, part, exponent, part, exponent, norm])
    return Prior(mean, np.array([precision**-0.5, part_sd, its_sd, part_sd, its_sd, norm_sd]))


def _width(residual: Array, weights: Array, noise: Student, settings: Settings) -> float:
    """One step of expectation and maximisation for the scale of Student's noise."""
    unit = residual / (noise.unit(residual) / noise.scale)
    share = (noise.nu + 1) / (noise.nu + (unit / noise.scale) ** 2)
    total = settings.noise_runs * settings.noise**2 + float((weights * share * unit**2).sum())
    return float(np.sqrt(total / (settings.noise_runs + float(weights.sum()))))


def _information(residual: Array, noise: Student) -> Array:
    """Fisher's, of each point on its side."""
    information: Array = (noise.nu + 1) / (noise.nu + 3) / noise.unit(residual) ** 2
    return information
