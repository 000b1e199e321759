"""What a drill found: a row for each disturbance, the comparison of both runs, what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from glassformer.train.drill.account import Row
from glassformer.train.drill.compare import Same


@dataclass(frozen=True, slots=True)
class Drill:
    """What a drill found."""

    recipe: str
    ranks: int
    seed: int
    steps: int
    checkpoint_every: int
    engine: str
    kills: int
    """SIGKILLs that were sent, without those before a bit flip."""
    disturbances: tuple[Row, ...]
    comparison: tuple[Same, ...]
    left_out: int
    """Disturbances that the run was over too soon for."""
    whole: bool
    """The disturbed run came to its end, and nothing ended it that was not meant to."""
    undisturbed_seconds: float
    disturbed_seconds: float
    seconds: float
    """Of the whole drill."""

    @property
    def identical(self) -> bool:
        """Whether the disturbed run ended as the undisturbed one did, to the bit."""
        return bool(self.comparison) and all(same.identical for same in self.comparison)

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, in no step on the way either, and all that was to befall the run did."""
        on_the_way = all(row.identical is not False for row in self.disturbances)
        return self.whole and self.identical and on_the_way and not self.left_out

    @property
    def cost_seconds(self) -> float:
        """What the disturbances cost."""
        return self.disturbed_seconds - self.undisturbed_seconds

    @property
    def cost(self) -> float:
        """The same as a part of the undisturbed run."""
        return self.cost_seconds / self.undisturbed_seconds

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each disturbance."""
        return [asdict(row) for row in self.disturbances]

    def summary(self) -> str:
        """The last line."""
        steps = sum(row.steps_lost for row in self.disturbances)
        told = [
            f"{len(self.disturbances)} disturbances, {self.kills} of them kills: {self._state()}",
            f"{steps} steps done again",
            f"{self.disturbed_seconds:.0f} s instead of {self.undisturbed_seconds:.0f} s "
            f"({self.cost_seconds:+.0f} s, {self.cost:+.0%})",
        ]
        if self.left_out:
            told.append(f"{self.left_out} disturbances left out, for the run was over")
        return "; ".join(told)

    def _state(self) -> str:
        if not self.comparison:
            return "the disturbed run did NOT come to its end"
        different = [same.what for same in self.comparison if not same.identical]
        if different:
            return f"NOT identical: {', '.join(different)}"
        if self.left_out:
            return "weights identical in the end, but NOT all that was planned came about"
        if not self.passed:
            return "weights identical in the end, but NOT all was well on the way"
        return "weights, optimiser, samples and losses identical to the bit"

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        names = (
            "recipe", "ranks", "seed", "steps", "checkpoint_every", "engine", "kills", "left_out", "whole", "identical",
            "passed", "undisturbed_seconds", "disturbed_seconds", "cost_seconds", "cost", "seconds",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "disturbances": self.rows(),
            "comparison": [same.row() for same in self.comparison],
        }
