"""Energy of a run: E = accelerators x P(u) x time x PUE, with P of the whole node at the wall, not a datasheet's TDP.

    P(u) = P_idle + (P_busy - P_idle) u          u: share of the time in which accelerators compute and do not wait

P_busy of an accelerator is what was metered in nodes of its kind (data/energy.csv), each reading brought to u = 1;
where nobody metered it, its TDP times what the nearest kin draw for each watt of theirs, with a wider interval. An
H100 node in MLPerf v4.0 takes 856 W for each GPU in GPT-3 pretraining, 895 W where a single node fine-tunes and 636 W
where 64 nodes wait for each other; TDP is 700 W. PUE, what the building adds, is 1.1 to 1.25 and the user's to say.
Carbon is E times the grid's kg/kWh, which differs fiftyfold between countries: there is no default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.errors import UsageError
from glassformer.plan.failures import Between
from glassformer.plan.hardware import Accelerator, accelerators, data_rows
from glassformer.stats import median

IDLE = 0.3
"""P_idle for each watt of TDP. An assumption: no reading of an idle node is among the rows."""
USUAL = 0.9
"""u where nothing is known of it: a run that scales well."""
PUE = Between(1.15, 1.1, 1.25, 0.8)
"""2405.21015: hyperscalers 1.1, others 1.25."""
EPOCH_NODE = {
    "H100-SXM-80GB": 10_200 / 8,
    "A100-SXM-40GB": 6500 / 8,
    "A100-SXM-80GB": 6500 / 8,
    "V100-SXM2-32GB": 531,
}
"""W of a node's maximum for each accelerator, by Epoch's table (training-cost-trends, 263c40a)."""
_SPREAD = {"metered": 0.10, "kin": 0.25, "foreign": 0.45}
"""Half the width of an 80 % interval, as a share: the kind itself was metered, one of the same vendor, or none."""
_WAITING = {"mlperf40-smc-ac-power-64xSMC-H100-SXM-80GB-llama2_70b_lora": 0.72}
"""u of readings where it is not usual: 64 nodes got 0.72 of one node's tokens a second for each GPU (MLPerf logs)."""
_ALONE = 1.0
"""u of a single node."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metered run."""

    id: str
    accelerator: str
    watts: float
    """For each accelerator, with its share of the node, without PUE."""
    busy: float
    """u."""
    scope: str


@dataclass(frozen=True, slots=True)
class Power:
    """W for each accelerator."""

    watts: Between
    basis: str
    """What it is taken from."""


def readings(path: Path | None = None) -> list[Reading]:
    """Runs metered at nodes: at the wall, or with the host's share. GPU-only meters and DC twins are left out.

    Of another table, where `path` names one."""
    found = []
    for row in data_rows("energy", path):
        whole = row["scope"].startswith(("AC input", "system incl. host", "measured system"))
        if not (whole and row["mean_power_per_accel_w"]):
            continue
        alone = row["nodes"] == "1"
        busy = _WAITING.get(row["id"], _ALONE if alone else USUAL)
        found.append(
            Reading(row["id"], row["accelerator"], float(row["mean_power_per_accel_w"]), busy, row["scope"])
        )
    return found


def power(kind: Accelerator, busy: float | None = None, given: Sequence[Reading] | None = None) -> Power:
    """P(u) of an accelerator in its node."""
    if busy is not None and not 0 <= busy <= 1:
        raise UsageError(
            f"The accelerators compute for {busy:g} of the time.", expected="A share from 0 to 1."
        )
    u = USUAL if busy is None else busy
    known = readings() if given is None else given
    own = [one for one in known if one.accelerator == kind.name]
    if own:
        full = median([_at_full(one, _idle(kind)) for one in own])
        return _power(_idle(kind), full, u, "metered", f"{len(own)} metered runs on {kind.name}")
    table = accelerators()
    kin = [one for one in known if table[one.accelerator].vendor == kind.vendor]
    others = [one for one in kin or known if table[one.accelerator].power]
    if not kind.power:
        full = median([_at_full(one, _idle(table[one.accelerator])) for one in others])
        return _power(
            0.3 * full, full, u, "foreign", f"no TDP of {kind.name}: the median of {len(others)} metered runs"
        )
    ratios = [_at_full(one, _idle(table[one.accelerator])) / table[one.accelerator].power for one in others]
    whose = "its vendor" if kin else "other vendors"
    basis = f"TDP {kind.power:g} W times what {len(others)} metered runs of {whose} draw for each"
    return _power(_idle(kind), kind.power * median(ratios), u, "kin" if kin else "foreign", basis)


def megawatt_hours(
    kind: Accelerator, accelerator_hours: float, *, busy: float | None = None, pue: Between = PUE
) -> Between:
    """E, at the meter of the building."""
    watts = power(kind, busy).watts
    value = accelerator_hours * watts.value * pue.value / 1e6
    spread = np.hypot(np.log(watts.high / watts.value), np.log(pue.high / pue.low) / 2)
    return Between(value, float(value * np.exp(-spread)), float(value * np.exp(spread)), 0.8)


def carbon_tonnes(energy: Between, kilograms_per_kwh: float) -> Between:
    """Tonnes of CO2e; the factor is the grid's, which the user states."""
    if not 0 <= kilograms_per_kwh <= 2:
        raise UsageError(
            f"A grid that emits {kilograms_per_kwh:g} kg for each kWh.",
            expected="0 to about 1; grams are not meant.",
        )
    factor = kilograms_per_kwh
    return Between(energy.value * factor, energy.low * factor, energy.high * factor, energy.share)


def epoch_rule(kind: Accelerator) -> float:
    """W by Epoch's rule: three quarters of the node's maximum; 1.8 TDP where its table has no node; TPU 0.43 x 1.56."""
    if kind.name.startswith("TPU"):
        return kind.power * 0.43 * 1.56
    return 0.75 * EPOCH_NODE.get(kind.name, 1.8 * kind.power)


@dataclass(frozen=True, slots=True)
class Held:
    """One reading beside what the others, the TDP and Epoch's rule give for it."""

    reading: Reading
    predicted: Between
    tdp: float
    epoch: float

    @property
    def error(self) -> float:
        return self.predicted.value / self.reading.watts - 1

    @property
    def holds(self) -> bool:
        return self.predicted.low <= self.reading.watts <= self.predicted.high

    def row(self) -> dict[str, Any]:
        watts = self.reading.watts
        return {
            "run": self.reading.id, "accelerator": self.reading.accelerator, "predicted": self.predicted.value,
            "metered": watts, "error": self.error, "holds": self.holds, "error_tdp": self.tdp / watts - 1,
            "error_epoch": self.epoch / watts - 1,
        }  # fmt: skip


def left_out() -> list[Held]:
    """Every reading, predicted without it."""
    known, table, found = readings(), accelerators(), []
    for one in known:
        kind = table[one.accelerator]
        others = [other for other in known if other is not one]
        found.append(Held(one, power(kind, one.busy, others).watts, kind.power, epoch_rule(kind)))
    return found


def _idle(kind: Accelerator) -> float:
    return IDLE * kind.power


def _at_full(one: Reading, idle: float) -> float:
    """What the reading would be at u = 1."""
    return (one.watts - idle * (1 - one.busy)) / one.busy


def _power(idle: float, full: float, u: float, kind: str, basis: str) -> Power:
    value, spread = idle + (full - idle) * u, _SPREAD[kind]
    return Power(Between(value, value / (1 + spread), value * (1 + spread), 0.8), basis)
