"""What a ladder came to: its rungs, the law through them, and the forecast of the one held back against its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import RunError
from glassformer.run.folder import Run
from glassformer.scale.design import Design
from glassformer.scale.forecast import Forecast, Forecaster
from glassformer.scale.from_runs import scale_points
from glassformer.units import show_seconds

if TYPE_CHECKING:
    from glassformer.scale.held_out import Noise

_FEWEST = 4
_USES_CONTEXT = 0.05
"""A gain from the context above this share of the loss is taken for copying from further back."""


@dataclass(frozen=True)
class Ladder:
    """A finished ladder."""

    design: Design
    losses: Mapping[str, float]
    """Of each rung that can be used, in nats per token."""
    rates: Mapping[str, float]
    """Learning rates they were trained with."""
    factor: float
    """Of the rule's learning rate."""
    tried: Mapping[str, Mapping[float, float]]
    """Rung -> factor -> loss."""
    failed: Mapping[str, str]
    noise: Noise | None
    forecast: Forecast
    """Of the held-back rung, from all others."""
    seconds: float
    folder: Path
    forecaster: Forecaster = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def truth(self) -> float | None:
        """The held-back rung's loss."""
        return self.losses.get(self.design.held_back.name)

    @property
    def error(self) -> float | None:
        """The forecast over the truth, less 1."""
        return None if self.truth is None else self.forecast.loss / self.truth - 1

    def inside(self, level: float = 0.9) -> bool | None:
        """Whether the truth lies in the forecast's interval."""
        if self.truth is None:
            return None
        low, high = self.forecast.intervals[level]
        return low <= self.truth <= high

    def facts(self) -> dict[str, Any]:
        """The answer, one a line."""
        rung, most = (
            self.design.held_back,
            max(r.compute for r in self.design.fitted if r.name in self.losses),
        )
        low, high = self.forecast.intervals[0.9]
        facts: dict[str, Any] = {
            "held back": f"{rung.name}: {rung.compute / most:.3g} x the compute of the largest fitted rung",
            "forecast": f"{self.forecast.loss:.4f} nats per token (90 %: {low:.4f} to {high:.4f})",
        }
        if self.error is not None:
            where = "inside" if self.inside() else "outside"
            facts |= {
                "it came to": f"{self.truth:.4f}",
                "error": f"{self.error:+.2%}, {where} the 90 % interval",
            }
        law, values = self.forecaster.law, self.forecaster.law.values
        facts["law"] = (
            f"L = {values['E']:.3g} + {values['A']:.3g} / N^{values['alpha']:.3g} + {values['B']:.3g} / "
            f"D^{values['beta']:.3g}"
        )
        if self.noise is not None:
            facts["held-out text"] = (
                f"{self.noise.tokens:,} tokens in {self.noise.parts:,} parts leave {self.noise.loss:.2%} open "
                f"in a loss, {self.noise.difference:.2%} in the difference of two"
            )
        facts |= {
            "residuals": f"{max(abs(float(r)) for r in law.residuals):.2%} at most",
            "learning rate": f"{self.factor:g} x the rule's",
            "time": f"{show_seconds(self.seconds)}, predicted {show_seconds(self.design.seconds)}",
        }
        return facts

    def rows(self) -> list[dict[str, Any]]:
        """The rungs with their losses, and what the law says of each."""
        law, rows = self.forecaster.law, []
        for rung in self.design.rungs:
            loss = self.losses.get(rung.name)
            said = float(law.loss(rung.parameters, rung.tokens))
            row = rung.row() | {"rate": self.rates.get(rung.name), "loss": loss, "law": said}
            del row["predicted"]
            rows.append(row | {"off": None if loss is None else f"{said / loss - 1:+.2%}"})
        return rows

    def rate_rows(self) -> list[dict[str, Any]]:
        """What the spot checks came to: a row for each rung, a column for each factor of the rule's rate."""
        return [
            {"rung": name, **{f"{factor:g} x": loss for factor, loss in losses.items()}}
            for name, losses in self.tried.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for a file."""

        def number(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        return {
            "held_back": self.design.held_back.name, "forecast": self.forecast.loss, "intervals": self.forecast.rows(),
            "beyond": dict(self.forecast.beyond), "truth": number(self.truth), "error": self.error,
            "inside": {f"{level:.0%}": self.inside(level) for level in self.forecast.intervals},
            "unit": self.forecast.unit, "rungs": self.rows(), "factor": self.factor,
            "tried": {name: {f"{f:g}": number(y) for f, y in losses.items()} for name, losses in self.tried.items()},
            "failed": dict(self.failed), "noise": None if self.noise is None else asdict(self.noise),
            "law": self.forecaster.law.rows(), "drift": self.forecaster.drift, "run_noise": self.forecaster.noise,
            "doubts": [doubt.row() for doubt in self.forecaster.law.doubts], "warnings": list(self.warnings),
            "seconds": self.seconds, "predicted_seconds": self.design.seconds,
        }  # fmt: skip


def conclude(
    design: Design, usable: Mapping[str, Path], *, factor: float, tried: Mapping[str, Mapping[float, float]],
    failed: Mapping[str, str], noise: Noise | None, folder: Path, seconds: float,
) -> Ladder:  # fmt: skip
    """Fit the rungs that are usable and forecast the one held back. Raises RunError where too few are left."""
    fitted = [usable[rung.name] for rung in design.fitted if rung.name in usable]
    if len(fitted) < _FEWEST:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RunError(
            f"{len(fitted)} of {len(design.fitted)} rungs can be fitted, which are too few. {reasons}",
            do="Mend that; the same command tries the others again.",
        )
    forecaster = Forecaster.of(scale_points(fitted))
    top = design.held_back
    runs = {name: Run.open(path) for name, path in usable.items()}
    return Ladder(
        design, {name: float(run.summary()["val_loss"]) for name, run in runs.items()},
        {name: float(run.recipe["optimizer"]["learning_rate"]) for name, run in runs.items()}, factor, tried, failed,
        noise, forecaster.forecast(N=float(top.parameters), D=float(top.tokens)), seconds, folder, forecaster,
        (*design.warnings, *_warnings(design, factor, tried, failed), *([] if noise is None else _of_context(noise))),
    )  # fmt: skip


def _warnings(
    design: Design, factor: float, tried: Mapping[str, Mapping[float, float]], failed: Mapping[str, str]
) -> list[str]:
    said = [f"{name} is left out: {why}" for name, why in failed.items()]
    for name, losses in tried.items():
        best = min(losses, key=lambda f: losses[f])
        if best in (min(losses), max(losses)):
            said.append(
                f"the best learning rate of {name} is at the edge of those tried, {best:g} times the rule's"
            )
        elif best != factor:
            worse = losses[factor] / losses[best] - 1
            said.append(
                f"{name} would be {worse:.2%} better with {best:g} times the rule's learning rate, not {factor:g}"
            )
    if design.held_back.name in failed:
        said.append("the held-back rung has no loss, so nothing tests the forecast")
    return said


def _of_context(noise: Noise) -> list[str]:
    """Whether a mechanism forms above the rungs that are fitted."""
    gains = list(noise.context_gains.values())
    if gains[1] >= _USES_CONTEXT:
        return []
    said = [
        f"the largest fitted rung makes nothing of the further context ({gains[1]:.1%} of its loss): from where models "
        "learn to copy from there, losses fall below this law, and its interval does not hold; take larger rungs"
    ]
    if len(gains) > 2 and gains[2] >= _USES_CONTEXT:
        said.append(f"the held-back rung does so ({gains[2]:.1%}): it is on another law than the fitted ones")
    return said
