"""The floor of a forecast: small models' losses are far above it, and bytes tell how low it can be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from glassformer.scale.forecast import Forecaster
from glassformer.scale.forecast_law import FLOOR, SETTINGS, prior_of
from glassformer.scale.points import Points

E, BYTES_PER_TOKEN = 0.8, 2.1


def ladder(scale: float) -> Points:
    """Ten runs of a known law, the smallest with `scale` parameters."""
    n = scale * np.array([1.0, 1.0, 1.5, 2.2, 2.2, 3.3, 4.8, 4.8, 7.0, 10.0])
    d = n * np.array([10, 40, 20, 10, 40, 20, 10, 40, 20, 20])
    noise = np.exp(np.random.default_rng(3).normal(0, 0.002, len(n)))
    return Points.of(n, d, law(n, d) * noise, unit="nats per token")


def law(n: float | np.ndarray, d: float | np.ndarray) -> np.ndarray:
    return E + 30 * np.asarray(n) ** -0.33 + 60 * np.asarray(d) ** -0.33


def test_where_bytes_are_counted_tiny_models_do_not_raise_the_floor() -> None:
    blind = ladder(2e4)
    told = replace(blind, bytes_per_token=BYTES_PER_TOKEN)
    n, d = 1.5e6, 3e7
    errors = [
        abs(Forecaster.of(points).forecast(N=n, D=d).loss / float(law(n, d)) - 1) for points in (told, blind)
    ]
    assert errors[0] < 0.03 < errors[1]


def test_where_losses_are_near_the_floor_bytes_are_weighed_with_them() -> None:
    near = replace(ladder(2e8), bytes_per_token=BYTES_PER_TOKEN)
    usual = FLOOR["bits per byte"] * math.log(2) * BYTES_PER_TOKEN
    share = SETTINGS.share[0] * near.loss.min()
    assert min(usual, share) < math.exp(prior_of(near).mean[0]) < max(usual, share)
