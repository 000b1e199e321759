"""Accelerators: peaks, memory, links and power, each row with where its values come from (`data/accelerators.csv`).

Peaks are dense TFLOP/s of the datasheet; `achievable` is the share of it that the best matrix products measured reach
(ml-engineering, 2026), which is what a step can hope for.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from glassformer.errors import UsageError, nearest


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of accelerator."""

    name: str
    vendor: str
    release: str
    peaks: Mapping[str, float]
    """FLOP/s by `fp32`, `tf32`, `fp16`, `bf16`, `fp8`, `fp4`, dense; only those it has."""
    achievable: Mapping[str, float]
    """Share of the peak that measured products reach at best, by the same names; empty where nobody measured."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Of its memory, bytes a second."""
    scale_up: float
    """Bytes a second and direction to its neighbours in a domain (NVLink, ICI)."""
    domain: int
    """How many are joined by such links."""
    scale_out: float
    """Bytes a second to those outside, typically."""
    power: float
    """W, of the datasheet (TDP)."""
    source: str
    note: str = ""

    def peak(self, name: str) -> float:
        """FLOP/s; bf16 where fp16 has none and the other way round, UsageError where it cannot."""
        twin = {"bf16": "fp16", "fp16": "bf16", "tf32": "fp32"}.get(name, name)
        for one in (name, twin):
            if one in self.peaks:
                return self.peaks[one]
        raise UsageError(
            f"{self.name} has no {name} products.", expected=f"One of {', '.join(self.peaks)}.",
        )  # fmt: skip


def accelerator(name: str) -> Accelerator:
    """By name, in any case and with any dashes; UsageError with the nearest names."""
    table = accelerators()
    plain = {_plain(one): one for one in table}
    wanted = _plain(name)
    if wanted in plain:
        return table[plain[wanted]]
    begun = [one for key, one in plain.items() if key.startswith(wanted)] if wanted else []
    if len(begun) == 1:
        return table[begun[0]]
    raise UsageError(
        f"There is no accelerator {name!r} in the table;", expected=nearest(name, begun or list(table))
    )


@cache
def accelerators() -> Mapping[str, Accelerator]:
    """The whole table by name."""
    return {row["accelerator"]: _read(row) for row in data_rows("accelerators")}


def data_rows(name: str, path: Path | None = None) -> list[dict[str, str]]:
    """The lines of one of this room's tables, `data/<name>.csv`; of another with the same columns, where `path` is."""
    shipped = resources.files("glassformer.plan") / "data" / f"{name}.csv"
    text = (path or shipped).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _read(row: Mapping[str, str]) -> Accelerator:
    def number(column: str, unit: float = 1.0) -> float:
        return float(row[column]) * unit if row[column] else 0.0

    columns = {
        "fp32": "fp32_tflops", "tf32": "tf32_tflops", "fp16": "fp16_dense_tflops", "bf16": "bf16_dense_tflops",
        "fp8": "fp8_dense_tflops", "fp4": "fp4_dense_tflops",
    }  # fmt: skip
    peaks = {name: number(column, 1e12) for name, column in columns.items() if row[column]}
    measured = {
        name: number(f"{name}_achievable_matmul_tflops", 1e12) / peaks[name]
        for name in ("bf16", "fp8")
        if row[f"{name}_achievable_matmul_tflops"]
    }
    return Accelerator(
        row["accelerator"], row["vendor"], row["release"], peaks, measured, number("mem_gb", 1e9),
        number("hbm_gbps", 1e9), number("scaleup_gbps_unidir", 1e9), int(number("scaleup_domain") or 1),
        number("scaleout_gbps_per_accel_typical", 1e9), number("tdp_w"), row["verified"], row["note"],
    )  # fmt: skip


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
