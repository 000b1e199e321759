"""The machine and the precision of a measured row, as far as its source says them in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from glassformer.plan.hardware import Accelerator, accelerators
from glassformer.plan.precision import PRECISIONS, Precision
from glassformer.plan.row_times import year_of

CLUSTERS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "bloom_prequel": {"scale_out": 6.25e9},
        "bigscience_v100": {"scale_out": 12.5e9, "domain": 4},
        "llmfoundry: A100": {"scale_out": 25e9},
    }
)
"""Links of a source's machine where they differ from the accelerator's table: Jean Zay has four of 100 Gb/s for 8 A100
or 4 V100 (data/accelerators.csv); llm-foundry names 1600 Gb/s a node."""

_TWINS = {"H200-NVL-141GB": "H200-SXM-141GB"}
"""Accelerators that the table lacks, and the nearest it has."""


def known(name: str) -> bool:
    """Whether the accelerator, or its twin, is in the table."""
    return _TWINS.get(name, name) in accelerators()


def machine_of(line: Mapping[str, str]) -> Accelerator:
    """The accelerator, with the links of the source's machine; a peak nobody knows is taken from its neighbours."""
    found = accelerators()[_TWINS.get(line["accelerator"], line["accelerator"])]
    for name, links in CLUSTERS.items():
        source, _, part = name.partition(": ")
        if line["source"] == source and part in line["group"]:
            found = replace(found, **links)  # type: ignore[arg-type]
    if "int8" in line["precision"]:
        # 8-bit products (AQT) at twice the peak of 16 bits; the table has no other 8-bit peak for these
        found = replace(found, peaks={**found.peaks, "fp8": 2 * found.peaks["bf16"]})
    if "HBM2e-500W" in found.name:
        near = accelerators()["H100-SXM-80GB"]
        found = replace(found, peaks=near.peaks, achievable=near.achievable)
    return found


def precision_of(line: Mapping[str, str], accelerator: Accelerator) -> Precision:
    """In what it computes, and what it exchanges."""
    words = line["precision"].lower()
    if "fp8/bf16 unknown" in words and year_of(line) < 2023.75:
        return PRECISIONS["bf16"]  # Habana's fp8 came with MLPerf 3.1
    named = (
        ("fp32", "fp32"),
        ("nvfp4", "fp4"),
        ("fp4", "fp4"),
        ("fp8", "fp8"),
        ("int8", "fp8"),
        ("bf16-pure", "bf16-pure"),
        ("fp16", "fp16"),
    )
    if line["accelerator"].startswith("TPU-v6") and "unknown" in words:
        return PRECISIONS["bf16"]
    for word, name in named:
        if word in words and (name not in ("fp8", "fp4") or name in accelerator.peaks):
            found = PRECISIONS[name]
            # NVIDIA's recipes of low precision exchange gradients of 16 bits
            return replace(found, gradient=2) if name in ("fp8", "fp4") and _by_vendor(line) else found
    return PRECISIONS["bf16"]


def _by_vendor(line: Mapping[str, str]) -> bool:
    return line["source"].startswith(("nemo", "mbridge", "mlperf"))
