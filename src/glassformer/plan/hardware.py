"""Accelerators and processors: peaks, memory, links and power, each with where its values come from.

Peaks are dense FLOP/s of the datasheet; `achievable` is the share of it that the best matrix products measured reach
(ml-engineering, 2026), which is what a step can hope for. The tables are `data/accelerators.csv` and `data/cpus.csv`;
`here` is this machine as `glassformer bench` measured it (`plan/machine.py`).

A processor's peak = cores x clock x FLOPs a cycle, where one of its instructions multiplies and adds a whole register:

    avx2          2 units x 8 numbers x 2         32 in float32
    avx512        2 units x 16 numbers x 2        64
    avx512-256    the same instructions, half a register a cycle (Zen 4): 32, and 64 in bfloat16
    amx           64 in float32, 1024 in bfloat16 by its tiles

(stackoverflow.com/questions/15655835, by microarchitecture; Intel's AMX brief, quoted at realgenius.tistory.com/207.)
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from glassformer.errors import UsageError, nearest

INSTRUCTIONS: dict[str, dict[str, int]] = {
    "avx2": {"fp32": 32},
    "avx512": {"fp32": 64},
    "avx512-256": {"fp32": 32, "bf16": 64},
    "amx": {"fp32": 64, "bf16": 1024},
}
"""FLOPs of a core in a cycle."""

_COLUMNS = {
    "fp32": "fp32_tflops", "tf32": "tf32_tflops", "fp16": "fp16_dense_tflops", "bf16": "bf16_dense_tflops",
    "fp8": "fp8_dense_tflops", "fp4": "fp4_dense_tflops", "memory": "mem_gb", "bandwidth": "hbm_gbps",
    "scale_up": "scaleup_gbps_unidir", "domain": "scaleup_domain", "scale_out": "scaleout_gbps_per_accel_typical",
    "power": "tdp_w",
}  # fmt: skip
_PEAKS = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of accelerator."""

    name: str
    vendor: str
    """Of a processor with the word CPU."""
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
    as_of: str = ""
    """When the source was so."""
    unverified: frozenset[str] = frozenset()
    """Of `fp32 ... fp4, memory, bandwidth, scale_up, domain, scale_out, power`: those that no source was read for."""
    also: tuple[str, ...] = ()
    """Other names."""

    def peak(self, name: str) -> float:
        """FLOP/s; bf16 where fp16 has none and the other way round, UsageError where it cannot."""
        twin = {"bf16": "fp16", "fp16": "bf16", "tf32": "fp32"}.get(name, name)
        for one in (name, twin):
            if one in self.peaks:
                return self.peaks[one]
        raise UsageError(
            f"{self.name} has no {name} products.", expected=f"One of {', '.join(self.peaks)}.",
        )  # fmt: skip

    def provenance(self, value: str) -> str:
        """Where a value comes from and when it was so, by the names of `unverified`; says so where it is not known."""
        if value not in _COLUMNS:
            raise UsageError(f"An accelerator has no value {value!r};", expected=nearest(value, _COLUMNS))
        if value in self.unverified:
            return f"unverified: no source was read for it (the others: {self.source})"
        if value == "scale_out":
            return f"typical of clusters that have it ({self.source})"
        return self.source


def accelerator(name: str) -> Accelerator:
    """By name, in any case and with any dashes; `here` is this machine. UsageError with the nearest names."""
    wanted = _plain(name)
    if wanted == "here":
        from glassformer.plan.machine import this_machine

        return this_machine()
    table = accelerators()
    plain = {_plain(name): one for one, row in table.items() for name in (one, *row.also)}
    if wanted in plain:
        return table[plain[wanted]]
    begun = list(dict.fromkeys(one for key, one in plain.items() if wanted and key.startswith(wanted)))
    if len(begun) == 1:
        return table[begun[0]]
    raise UsageError(
        f"There is no accelerator {name!r} in the table;", expected=nearest(name, begun or list(table))
    )


@cache
def accelerators() -> Mapping[str, Accelerator]:
    """The whole table by name, processors last."""
    read = [_read(row) for row in data_rows("accelerators")] + [_processor(row) for row in data_rows("cpus")]
    return {one.name: one for one in read}


def processor(
    cores: int, gigahertz: float, instructions: str, *, memory: float, bandwidth: float, power: float = 0.0
) -> Accelerator:
    """Any processor, from its cores, clock and instructions; `memory` in bytes, `bandwidth` in bytes a second."""
    if instructions not in INSTRUCTIONS:
        raise UsageError(
            f"There are no instructions {instructions!r};", expected=nearest(instructions, INSTRUCTIONS)
        )
    for name, value in (
        ("cores", cores),
        ("gigahertz", gigahertz),
        ("memory", memory),
        ("bandwidth", bandwidth),
    ):
        if not value > 0:
            raise UsageError(f"A processor's {name} is {value:g}.", expected="More than 0.")
    cycles = cores * gigahertz * 1e9
    peaks = {name: float(cycles * flops) for name, flops in INSTRUCTIONS[instructions].items()}
    return Accelerator(
        f"{cores} cores, {instructions}", "CPU", "", peaks, {}, memory, bandwidth, 0.0, 1, 0.0, power,
        f"as given: {cores} cores of {gigahertz:g} GHz, {instructions}",
    )  # fmt: skip


def data_rows(name: str, path: Path | None = None) -> list[dict[str, str]]:
    """The lines of one of this room's tables, `data/<name>.csv`; of another with the same columns, where `path` is."""
    shipped = resources.files("glassformer.plan") / "data" / f"{name}.csv"
    text = (path or shipped).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _read(row: Mapping[str, str]) -> Accelerator:
    def number(name: str, unit: float = 1.0) -> float:
        return float(row[_COLUMNS[name]]) * unit if row[_COLUMNS[name]] else 0.0

    peaks = {name: number(name, 1e12) for name in _PEAKS if row[_COLUMNS[name]]}
    measured = {
        name: float(row[f"{name}_achievable_matmul_tflops"]) * 1e12 / peaks[name]
        for name in ("bf16", "fp8")
        if row[f"{name}_achievable_matmul_tflops"]
    }
    return Accelerator(
        row["accelerator"], row["vendor"], row["release"], peaks, measured, number("memory", 1e9),
        number("bandwidth", 1e9), number("scale_up", 1e9), int(number("domain") or 1),
        number("scale_out", 1e9), number("power"), f"{row['verified']}; {row['source']}, {row['as_of']}", row["note"],
        row["as_of"], frozenset(name for name, column in _COLUMNS.items() if column in row["unverified"].split()),
        tuple(row["also"].split()),
    )  # fmt: skip


def _processor(row: Mapping[str, str]) -> Accelerator:
    made = processor(
        int(row["cores"]), float(row["base_ghz"]), row["instructions"], memory=float(row["memory_gb"]) * 1e9,
        bandwidth=int(row["channels"]) * float(row["megatransfers"]) * 1e6 * 8, power=float(row["tdp_w"]),
    )  # fmt: skip
    note = f"{row['note']}; memory is the most that a socket takes"
    return Accelerator(
        row["cpu"], f"{row['vendor']} CPU", row["release"], made.peaks, {}, made.memory, made.bandwidth, 0.0, 1, 0.0,
        made.power, f"{row['verified']}; {row['source']}, {row['as_of']}", note, row["as_of"],
        frozenset(("memory", "power") if "unverified" in row["verified"] else ()),
    )  # fmt: skip


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
